"""Targets of the perception students, made once from the teachers: DINO-style features and soft segments.

Features: the teachers' patch features, balanced, in principal components. Segments: a linear probe on the
same features,
trained on regions of 160 photographs that were named by hand (`segment_labels.json`), aligned with colour
edges by a
guided filter. Written to --out as memory-mapped arrays, in the order of names.txt:
`features.npy` (num, 32, 32, Cd) float16, `segments.npy` (num, 64, 64, S) uint8 (255 = certain).

    python -m training.targets --photographs FOLDER [FOLDER ...] --nets FOLDER --out FOLDER
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from models.modalities.config import SEGMENT_NAMES
from training.teachers import RAW_CHANNELS, RAW_GROUPS, Teachers

# one letter per class in segment_labels.json, in the order of SEGMENT_NAMES; "g" (grass) joins the plants
CODES = "scnwtlfrdibopahuemLBk"
PROBE_COMPONENTS = 192
DINO_CHANNELS = 64
# weights of the feature groups: the shallow MobileNet block (texture) counts less than the deep ones
GROUP_WEIGHTS = (0.7, 1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Projection:
    """Raw teacher features (..., R) -> principal components, most varied first."""

    mean: np.ndarray  # (R,)
    scale: np.ndarray  # (R,)
    basis: np.ndarray  # (R, PROBE_COMPONENTS)
    variance: np.ndarray  # (PROBE_COMPONENTS,)

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        return ((raw.astype(np.float32) - self.mean) * self.scale) @ self.basis


def fit_projection(raw: np.ndarray, rng: np.random.Generator) -> Projection:
    """raw (num, T, T, R). Each group of channels (one teacher layer) is scaled to the same total variance."""
    picked = [image.reshape(-1, RAW_CHANNELS)[rng.choice(1024, 48, replace=False)] for image in raw[::2]]
    samples = np.concatenate(picked).astype(np.float32)
    mean = samples.mean(axis=0)
    variance, start, scales = samples.var(axis=0), 0, []
    for size, weight in zip(RAW_GROUPS, GROUP_WEIGHTS, strict=True):
        scales.append(np.full(size, weight / np.sqrt(variance[start : start + size].sum()), np.float32))
        start += size
    scale = np.concatenate(scales)
    centred = (samples - mean) * scale
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    kept = slice(None, -PROBE_COMPONENTS - 1, -1)
    return Projection(mean, scale, vectors[:, kept].astype(np.float32), values[kept].astype(np.float32))


def dino_targets(components: np.ndarray, projection: Projection) -> np.ndarray:
    """(..., PROBE_COMPONENTS) -> (..., Cd), half whitened so that the cosine is not ruled by the first few
    components.
    """
    variance = projection.variance[:DINO_CHANNELS]
    return components[..., :DINO_CHANNELS] * (variance.sum() ** -0.25 * variance**-0.25)


def probe_inputs(components: np.ndarray, voc_logits: np.ndarray, hr_image: np.ndarray) -> np.ndarray:
    """What the segment probe sees per token: features, their surroundings, the whole photograph, VOC
    classes, colour.

    components (32, 32, PROBE_COMPONENTS), voc_logits (32, 32, 21), hr_image (512, 512, 3) uint8 -> (32,
    32, inputs)
    """
    around = cv2.blur(np.ascontiguousarray(components[..., :64]), (7, 7), borderType=cv2.BORDER_REFLECT)
    whole = np.broadcast_to(components[..., :32].mean(axis=(0, 1)), (32, 32, 32))
    voc = voc_logits.astype(np.float32)
    voc = (voc - voc.max(axis=-1, keepdims=True)) / 8
    lab = cv2.cvtColor(hr_image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    colour = cv2.resize(lab, (32, 32), interpolation=cv2.INTER_AREA)
    square = cv2.resize(lab[..., 0] ** 2, (32, 32), interpolation=cv2.INTER_AREA)
    roughness = np.log(np.sqrt(np.maximum(square - colour[..., 0] ** 2, 0)) + 0.5)
    height = np.broadcast_to(np.linspace(-0.5, 0.5, 32)[:, None, None], (32, 32, 1))
    parts = (
        components * 8,
        around * 8,
        whole * 6,
        voc,
        (colour - [50, 0, 0]) / [25, 15, 15],
        roughness[..., None],
        height,
    )
    return np.concatenate(parts, axis=-1).astype(np.float32)


def fit_probe(inputs: np.ndarray, classes: np.ndarray, decay: float = 3e-3, steps: int = 60) -> torch.nn.Linear:
    """Softmax regression: inputs (num, inputs), classes (num,) -> logits layer. Rare classes count more
    (1/sqrt).
    """
    x, y = torch.from_numpy(inputs), torch.from_numpy(classes)
    count = torch.bincount(y, minlength=len(CODES)).float().clamp(min=1)
    probe = torch.nn.Linear(x.shape[1], len(CODES))
    torch.nn.init.zeros_(probe.weight)
    torch.nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(probe(x), y, weight=count.rsqrt() / count.rsqrt().mean(), label_smoothing=0.05)
        loss = loss + decay * probe.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return probe


def align_segments(probabilities: np.ndarray, hr_image: np.ndarray) -> np.ndarray:
    """Guided filter: (32, 32, S) float32, (512, 512, 3) uint8 -> (64, 64, S) float32 along the
    photograph's edges.
    """
    small = cv2.resize(hr_image, (128, 128), interpolation=cv2.INTER_AREA)
    guide = small.astype(np.float32).mean(axis=-1) / 255
    source = cv2.resize(probabilities, (128, 128), interpolation=cv2.INTER_LINEAR)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (9, 9), borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_source = mean(guide)[..., None], mean(source)
    covariance = mean(source * guide[..., None]) - mean_guide * mean_source
    slope = covariance / (mean(guide * guide)[..., None] - mean_guide**2 + 1e-3)
    refined = mean(slope) * guide[..., None] + mean(mean_source - slope * mean_guide)
    refined = np.clip(cv2.resize(refined, (64, 64), interpolation=cv2.INTER_AREA), 0, None)
    return refined / np.maximum(refined.sum(axis=-1, keepdims=True), 1e-6)


def load_labels(path: Path | None = None) -> dict[str, dict[int, list[int]]]:
    """photograph -> class -> tokens (row * 32 + column) that were named by hand."""
    text = (path or Path(__file__).with_name("segment_labels.json")).read_text()
    labels: dict[str, dict[int, list[int]]] = {}
    for name, entry in json.loads(text).items():
        labels[name] = {}
        for code, tokens in entry.items():
            labels[name].setdefault(CODES.index(code.replace("g", "l")), []).extend(tokens)
    return labels


def _collect_raw(paths: list[Path], nets: Path, out: Path) -> None:
    """Run the teachers once over all photographs; skipped when it was done before."""
    names = "\n".join(p.name for p in paths)
    if (out / "names.txt").exists() and (out / "names.txt").read_text() == names:
        return
    raw = np.lib.format.open_memmap(out / "raw.npy", "w+", np.float16, (len(paths), 32, 32, RAW_CHANNELS))
    voc = np.lib.format.open_memmap(out / "voc.npy", "w+", np.float16, (len(paths), 32, 32, 21))
    teachers, start = Teachers(nets), time.monotonic()
    for i, path in enumerate(paths):
        view = teachers.view(read_photograph(path))
        raw[i], voc[i] = view.features, view.voc_logits
        if i % 50 == 49:
            left = (time.monotonic() - start) / (i + 1) * (len(paths) - i - 1)
            print(f"teachers {i + 1}/{len(paths)}, {left:.0f} s left", flush=True)
    (out / "names.txt").write_text(names)


def read_photograph(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises FileNotFoundError when OpenCV cannot read it."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise FileNotFoundError(f"not a readable image: {path}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_targets(paths: list[Path], nets: Path, out: Path, seed: int = 0) -> None:
    """All photographs (512 x 512) -> features.npy and segments.npy under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    _collect_raw(paths, nets, out)
    raw, voc = (np.load(out / f"{name}.npy", mmap_mode="r") for name in ("raw", "voc"))
    rng, labels = np.random.default_rng(seed), load_labels()
    projection = fit_projection(raw, rng)
    components = np.stack([projection(image).astype(np.float16) for image in raw])
    inputs, classes = [], []
    for i, path in enumerate(paths):
        if path.name not in labels:
            continue
        seen = probe_inputs(components[i].astype(np.float32), voc[i], read_photograph(path)).reshape(1024, -1)
        for label, tokens in labels[path.name].items():
            inputs.append(seen[tokens])
            classes.append(np.full(len(tokens), label))
    probe = fit_probe(np.concatenate(inputs), np.concatenate(classes))
    print(f"segment probe fitted on {sum(map(len, classes))} tokens", flush=True)
    features = dino_targets(components.astype(np.float32), projection).astype(np.float16)
    segments = np.empty((len(paths), 64, 64, len(SEGMENT_NAMES)), np.uint8)
    for i, path in enumerate(paths):
        photograph = read_photograph(path)
        seen = torch.from_numpy(probe_inputs(components[i].astype(np.float32), voc[i], photograph))
        with torch.no_grad():
            # sharpened: the smoothed, decayed regression is less sure of its answers than they deserve
            probabilities = torch.softmax(1.5 * probe(seen), dim=-1).numpy()
        segments[i] = np.round(255 * align_segments(probabilities, photograph))
    np.save(out / "features.npy", features)
    np.save(out / "segments.npy", segments)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, nargs="+", required=True, help="folders of 512 x 512 photographs")
    parser.add_argument("--nets", type=Path, required=True, help="folder with the two teachers' .tflite files")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    paths = [p for folder in arguments.photographs for p in sorted(folder.iterdir()) if p.suffix in (".jpg", ".png")]
    write_targets(paths, arguments.nets, arguments.out)


if __name__ == "__main__":
    main()
