"""Targets and losses of the perception stage."""

import json

import numpy as np
import pytest
import torch

from models.modalities.config import SEGMENT_NAMES, PerceptionConfig
from models.modalities.perception import PerceptionNet
from training.perception import PhotographData, depth_loss, feature_loss, segment_loss, sky_loss
from training.targets import CODES, align_segments, dino_targets, fit_probe, fit_projection, load_labels
from training.teachers import RAW_CHANNELS, to_tokens


def test_every_class_has_a_letter_and_hand_made_labels():
    assert len(CODES) == len(SEGMENT_NAMES)
    labels = load_labels()
    assert len(labels) == pytest.approx(160, abs=5)
    assert {label for photograph in labels.values() for label in photograph} == set(range(len(CODES)))
    assert all(0 <= t < 1024 for photograph in labels.values() for tokens in photograph.values() for t in tokens)


def test_teacher_cells_are_read_at_token_centres():
    # cells on a ramp of the continued image: cell i lies at pixel 16 i, the photograph starts at pixel 64
    cells = np.broadcast_to(np.arange(41, dtype=np.float32)[:, None, None] * 16, (41, 41, 1))
    tokens = to_tokens(cells, side=512, margin=64)
    assert tokens.shape == (32, 32, 1)
    assert np.allclose(tokens[:, 0, 0], 64 + 16 * (np.arange(32) + 0.5))


def test_projection_gives_uncorrelated_components_in_order():
    rng = np.random.default_rng(0)
    raw = (rng.normal(size=(4, 32, 32, 8)) @ rng.normal(size=(8, RAW_CHANNELS))).astype(np.float32)
    components = fit_projection(raw, rng)(raw[0])
    variance = components.reshape(1024, -1).var(axis=0)
    assert variance[0] > variance[3] > 100 * variance[20]
    assert dino_targets(components, fit_projection(raw, rng)).shape == (32, 32, 64)


def test_probe_learns_what_is_separable():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), 40)
    inputs = np.eye(3, dtype=np.float32)[classes] + rng.normal(0, 0.1, (120, 3)).astype(np.float32)
    probe = fit_probe(inputs, classes, decay=1e-4)
    assert (probe(torch.from_numpy(inputs)).argmax(dim=1).numpy() == classes).all()


def test_alignment_keeps_probabilities_and_follows_the_edge_of_the_photograph():
    hr_image = np.zeros((512, 512, 3), np.uint8)
    hr_image[:, 250:] = 255  # the edge lies inside a token: tokens alone cannot show it
    coarse = np.zeros((32, 32, 2), np.float32)
    coarse[:, :15, 0], coarse[:, 15:, 1] = 1, 1
    aligned = align_segments(coarse, hr_image)
    assert np.allclose(aligned.sum(axis=-1), 1, atol=1e-5)
    assert (aligned[32, :30].argmax(-1) == 0).all()
    assert (aligned[32, 33:].argmax(-1) == 1).all()


def test_depth_loss_forgives_no_order_but_mostly_scale_and_shift():
    torch.manual_seed(0)
    target = torch.rand(2, 1, 8, 8)
    assert depth_loss(target, target) == 0
    shrunk, reversed_ = depth_loss(0.5 * target + 0.2, target), depth_loss(1 - target, target)
    assert shrunk < 0.2 * reversed_


def test_feature_loss_is_zero_only_for_the_same_vectors():
    target = torch.randn(2, 8, 3, 3)
    assert feature_loss(target, target) == pytest.approx(0, abs=1e-6)
    assert 0 < feature_loss(2 * target, target) < feature_loss(-target, target)


def test_segment_loss_is_least_at_the_teachers_probabilities():
    probabilities = torch.tensor([0.7, 0.2, 0.1]).view(1, 3, 1, 1)
    right, wrong = (
        segment_loss(probabilities.log(), probabilities),
        segment_loss(torch.zeros(1, 3, 1, 1), probabilities),
    )
    assert right < wrong


def test_upsampling_of_the_tokens_leaves_no_pattern_of_period_two():
    torch.manual_seed(0)
    network = PerceptionNet(PerceptionConfig(width=16, fine_width=8, num_blocks=1, num_heads=2)).eval()
    for parameter in network.enter_fine.parameters():
        torch.nn.init.zeros_(parameter)  # only what comes from the tokens
    depth = network(torch.rand(1, 3, 64, 64)).depth.detach()[0, 0, 8:-8, 8:-8].double()
    columns = depth.diff(dim=1).abs().mean(dim=0)
    odd, even = columns[::2].mean(), columns[1::2].mean()
    assert 0.6 < odd / even < 1.7


def test_sky_is_pushed_far_and_nothing_else_is():
    depth, segments = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, len(SEGMENT_NAMES), 2, 2)
    segments[:, SEGMENT_NAMES.index("rock")] = 1
    assert sky_loss(depth, segments) == 0
    segments[:, :, 0] = 0
    segments[:, SEGMENT_NAMES.index("clouds"), 0] = 1
    assert sky_loss(depth, segments) == pytest.approx(0.25)


def test_crops_of_photographs_and_targets_stay_aligned(tmp_path):
    pairs, teachers = tmp_path / "pairs", tmp_path / "teachers"
    pairs.mkdir()
    teachers.mkdir()
    lr = np.zeros((2, 128, 128, 3), np.uint8)
    lr[..., 0], lr[..., 1] = np.arange(128)[:, None] // 4, np.arange(128) // 4  # each pixel names its token
    np.save(pairs / "lr_000.npy", lr)
    np.save(pairs / "hr.npy", np.zeros((2, 512, 512, 3), np.uint8))
    index = {"names": ["a.jpg", "b.jpg"], "held_out": [0], "num_draws": 1, "config": {"scale": 4}}
    (pairs / "index.json").write_text(json.dumps(index))
    (teachers / "names.txt").write_text("b.jpg\na.jpg")
    token = np.stack(np.meshgrid(np.arange(32), np.arange(32), indexing="ij"), axis=-1)
    np.save(teachers / "features.npy", np.stack([token, token * 0 + 99]).astype(np.float16))
    np.save(teachers / "segments.npy", np.repeat(np.repeat(token, 2, 0), 2, 1)[None].repeat(2, 0).astype(np.uint8))
    data = PhotographData(pairs, teachers)
    batch = data.sample(np.random.default_rng(0), 8, 32)
    named = batch.lr_image[:, :2, ::4, ::4] * 255
    assert torch.allclose(batch.features * data.feature_scale, named, atol=0.05)
    sharpened = named**2 / (named**2).sum(1, keepdim=True).clamp(min=1e-6)
    assert torch.allclose(batch.segments[..., ::2, ::2], sharpened, atol=1e-3)
