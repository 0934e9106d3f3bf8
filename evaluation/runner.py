"""Runs methods over sets of pairs and scores them; what was done is kept, so a run that was cut off goes on.

OUT/<set>/<method>/<stem>.png    outputs (not for methods that are folders)
OUT/<set>/<method>/method.json   what made them, seconds per image, peak memory
OUT/<set>/<method>/scores.json   scores per image, with the hashes of the files they were taken from
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.data import Pair, find_images, read_image
from evaluation.errors import EvaluationError
from evaluation.methods import Method
from evaluation.production import produce
from evaluation.scoring import Scorer, file_sha256, mean_scores

OnStep = Callable[[str, str, int, int], None]  # (set, method, done, of)


@dataclass(frozen=True)
class MethodResult:
    """One method on one set. rows: scores per image by stem. mean: of each score; with seconds (the median) and MB."""

    method: Method
    rows: dict[str, dict[str, float]]
    mean: dict[str, float]
    outputs: dict[str, Path]


@dataclass(frozen=True)
class Run:
    """A whole evaluation: where its files lie and how much of the machine a method may take."""

    out: Path
    scorer: Scorer
    threads: int = 1
    on_step: OnStep = field(default=lambda *_: None)
    make: Callable[..., None] = produce

    def evaluate(self, set_name: str, pairs: list[Pair], method: Method) -> MethodResult:
        """Makes what is missing, scores what is not scored. Raises EvaluationError."""
        folder = self.out / set_name / method.name
        folder.mkdir(parents=True, exist_ok=True)
        if method.kind == "folder":
            assert method.path is not None
            outputs, facts = find_images(method.path), dict[str, Any]()
            missing = [pair.stem for pair in pairs if pair.stem not in outputs]
            if missing:
                raise EvaluationError(f"{method.path} has no image for {len(missing)} of {len(pairs)}: {missing[0]}")
        else:
            facts = self._make_missing(set_name, pairs, method, folder)
            outputs = {pair.stem: folder / f"{pair.stem}.png" for pair in pairs}
        rows = self._score(set_name, pairs, method, folder, outputs)
        mean = mean_scores(rows.values())
        seconds = [facts["seconds"][pair.stem] for pair in pairs if pair.stem in facts.get("seconds", {})]
        if seconds:
            mean |= {"seconds": float(np.median(seconds)), "memory_mb": facts["memory_mb"]}
        return MethodResult(method, rows, mean, {pair.stem: outputs[pair.stem] for pair in pairs})

    def _make_missing(self, set_name: str, pairs: list[Pair], method: Method, folder: Path) -> dict[str, Any]:
        path, identity = folder / "method.json", method.identity()
        facts = read_json(path) or {"identity": identity, "seconds": {}, "memory_mb": 0.0, "inputs": {}}
        if facts["identity"] != identity:
            raise EvaluationError(
                f"{folder} holds pictures made with other weights or options: take another --out, or remove it"
            )
        inputs = {pair.stem: file_sha256(pair.lr) for pair in pairs}
        missing = [
            pair
            for pair in pairs
            if facts["inputs"].get(pair.stem) != inputs[pair.stem] or not (folder / f"{pair.stem}.png").exists()
        ]

        def on_done(stem: str, seconds: float, memory_mb: float) -> None:
            facts["seconds"][stem], facts["inputs"][stem] = seconds, inputs[stem]
            facts["memory_mb"] = max(facts["memory_mb"], memory_mb)
            write_json(path, facts)
            self.on_step(set_name, method.name, len(pairs) - len(missing) + len(done) + 1, 2 * len(pairs))
            done.append(stem)

        done: list[str] = []
        if missing:
            self.make(method, missing, folder, self.threads, on_done)
        return facts

    def _score(
        self, set_name: str, pairs: list[Pair], method: Method, folder: Path, outputs: dict[str, Path]
    ) -> dict[str, dict[str, float]]:
        path = folder / "scores.json"
        kept = read_json(path) or {}
        for index, pair in enumerate(pairs):
            files = [self.scorer.identity, *map(file_sha256, (outputs[pair.stem], pair.hr, pair.lr))]
            if kept.get(pair.stem, {}).get("files") != files:
                sr, hr, lr = (read_image(place) for place in (outputs[pair.stem], pair.hr, pair.lr))
                if sr.shape != hr.shape:
                    raise EvaluationError(
                        f"{method.name}, {pair.stem}: SR is {sr.shape[1]}x{sr.shape[0]}, HR is "
                        f"{hr.shape[1]}x{hr.shape[0]}; methods enlarge 4 times"
                    )
                kept[pair.stem] = {"files": files, "scores": self.scorer(sr, hr, lr)}
                write_json(path, kept)
            self.on_step(set_name, method.name, len(pairs) + index + 1, 2 * len(pairs))
        return {pair.stem: kept[pair.stem]["scores"] for pair in pairs}


def read_json(path: Path) -> Any:
    """What a file holds, or None where there is none. Raises EvaluationError when it is broken."""
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise EvaluationError(f"{path} is damaged: remove its folder and run again") from error


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)
