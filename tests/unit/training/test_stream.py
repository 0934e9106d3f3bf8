"""Pairs made while training: what is cut belongs together, and nothing that is held out is seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from models.modalities.config import PerceptionConfig
from models.modalities.perception import PerceptionNet
from models.resize import resize
from training.guided import GuidedPool, PoolLook
from training.stream import SCALE, SIDE, PairPool, StreamConfig

CPU = torch.device("cpu")
SMALL = StreamConfig(recipe="clean", capacity=8, first=4, group=2, round=4, flat_share=0.0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Two photographs; one of them, `red.png`, has no green and no blue."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).resize((SIDE, SIDE)))
    Image.fromarray(smooth).save(folder / "other.png")
    Image.fromarray(smooth * np.array([1, 0, 0], np.uint8)).save(folder / "red.png")
    return folder


def pool(folder: Path, *, held_out: tuple[str, ...] = (), look: PoolLook | None = None, **changes: object) -> PairPool:
    return PairPool(folder, set(held_out), replace(SMALL, **changes), CPU, seed=0, look=look)


@pytest.mark.parametrize("mosaic_share", [0.0, 1.0])
def test_crops_of_one_canvas_lie_over_each_other(photographs, mosaic_share):
    """With a clean recipe the LR crop is the reduced HR crop, but at its border, where the reduction sees further."""
    made = pool(photographs, mosaic_share=mosaic_share)
    lr, hr = made.sample_batch(np.random.default_rng(0), 6, 24)
    assert lr.shape == (6, 3, 24, 24) and hr.shape == (6, 3, 96, 96)
    reduced = resize(hr, (24, 24)).clamp(0, 1)
    assert float((reduced - lr)[..., 3:-3, 3:-3].abs().max()) < 1.5 / 255
    for images in (lr, hr):
        assert torch.allclose(images * 255, (images * 255).round(), atol=1e-4)


def test_what_is_held_out_is_never_seen(photographs):
    made = pool(photographs, held_out=("other.png",), mosaic_share=1.0)
    _, hr = made.sample_batch(np.random.default_rng(0), 16, 32)
    # channels may change places, but a pixel of one channel stays one
    assert float(hr.max()) > 0.5 and float(hr.sort(1).values[:, :2].max()) == 0.0
    with pytest.raises(FileNotFoundError):
        pool(photographs, held_out=("other.png", "red.png"))


def test_canvases_are_made_as_they_are_used_and_the_oldest_go(photographs):
    made, rng = pool(photographs, crops_per_canvas=2), np.random.default_rng(0)
    made.sample_batch(rng, 4, 16)
    assert made.num_made == 4
    first = made.kept["hr"].clone()
    for _ in range(8):
        made.sample_batch(rng, 4, 16)
    assert made.num_made == 4 + 16 and made.num_ready == SMALL.capacity
    assert not torch.equal(made.kept["hr"], first)


def test_a_seed_gives_the_same_batches(photographs):
    batches = [pool(photographs, recipe="realesrgan").sample_batch(np.random.default_rng(1), 3, 16) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_flat_canvases_are_flat_on_both_sides(photographs):
    made = pool(photographs, recipe="realesrgan", flat_share=1.0)
    lr, hr = made.sample_batch(np.random.default_rng(0), 4, 16)
    colours = hr[..., :1, :1]
    assert torch.equal(lr, colours.expand_as(lr)) and torch.equal(hr, colours.expand_as(hr))


def test_an_unknown_recipe_is_refused(photographs):
    with pytest.raises(ValueError, match="unknown recipe"):
        pool(photographs, recipe="nothing")


def test_what_the_extractors_saw_is_cut_with_the_pixels(photographs):
    """DINO features stand in for the pixels here: each token is the mean of its 4 x 4 LR pixels."""

    class Reader(PerceptionNet):
        def forward(self, lr_image: torch.Tensor):
            seen = super().forward(lr_image)
            return replace(seen, dino=F.avg_pool2d(lr_image, 4))

    config = PerceptionConfig(width=16, num_heads=2, num_blocks=1, fine_width=8, dino_channels=3, num_segments=3)
    look = PoolLook(Reader(config).eval(), ("sky", "", "tree"))
    batch = GuidedPool(pool(photographs, look=look)).sample_batch(np.random.default_rng(0), 5, 6, 2)
    assert batch.lr_image.shape[-1] == 4 * 10 and batch.hr_image.shape[-1] == SCALE * 4 * 10
    inside = batch.lr_image[..., 8:-8, 8:-8]
    assert torch.allclose(F.avg_pool2d(inside, 4), batch.dino, atol=2e-3)
    assert batch.segmentation.shape == batch.depth.shape == (5, 3, 96, 96)
    assert all(caption.startswith("a photo") for caption in batch.captions)
