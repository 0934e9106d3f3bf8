"""The text modality: captions, tokens, encoder."""

import torch

from models.modalities.caption import degradation_words, describe, describe_batch, measure_degradation
from models.modalities.text import TextConfig, TextEncoder, tokenize, train_tokenizer

CONFIG = TextConfig(vocabulary_size=96, max_tokens=8, width=16, num_heads=2, num_layers=1)
TOKENIZER = train_tokenizer(["a photo of sky, tree, wall, noisy, sharp"], CONFIG)


def test_large_named_segments_are_named_largest_first():
    segmentation = torch.zeros(3, 10, 10)
    segmentation[0, :3], segmentation[1, 3:9], segmentation[2, 9:] = 1, 1, 1
    caption = describe(torch.full((3, 32, 32), 0.5), segmentation, ("tree", "sky", ""))
    assert caption.startswith("a photo of sky, tree, ")


def test_small_and_nameless_segments_are_not_named():
    segmentation = torch.zeros(2, 10, 10)
    segmentation[0], segmentation[1, 0, :5] = 1, 1
    assert describe(torch.full((3, 32, 32), 0.5), segmentation, ("", "sky")).startswith("a photo, ")


def test_noise_is_measured_and_named():
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0.2, 0.8, 64).expand(3, 64, 64)
    # the three channels are averaged, so noise of deviation 0.1 in each leaves 0.1 / sqrt(3)
    noisy = ramp + 0.1 * torch.randn(3, 64, 64, generator=generator)
    measured = measure_degradation(torch.stack([noisy, ramp]))
    assert abs(measured[0, 0] - 0.1 / 3**0.5) < 0.01
    assert "very noisy" in degradation_words(*measured[0].tolist())
    assert "clean" in degradation_words(*measured[1].tolist())


def test_compression_blocks_are_measured():
    blocks = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    image = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1).expand(3, 64, 64)
    assert "compressed" in degradation_words(*measure_degradation(image[None])[0].tolist())


def test_an_image_too_small_to_measure_gets_neutral_words():
    assert measure_degradation(torch.rand(1, 3, 4, 4)).tolist() == [[0.0, 0.5, 0.0]]


def test_a_batch_is_described_as_its_images_are():
    generator = torch.Generator().manual_seed(0)
    images = torch.stack([torch.rand(3, 32, 32, generator=generator), torch.linspace(0, 1, 32).expand(3, 32, 32)])
    segmentation, names = torch.rand(2, 3, 8, 8, generator=generator), ("tree", "", "sky")
    one_by_one = [describe(image, found, names) for image, found in zip(images, segmentation, strict=True)]
    assert describe_batch(images, segmentation, names) == one_by_one and one_by_one[0] != one_by_one[1]


def test_tokens_are_cut_and_padded():
    ids = tokenize(TOKENIZER, ["sky", "tree " * 50, ""], CONFIG)
    assert ids.shape == (3, 8)
    assert (ids[0, 1:] == 0).all() and (ids[1] != 0).all() and (ids[2] == 0).all()


def test_the_encoder_reads_the_words_and_not_the_padding():
    torch.manual_seed(0)
    encoder = TextEncoder(CONFIG).eval()
    sky, tree, null = tokenize(TOKENIZER, ["sky", "tree", ""], CONFIG).split(1)
    pooled = [encoder(ids)[1] for ids in (sky, tree, null)]
    assert not torch.allclose(pooled[0], pooled[1])
    assert all(torch.isfinite(p).all() for p in pooled)
    changed = encoder.position.clone()
    encoder.position.data[-1] += 5.0  # the position of padding only
    assert torch.allclose(encoder(sky)[1], pooled[0], atol=1e-6)
    encoder.position.data.copy_(changed)
