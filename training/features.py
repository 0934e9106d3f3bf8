"""Stage 3a: what the trained extractors see in every pair, computed once, so that the denoiser's trainer need not.

python -m training.features --pairs DIR --perception FILE --names FILE --out DIR
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.modalities.caption import describe
from models.modalities.perception import PerceptionNet, load_perception
from models.modalities.rendering import render_depth, render_segmentation
from training.pairs import draw_path


@torch.inference_mode()
def write_features(pairs: Path, network: PerceptionNet, names: tuple[str, ...], out: Path) -> None:
    """Per draw: `dino_000.npy` float16, `segmentation_000.npy` and `depth_000.npy` uint8 RGB, `captions_000.json`."""
    out.mkdir(parents=True, exist_ok=True)
    index = json.loads((pairs / "index.json").read_text())
    for draw in range(index["num_draws"]):
        if not draw_path(pairs, draw).exists() or (out / f"captions_{draw:03d}.json").exists():
            continue
        images = np.load(draw_path(pairs, draw), mmap_mode="r")
        columns: dict[str, list[np.ndarray]] = {"dino": [], "segmentation": [], "depth": []}
        captions = []
        for image in images:
            lr_image = to_tensor(image)
            seen = network(lr_image)
            columns["dino"].append(seen.dino[0].half().numpy())
            columns["segmentation"].append(to_uint8(render_segmentation(seen.segmentation)))
            columns["depth"].append(to_uint8(render_depth(seen.depth)))
            captions.append(describe(lr_image[0], seen.segmentation.softmax(1)[0], names))
        for name, values in columns.items():
            np.save(out / f"{name}_{draw:03d}.npy", np.stack(values))
        (out / f"captions_{draw:03d}.json").write_text(json.dumps(captions))
        print(f"draw {draw}: {len(images)} images, first caption: {captions[0]}", flush=True)


def to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def to_uint8(rendered: Tensor) -> np.ndarray:
    return (rendered[0] * 255).round().byte().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--perception", type=Path, required=True)
    parser.add_argument("--names", type=Path, required=True, help="JSON list: a name per segment, '' for none")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    names = tuple(json.loads(args.names.read_text()))
    write_features(args.pairs, load_perception(args.perception), names, args.out)


if __name__ == "__main__":
    main()
