"""The degradation equals the public reference where it is deterministic, and behaves as told elsewhere."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from training.degradation import (
    RECIPES,
    DegradationConfig,
    KernelBank,
    KernelConfig,
    clean_x4,
    degrade,
    degrade_batch,
    filter2d,
    jpeg_compress,
    light_x4,
    realesrgan_x4,
    sharpen,
)
from training.degradation.config import FIRST_STAGE
from training.degradation.filters import separable
from training.degradation.kernels import (
    bivariate_gaussian,
    bivariate_generalized_gaussian,
    bivariate_plateau,
    circular_lowpass_kernel,
    pad_kernel,
    pulse_kernel,
    sample_blur_kernel,
)
from training.degradation.sampling import add_noise, filter2d_numpy, jpeg_numpy, sharpen_numpy

FIXTURE = Path(__file__).parents[2] / "fixtures" / "degradation" / "tensors.safetensors"


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE)


@pytest.fixture
def photograph(reference: dict[str, torch.Tensor]) -> np.ndarray:
    """First reference image as (H, W, 3)."""
    return np.ascontiguousarray(reference["image"][0].permute(1, 2, 0).numpy())


def to_array(batch: torch.Tensor) -> np.ndarray:
    return batch[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("size", [7, 13, 21])
def test_kernels_equal_the_reference(reference: dict[str, torch.Tensor], size: int) -> None:
    shape = (size, 2.1, 0.7, 0.6)
    kernels = {
        f"sinc_w1.5_k{size}": circular_lowpass_kernel(1.5, size),
        f"iso_s1.3_k{size}": bivariate_gaussian(size, 1.3),
        f"aniso_s2.1_0.7_r0.6_k{size}": bivariate_gaussian(*shape),
        f"gen_aniso_s2.1_0.7_r0.6_b1.7_k{size}": bivariate_generalized_gaussian(*shape, 1.7),
        f"plateau_aniso_s2.1_0.7_r0.6_b1.4_k{size}": bivariate_plateau(*shape, 1.4),
    }
    for name, kernel in kernels.items():
        np.testing.assert_allclose(kernel, reference[name].numpy(), atol=1e-9, err_msg=name)


def test_padded_kernel_equals_the_reference(reference: dict[str, torch.Tensor]) -> None:
    kernel = circular_lowpass_kernel(1.5, 11, pad_to=21)
    np.testing.assert_allclose(kernel, reference["sinc_w1.5_k11_pad21"].numpy(), atol=1e-9)


def test_kernels_that_cannot_be_centred_are_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        bivariate_gaussian(8, 1.0)
    with pytest.raises(ValueError, match="centre"):
        pad_kernel(pulse_kernel(7), 12)


def test_filter_with_one_kernel_per_sample_equals_the_reference(reference: dict[str, torch.Tensor]) -> None:
    kernels = torch.stack([reference["kernel21"], reference["kernel21"].T])
    torch.testing.assert_close(filter2d(reference["image"], kernels), reference["filter2D"], atol=1e-6, rtol=0)


def test_filter_with_a_shared_kernel_equals_the_reference(reference: dict[str, torch.Tensor]) -> None:
    filtered = filter2d(reference["image"], reference["kernel21"])
    torch.testing.assert_close(filtered, reference["filter2D_shared"], atol=1e-6, rtol=0)


def test_filter_refuses_a_kernel_count_that_is_not_the_batch(reference: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        filter2d(reference["image"], torch.ones(3, 5, 5))


def test_sharpening_equals_the_reference(reference: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(sharpen(reference["image"]), reference["usm_default"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_equals_the_reference(reference: dict[str, torch.Tensor], quality: int) -> None:
    compressed = jpeg_compress(reference["image"], quality)
    torch.testing.assert_close(compressed, reference[f"jpeg_q{quality}"], atol=1e-4, rtol=0)


def test_jpeg_takes_one_quality_per_sample(reference: dict[str, torch.Tensor]) -> None:
    compressed = jpeg_compress(reference["image"], torch.tensor([35.0, 80.0]))
    torch.testing.assert_close(compressed, reference["jpeg_q_tensor_35_80"], atol=1e-4, rtol=0)


def test_fast_filter_equals_the_torch_filter(reference: dict[str, torch.Tensor], photograph: np.ndarray) -> None:
    kernel = reference["kernel21"]
    expected = to_array(reference["filter2D_shared"])
    np.testing.assert_allclose(filter2d_numpy(photograph, kernel.numpy()), expected, atol=1e-5)
    # Not padding a small kernel must change nothing, borders included.
    small = bivariate_gaussian(7, 2.1, 0.7, 0.6)
    padded = filter2d(reference["image"], torch.from_numpy(pad_kernel(small, 21)))
    np.testing.assert_allclose(filter2d_numpy(photograph, small), to_array(padded), atol=1e-5)


def test_fast_sharpening_equals_the_torch_one(reference: dict[str, torch.Tensor], photograph: np.ndarray) -> None:
    np.testing.assert_allclose(sharpen_numpy(photograph), to_array(reference["usm_default"]), atol=1e-5)


def test_real_encoder_loses_about_as_much_as_the_torch_one(photograph: np.ndarray) -> None:
    batch = torch.from_numpy(photograph).permute(2, 0, 1)[None]
    for quality in (30, 60, 95):
        real = np.abs(jpeg_numpy(photograph, quality) - photograph).mean()
        torch_loss = np.abs(to_array(jpeg_compress(batch, quality)) - photograph).mean()
        assert real == pytest.approx(torch_loss, rel=0.15)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_as_an_encoder_the_torch_one_is_the_real_one(photograph: np.ndarray, quality: int) -> None:
    """An odd size, so that the border has to be continued as libjpeg does."""
    smooth = cv2.GaussianBlur(cv2.resize(photograph, (91, 77)), (0, 0), 2)
    real, image = torch.from_numpy(jpeg_numpy(smooth, quality)), torch.from_numpy(smooth).permute(2, 0, 1)[None]
    ours, reference = (
        float((jpeg_compress(image, quality, as_encoder=as_encoder)[0].permute(1, 2, 0) - real).abs().mean()) * 255
        for as_encoder in (True, False)
    )
    assert ours < 0.8 and ours < reference / 2, (ours, reference)  # grey levels; chroma is rounded in other places


def test_separable_filtering_is_filtering_with_the_outer_product() -> None:
    taps, image = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]), torch.rand(2, 3, 12, 17)
    assert torch.allclose(separable(image, taps), filter2d(image, taps[:, None] * taps), atol=1e-6)


def test_sampled_kernels_sum_to_one_and_have_the_configured_sizes() -> None:
    rng = np.random.default_rng(0)
    config = KernelConfig()
    kernels = [sample_blur_kernel(config, (0.2, 3.0), rng) for _ in range(300)]
    assert {kernel.shape[0] for kernel in kernels} == set(config.sizes)
    np.testing.assert_allclose([kernel.sum() for kernel in kernels], 1.0, atol=1e-9)
    # Only sinc kernels have clearly negative values; they are one in ten.
    assert 0.05 < np.mean([kernel.min() < -1e-6 for kernel in kernels]) < 0.16


def test_gaussian_noise_has_the_configured_strength() -> None:
    stage = replace(FIRST_STAGE, gaussian_probability=1.0, gaussian_sigma_range=(10.0, 10.0), gray_probability=0.0)
    noisy = add_noise(np.full((128, 128, 3), 0.5, np.float32), stage, np.random.default_rng(0))
    assert noisy.std() * 255 == pytest.approx(10, rel=0.02)


def test_poisson_noise_has_the_variance_of_its_signal() -> None:
    stage = replace(FIRST_STAGE, gaussian_probability=0.0, poisson_scale_range=(1.0, 1.0), gray_probability=0.0)
    ramp = np.linspace(0.2, 0.6, 256, dtype=np.float32)[None, :, None]
    image = np.repeat(np.repeat(ramp, 256, axis=0), 3, axis=2)
    noise = add_noise(image, stage, np.random.default_rng(0)) - image
    # 103 distinct 8-bit values lie between 51 and 153, so the signal is counted in 128 levels.
    assert noise.var() == pytest.approx(image.mean() / 128, rel=0.05)


@pytest.mark.parametrize("gaussian_probability", [0.0, 1.0])
def test_gray_noise_is_the_same_on_all_channels(gaussian_probability: float) -> None:
    stage = replace(FIRST_STAGE, gaussian_probability=gaussian_probability, gray_probability=1.0)
    image = np.random.default_rng(1).uniform(0.45, 0.55, (64, 64, 3)).astype(np.float32)
    noise = add_noise(image, stage, np.random.default_rng(2)) - image
    inside = (np.abs(noise).max(axis=2) < 0.4)[..., None] & (noise != 0)
    np.testing.assert_allclose(noise * inside, noise[..., :1] * inside, atol=1e-5)


@pytest.mark.parametrize("config", [DegradationConfig(), realesrgan_x4(), light_x4(), clean_x4()])
def test_degraded_image_is_a_quarter_in_size_and_8_bit(photograph: np.ndarray, config: DegradationConfig) -> None:
    for seed in range(12):
        lr_image = degrade(photograph, config, np.random.default_rng(seed))
        assert lr_image.shape == (10, 14, 3)
        assert lr_image.dtype == np.float32
        assert np.abs(lr_image * 255 - np.rint(lr_image * 255)).max() < 1e-4
        assert lr_image.min() >= 0 and lr_image.max() <= 1


def test_same_seed_same_image_other_seed_other_image(photograph: np.ndarray) -> None:
    first, again, other = (degrade(photograph, realesrgan_x4(), np.random.default_rng(s)) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_clean_recipe_is_pillows_bicubic(photograph: np.ndarray) -> None:
    pixels = Image.fromarray(np.rint(photograph * 255).astype(np.uint8))
    expected = np.asarray(pixels.resize((14, 10), Image.Resampling.BICUBIC))
    lr_image = degrade(photograph, clean_x4(), np.random.default_rng(0))
    np.testing.assert_array_equal(np.rint(lr_image * 255), expected)


def test_light_recipe_stays_closer_to_bicubic_than_the_strong_one(photograph: np.ndarray) -> None:
    clean = degrade(photograph, clean_x4(), np.random.default_rng(0))

    def distance(config: DegradationConfig) -> float:
        images = [degrade(photograph, config, np.random.default_rng(seed)) for seed in range(40)]
        return float(np.mean([np.abs(image - clean).mean() for image in images]))

    assert distance(light_x4()) < 0.8 * distance(realesrgan_x4())


@pytest.mark.parametrize("recipe", ["realesrgan", "light", "clean"])
def test_a_batch_is_degraded_as_its_images_are(photograph: np.ndarray, recipe: str) -> None:
    """Other random numbers, the same chain: over many draws both leave as much of the image (dB, against bicubic)."""
    config, rng, generator = RECIPES[recipe](), np.random.default_rng(0), torch.Generator().manual_seed(0)
    bank, photograph = KernelBank(config, rng, torch.device("cpu"), size=64), np.tile(photograph, (4, 4, 1))
    images = torch.from_numpy(photograph).permute(2, 0, 1).expand(4, -1, -1, -1)
    clean = torch.from_numpy(degrade(photograph, clean_x4(), rng)).permute(2, 0, 1)
    found: dict[str, list[float]] = {"batch": [], "one": []}
    for _ in range(24):
        batch = degrade_batch(images, config, bank, rng, generator)
        assert batch.shape == (4, 3, *clean.shape[1:]) and torch.allclose(batch * 255, (batch * 255).round(), atol=1e-4)
        one = torch.from_numpy(degrade(photograph, config, rng)).permute(2, 0, 1)
        for name, lr in (("batch", batch), ("one", one[None])):
            found[name] += [min(60.0, float(-10 * (image - clean).square().mean().log10())) for image in lr]
    assert abs(np.mean(found["batch"]) - np.mean(found["one"])) < (1.5 if recipe != "clean" else 3.0)


def test_an_image_is_as_degraded_in_a_batch_as_its_own_draw_says(photograph: np.ndarray) -> None:
    config, generator = realesrgan_x4(), torch.Generator().manual_seed(0)
    bank = KernelBank(config, np.random.default_rng(0), torch.device("cpu"), size=64)
    images = torch.from_numpy(np.tile(photograph, (4, 4, 1))).permute(2, 0, 1).expand(3, -1, -1, -1)
    batch = degrade_batch(images, config, bank, np.random.default_rng(3), generator)
    assert float((batch[0] - batch[1]).abs().mean()) > 1 / 255 and float((batch[1] - batch[2]).abs().mean()) > 1 / 255


def test_shares_over_one_and_uneven_sides_are_refused(photograph: np.ndarray) -> None:
    with pytest.raises(ValueError, match="light_probability"):
        DegradationConfig(light_probability=0.6, clean_probability=0.6)
    with pytest.raises(ValueError, match="multiples of 4"):
        degrade(photograph[:39], DegradationConfig(), np.random.default_rng(0))
