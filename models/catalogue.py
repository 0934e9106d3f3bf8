"""Which public weights a profile runs on, and what of them lies in the models folder. Without torch.

ONE folder holds them all, laid out as on the hub: ROOT/<owner>/<repository>/<path>.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from models import receipts
from models.sources import FILE, SOURCES, TEXTS, Part, Source

WEIGHTS = (".safetensors", ".bin")  # in the order of preference
TEXT_SUFFIXES = (".json", ".txt", ".model", ".jinja")

# What a profile cannot run without. `compact` has its weights in the package.
PROFILES: dict[str, tuple[str, ...]] = {
    "compact": (),
    "quality": ("sd35", "dit4sr-r1"),
    "fidelity": ("sd21", "seesr", "ram", "ram-tags"),
}
# What the profiles use when it is there.
GROUPS: dict[str, tuple[str, ...]] = {
    "coarse": ("realesrgan-x4plus",),
    "captions": ("llava",),
    "extractors": ("mask2former", "depth-anything", "dinov3", "vqgan"),
    "baselines": ("realesrgan-x4plus", "realesrgan-x2plus", "realesr-general-x4v3", "bsrgan"),
}


def find_sources(names: Iterable[str]) -> list[Source]:
    """The sources behind names of profiles, groups or sources, each once. Raises KeyError with an unknown name."""
    found: dict[str, Source] = {}
    for name in names:
        for member in PROFILES.get(name, GROUPS.get(name, (name,))):
            found[member] = SOURCES[member]
    return list(found.values())


def missing(root: Path, name: str) -> list[str]:
    """What of a profile, group or source is not under the models folder `root`, as owner/repository/path.

    A folder counts as there when it can be loaded: its config.json and one complete set of weights (one file, or an
    index and all its shards), under whatever names. Raises KeyError with an unknown name.
    """
    return [
        f"{source.folder}/{part.path}".rstrip("/")
        for source in find_sources([name])
        for part in source.parts
        if not is_there(root / source.folder, part)
    ]


class MissingWeightsError(FileNotFoundError):
    """A profile's weights are not in the models folder; the message names the command that gets them."""


def require(root: Path, name: str) -> None:
    """Raise MissingWeightsError when something of a profile, group or source is not under the models folder."""
    if lacking := missing(root, name):
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise MissingWeightsError(
            f"the weights of '{name}' are not in {root}: {', '.join(lacking[:3])}{more} missing. "
            f"Get them with: m3esr models pull {name}"
        )


def is_there(folder: Path, part: Part) -> bool:
    """Whether a part can be loaded from the folder of its repository, and was fetched whole if it was fetched."""
    place = folder / part.path
    if not receipts.is_whole(folder, part.path):
        return False
    if part.kind == FILE:
        return place.is_file()
    if part.kind == TEXTS:
        return place.is_dir() and any(path.suffix in TEXT_SUFFIXES for path in place.iterdir() if path.is_file())
    return (place / "config.json").is_file() and _has_weights(place)


def _has_weights(folder: Path) -> bool:
    for suffix in WEIGHTS:
        for index in folder.glob(f"*{suffix}.index*.json"):
            shards = set(json.loads(index.read_text())["weight_map"].values())
            if all((folder / shard).is_file() for shard in shards):
                return True
        if any("-of-" not in path.name for path in folder.glob(f"*{suffix}")):
            return True
    return False


def choose_files(part: Part, listed: Iterable[str]) -> list[str]:
    """Which of the files that a repository lists are fetched for a part, sorted.

    Of a model's folder: its small text files and one set of weights, safetensors before pickles, and the plain one
    before a variant ("model.safetensors" before "model.fp16.safetensors"), for that is what loads without more words.
    Returns [] when the repository has nothing for it.
    """
    if part.kind == FILE:
        return [part.path] if part.path in set(listed) else []
    prefix = f"{part.path}/" if part.path else ""
    names = [path[len(prefix) :] for path in listed if path.startswith(prefix) and "/" not in path[len(prefix) :]]
    texts = [name for name in names if name.endswith(TEXT_SUFFIXES) and ".index." not in name]
    if part.kind == TEXTS:
        return sorted(prefix + name for name in texts)
    weights = _choose_weights(names)
    return sorted(prefix + name for name in [*texts, *weights]) if weights else []


def _choose_weights(names: list[str]) -> list[str]:
    for suffix in WEIGHTS:
        sets: dict[str, list[str]] = {}  # "model" or "model.fp16" -> its files
        for name in names:
            if name.endswith(suffix):
                stem = name.removesuffix(suffix)
                sets.setdefault(stem.partition("-0")[0] if "-of-" in stem else stem, []).append(name)
        # "training_args.bin", "openvino_model.bin" and the like are no weights of a model
        known = [key for key in sets if key.partition(".")[0] in _WEIGHT_NAMES]
        if known:
            chosen = min(known, key=lambda key: (key.count("."), key))
            return sets[chosen] + [name for name in names if name in _index_names(chosen, suffix)]
    return []


_WEIGHT_NAMES = ("model", "pytorch_model", "diffusion_pytorch_model")


def _index_names(stem: str, suffix: str) -> tuple[str, ...]:
    name, _, variant = stem.partition(".")
    return (f"{name}{suffix}.index.{variant}.json",) if variant else (f"{name}{suffix}.index.json",)


def matches_sum(expected: str, sha256: str) -> bool:
    """Whether a sum is the expected one, which may be given by head and tail only ("fb873282...8520")."""
    head, dots, tail = expected.partition("...")
    return sha256.startswith(head) and sha256.endswith(tail) if dots else sha256 == expected
