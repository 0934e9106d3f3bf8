"""`m3esr evaluate` as one value: which methods on which sets, and every table and picture that follows."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluation.ablations import TRAINABLE, masked_rows, measure_mean_weights, modalities
from evaluation.data import Pair
from evaluation.errors import EvaluationError
from evaluation.methods import Method
from evaluation.paper_tables import table_1, table_3
from evaluation.report import Table, compare, results_json
from evaluation.runner import MethodResult, Run
from evaluation.sheets import write_sheets
from models.configs import VISUAL_MODALITIES
from models.pipeline import Upscaler
from models.requests import ALL_MODALITIES, Intervention


@dataclass(frozen=True)
class Evaluation:
    """`ours` and the peers on every set of pairs. trained_without: checkpoint folders by row of Table 3."""

    run: Run
    sets: Mapping[str, list[Pair]]
    ours: Method
    peers: tuple[Method, ...] = ()
    data_name: str = ""
    num_sheets: int = 0
    trained_without: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [method.name for method in (*self.peers, self.ours)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise EvaluationError(f"two methods are called '{twice[0]}': name one of them with NAME=...")

    def everything(self, *, table1: bool = False, table3: bool = False) -> tuple[list[Table], dict[str, Any]]:
        """All tables asked for, and what they were made from as JSON. Raises EvaluationError."""
        results, tables = self.compare()
        kept = results_json(results, {"profile": self.ours.profile, "options": repr(self.ours.options)})
        if table1:
            tables += [table_1(rows, self.told_data(name)) for name, rows in results.items()]
        if table3:
            more, kept["table_3"] = self.ablate()
            tables += more
        return tables, kept

    def compare(self) -> tuple[dict[str, list[MethodResult]], list[Table]]:
        """Results by set, and one table per set; the sheets are written."""
        results, tables = {}, []
        for name, pairs in self.sets.items():
            results[name] = [self.run.evaluate(name, pairs, method) for method in (*self.peers, self.ours)]
            tables.append(compare(f"{self.label(name)}, {len(pairs)} images", results[name]))
            if self.num_sheets:
                write_sheets(self.run.out / name / "sheets", pairs, results[name], self.num_sheets)
        return results, tables

    def label(self, set_name: str) -> str:
        return f"{self.data_name}/{set_name}"

    def told_data(self, set_name: str) -> str:
        return f"{self.label(set_name)} ({len(self.sets[set_name])}), this run"

    def ablate(self) -> tuple[list[Table], dict[str, Any]]:
        """Table 3 on every set, and its results as JSON. Raises EvaluationError for profiles without our fusion."""
        tables: list[Table] = []
        kept: dict[str, list[MethodResult]] = {}
        weights: dict[str, dict[str, float]] = {}
        for name, pairs in self.sets.items():
            weights[name] = self.mean_weights(pairs)
            masked = {
                row: self.run.evaluate(name, pairs, method)
                for row, method in masked_rows(self.ours, weights[name]).items()
            }
            trained = {
                row: self.run.evaluate(name, pairs, self.without(row, self.trained_without[row], weights[name]))
                if row in self.trained_without
                else None
                for row in TRAINABLE
            }
            tables += table_3(masked, trained, self.told_data(name))
            kept[name] = [*masked.values(), *(result for result in trained.values() if result is not None)]
        return tables, results_json(kept, {"mean_weights": weights})

    def mean_weights(self, pairs: list[Pair]) -> dict[str, float]:
        try:
            upscaler = Upscaler.load(self.ours.profile, self.ours.machine.device, self.ours.path)
        except (ValueError, OSError) as error:
            raise EvaluationError(str(error)) from error
        return measure_mean_weights(upscaler, pairs)

    def without(self, row: str, checkpoint: Path, mean_weights: dict[str, float]) -> Method:
        """The method of a network that was trained without the part of `row`, run as it was trained."""
        method = replace(self.ours, name=f"{self.ours.name} trained {row}", path=checkpoint)
        if row == "none":
            return modalities(method, ("text",))
        if row.startswith("without "):
            return modalities(method, tuple(n for n in ALL_MODALITIES if n != row.removeprefix("without ")))
        off = Intervention(expert_weights=mean_weights) if row == "routing off" else Intervention(temperature=1.0)
        return replace(method, options=replace(method.options, intervention=off))


def parse_trained_without(texts: list[str]) -> dict[str, Path]:
    """Rows of Table 3 and their checkpoints from NAME=FOLDER. Raises EvaluationError."""
    short = {name: f"without {name}" for name in VISUAL_MODALITIES} | {
        "routing": "routing off",
        "temperature": "temperature off",
        "none": "none",
    }
    found = {}
    for text in texts:
        name, separator, place = text.partition("=")
        if not separator or name not in short:
            raise EvaluationError(f"'{text}' is not NAME=FOLDER with NAME one of {', '.join(short)}")
        if not Path(place).is_dir():
            raise EvaluationError(f"'{text}': no folder {place}; a checkpoint is a folder as training writes it")
        found[short[name]] = Path(place)
    return found
