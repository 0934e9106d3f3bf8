"""The random chain that turns a photograph into a low-resolution image, on numpy arrays through OpenCV.

`filters` and `jpeg` hold the same steps for torch batches and are compared with the public code; this
path filters and resizes with OpenCV and compresses with its real JPEG encoder, which is several times faster.
"""

import cv2
import numpy as np
from PIL import Image

from training.degradation.config import DegradationConfig, Range, StageConfig
from training.degradation.filters import gaussian_taps
from training.degradation.kernels import Kernel, sample_blur_kernel, sample_final_kernel

# For reductions "area" equals torch's; for enlargements OpenCV blends by coverage where torch averages.
RESIZE_MODES = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)


def degrade(hr_image: np.ndarray, config: DegradationConfig, rng: np.random.Generator) -> np.ndarray:
    """Degrade `hr_image` (H, W, 3) float32 RGB in [0, 1] to (H / scale, W / scale, 3), rounded to 8 bit.

    Chain of Real-ESRGAN (arXiv 2107.10833, Fig. 2); which of strong, light or clean is drawn first.
    """
    height, width = hr_image.shape[:2]
    if height % config.scale or width % config.scale:
        raise ValueError(f"sides {height} x {width} are no multiples of {config.scale}")
    share = rng.random()
    if share < config.clean_probability:
        return quantise(_degrade_clean(hr_image, config, rng))
    light = share < config.clean_probability + config.light_probability
    first, second = (config.light_first, config.light_second) if light else (config.first, config.second)
    size = (width // config.scale, height // config.scale)

    image = sharpen_numpy(hr_image) if config.sharpen else hr_image
    image = _blur(image, config, first, rng)
    image = _resize_by(image, (width, height), first, rng)
    image = add_noise(image, first, rng)
    image = jpeg_numpy(image, rng.uniform(*first.jpeg_quality_range))
    image = _blur(image, config, second, rng)
    image = _resize_by(image, size, second, rng)
    image = add_noise(image, second, rng)
    return quantise(_finish(image, size, config, second, rng))


def filter2d_numpy(image: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Correlate (H, W, 3) with (k, k), reflect-padded without repeating the edge; as `filters.filter2d`."""
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def sharpen_numpy(image: np.ndarray, radius: int = 50, weight: float = 0.5, threshold: float = 10.0) -> np.ndarray:
    """Unsharp masking of (H, W, 3) float32 in [0, 1]; as `filters.sharpen`."""
    taps = gaussian_taps(radius)
    detail = image - _separable(image, taps)
    soft_mask = _separable((np.abs(detail) * 255 > threshold).astype(np.float32), taps)
    sharpened = np.clip(image + weight * detail, 0, 1)
    return soft_mask * sharpened + (1 - soft_mask) * image


def jpeg_numpy(image: np.ndarray, quality: float) -> np.ndarray:
    """Encode and decode (H, W, 3) RGB as JPEG 4:2:0; float32 in [0, 1] out, quality rounded to an integer."""
    pixels = cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, round(quality)])
    decoded = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return decoded.astype(np.float32) / 255


def add_noise(image: np.ndarray, stage: StageConfig, rng: np.random.Generator) -> np.ndarray:
    """Add Gaussian or Poisson noise, per channel or the same on all three (gray); clipped to [0, 1]."""
    gaussian = rng.random() < stage.gaussian_probability
    gray = rng.random() < stage.gray_probability
    if gaussian:
        sigma = rng.uniform(*stage.gaussian_sigma_range) / 255
        shape = (*image.shape[:2], 1 if gray else 3)
        noise = np.float32(sigma) * rng.standard_normal(shape, dtype=np.float32)
    else:
        noise = np.float32(rng.uniform(*stage.poisson_scale_range)) * _poisson_noise(image, gray, rng)
    return np.clip(image + noise, 0, 1)


def bicubic_down(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Reduce (H, W, 3) in [0, 1] with Pillow's antialiased bicubic to `size` (width, height), on 8 bit."""
    reduced = Image.fromarray(to_uint8(image)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(reduced, dtype=np.float32) / 255


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Clip [0, 1] and round to uint8."""
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def quantise(image: np.ndarray) -> np.ndarray:
    """Clip to [0, 1] and round to the 256 values of 8 bit, float32."""
    return to_uint8(image).astype(np.float32) / 255


def _degrade_clean(image: np.ndarray, config: DegradationConfig, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    lr_image = bicubic_down(image, (width // config.scale, height // config.scale))
    if rng.random() < config.clean_jpeg_probability:
        lr_image = jpeg_numpy(lr_image, rng.uniform(*config.clean_jpeg_quality_range))
    return lr_image


def _finish(
    image: np.ndarray,
    size: tuple[int, int],
    config: DegradationConfig,
    stage: StageConfig,
    rng: np.random.Generator,
) -> np.ndarray:
    """Resize to the final size with the sinc filter, and JPEG, in either order with equal chance."""
    kernel = sample_final_kernel(config.kernel, config.final_sinc_probability, config.final_sinc_cutoff_range, rng)
    quality, mode = rng.uniform(*stage.jpeg_quality_range), _resize_mode(rng)
    jpeg_last = rng.random() < 0.5
    if not jpeg_last:
        image = jpeg_numpy(image, quality)
    image = cv2.resize(image, size, interpolation=mode)
    if kernel is not None:
        image = filter2d_numpy(image, kernel)
    return jpeg_numpy(image, quality) if jpeg_last else image


def _blur(image: np.ndarray, config: DegradationConfig, stage: StageConfig, rng: np.random.Generator) -> np.ndarray:
    if rng.random() >= stage.blur_probability:
        return image
    return filter2d_numpy(image, sample_blur_kernel(config.kernel, stage.blur_sigma_range, rng))


def _resize_by(
    image: np.ndarray, base_size: tuple[int, int], stage: StageConfig, rng: np.random.Generator
) -> np.ndarray:
    """Resize to a random multiple of `base_size` (width, height)."""
    factor = resize_factor(stage.resize_probabilities, stage.resize_range, rng)
    size = (int(base_size[0] * factor), int(base_size[1] * factor))
    return cv2.resize(image, size, interpolation=_resize_mode(rng))


def resize_factor(probabilities: tuple[float, float, float], resize_range: Range, rng: np.random.Generator) -> float:
    """Draw one: up, down or keep, with these probabilities."""
    direction = rng.choice(("up", "down", "keep"), p=probabilities)
    if direction == "up":
        return float(rng.uniform(1.0, resize_range[1]))
    return float(rng.uniform(resize_range[0], 1.0)) if direction == "down" else 1.0


def _resize_mode(rng: np.random.Generator) -> int:
    return RESIZE_MODES[int(rng.integers(len(RESIZE_MODES)))]


def _poisson_noise(image: np.ndarray, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """Zero-mean shot noise, (H, W, 1 or 3); its strength follows the number of 8-bit values in use."""
    if gray:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None]
    pixels = to_uint8(image)
    num_values = int(np.count_nonzero(np.bincount(pixels.ravel(), minlength=256)))
    levels = np.float32(2 ** np.ceil(np.log2(num_values)))
    clean = pixels.astype(np.float32) / 255
    return rng.poisson(clean * levels).astype(np.float32) / levels - clean


def _separable(image: np.ndarray, taps: np.ndarray) -> np.ndarray:
    return cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
