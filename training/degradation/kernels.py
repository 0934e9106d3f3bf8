"""Blur kernels of the degradation: Gaussian families and the circular low-pass (sinc), all float64 (k, k)."""

import numpy as np
from scipy.special import j1

from training.degradation.config import KERNEL_KINDS, KernelConfig, Range

Kernel = np.ndarray


def circular_lowpass_kernel(cutoff: float, kernel_size: int, pad_to: int = 0) -> Kernel:
    """Ideal circular low-pass, Real-ESRGAN Eq. 6: cutoff / (2 pi r) * J1(cutoff r), normalised to sum one.

    `cutoff` in radians per pixel (pi = Nyquist); `pad_to` > 0 zero-pads to (pad_to, pad_to).
    """
    _check_odd(kernel_size)
    axis = np.arange(kernel_size, dtype=np.float64) - kernel_size // 2
    radius = np.hypot(axis[:, None], axis[None, :])
    centre = kernel_size // 2
    radius[centre, centre] = 1.0  # any non-zero value: the limit r -> 0 is put in below
    kernel = cutoff * j1(cutoff * radius) / (2 * np.pi * radius)
    kernel[centre, centre] = cutoff**2 / (4 * np.pi)
    kernel = kernel / kernel.sum()
    return pad_kernel(kernel, pad_to) if pad_to else kernel


def bivariate_gaussian(kernel_size: int, sigma_x: float, sigma_y: float | None = None, theta: float = 0.0) -> Kernel:
    """Gaussian exp(-d / 2), d = x^T S^-1 x; sigmas in pixels, theta in radians; no sigma_y: isotropic."""
    return _normalised(np.exp(-0.5 * _mahalanobis(kernel_size, sigma_x, sigma_y, theta)))


def bivariate_generalized_gaussian(
    kernel_size: int, sigma_x: float, sigma_y: float | None = None, theta: float = 0.0, beta: float = 1.0
) -> Kernel:
    """Generalised Gaussian exp(-d^beta / 2), d as in `bivariate_gaussian`; beta 1 is the Gaussian."""
    return _normalised(np.exp(-0.5 * _mahalanobis(kernel_size, sigma_x, sigma_y, theta) ** beta))


def bivariate_plateau(
    kernel_size: int, sigma_x: float, sigma_y: float | None = None, theta: float = 0.0, beta: float = 1.0
) -> Kernel:
    """Plateau-shaped 1 / (1 + d^beta), d as in `bivariate_gaussian`."""
    return _normalised(1.0 / (1.0 + _mahalanobis(kernel_size, sigma_x, sigma_y, theta) ** beta))


def pad_kernel(kernel: Kernel, size: int) -> Kernel:
    """Zero-pad a (k, k) kernel to (size, size), centred, so that kernels of one batch can be stacked."""
    margin, odd = divmod(size - kernel.shape[0], 2)
    if margin < 0 or odd:
        raise ValueError(f"cannot centre a kernel of {kernel.shape[0]} in {size}")
    return np.pad(kernel, margin)


def pulse_kernel(kernel_size: int) -> Kernel:
    """Return the identity kernel: one in the middle."""
    kernel = np.zeros((kernel_size, kernel_size))
    kernel[kernel_size // 2, kernel_size // 2] = 1.0
    return kernel


def sample_blur_kernel(config: KernelConfig, sigma_range: Range, rng: np.random.Generator) -> Kernel:
    """Draw a kernel of one blur stage, (k, k) unpadded, k one of `config.sizes`."""
    kernel_size = int(rng.choice(config.sizes))
    if rng.random() < config.sinc_probability:
        small = kernel_size < 13
        cutoff_range = config.small_sinc_cutoff_range if small else config.large_sinc_cutoff_range
        return circular_lowpass_kernel(rng.uniform(*cutoff_range), kernel_size)
    kind = str(rng.choice(KERNEL_KINDS, p=config.kind_probabilities))
    sigma_x, sigma_y, theta = rng.uniform(*sigma_range), None, 0.0
    if kind.endswith("aniso"):
        sigma_y, theta = rng.uniform(*sigma_range), rng.uniform(*config.rotation_range)
    if kind.startswith("generalized"):
        beta = _sample_beta(config.generalized_beta_range, rng)
        return bivariate_generalized_gaussian(kernel_size, sigma_x, sigma_y, theta, beta)
    if kind.startswith("plateau"):
        beta = _sample_beta(config.plateau_beta_range, rng)
        return bivariate_plateau(kernel_size, sigma_x, sigma_y, theta, beta)
    return bivariate_gaussian(kernel_size, sigma_x, sigma_y, theta)


def sample_final_kernel(
    config: KernelConfig, probability: float, cutoff_range: Range, rng: np.random.Generator
) -> Kernel | None:
    """Draw the sinc kernel of the last step, or None for the identity."""
    if rng.random() >= probability:
        return None
    return circular_lowpass_kernel(rng.uniform(*cutoff_range), int(rng.choice(config.sizes)))


def _sample_beta(beta_range: Range, rng: np.random.Generator) -> float:
    """Half of the draws flatter than a Gaussian (beta < 1), half more peaked, as in the public code."""
    low, high = beta_range
    return float(rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high))


def _mahalanobis(kernel_size: int, sigma_x: float, sigma_y: float | None, theta: float) -> np.ndarray:
    """Squared distance x^T S^-1 x on the pixel grid, S = R(theta) diag(sigma_x^2, sigma_y^2) R(theta)^T."""
    _check_odd(kernel_size)
    axis = np.arange(kernel_size, dtype=np.float64) - kernel_size // 2
    x, y = axis[None, :], axis[:, None]
    along = np.cos(theta) * x + np.sin(theta) * y
    across = np.cos(theta) * y - np.sin(theta) * x
    return (along / sigma_x) ** 2 + (across / (sigma_x if sigma_y is None else sigma_y)) ** 2


def _normalised(kernel: Kernel) -> Kernel:
    return kernel / kernel.sum()


def _check_odd(kernel_size: int) -> None:
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
