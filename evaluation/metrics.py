"""Full-reference image metrics on (H, W, 3) uint8 RGB arrays, with the habits of the super-resolution literature."""

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
BORDER = 4  # pixels cut on each side before PSNR and SSIM, as is usual at x4


def luma(image: Image) -> NDArray[np.float64]:
    """BT.601 luma in [16, 235] of an RGB image (H, W, 3) -> (H, W)."""
    return (image.astype(np.float64) @ np.array([65.481, 128.553, 24.966])) / 255 + 16


def psnr(a: NDArray[np.generic], b: NDArray[np.generic], peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio [dB]; infinite for equal images."""
    mean_square = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if mean_square == 0 else float(10 * np.log10(peak**2 / mean_square))


def psnr_y(a: Image, b: Image) -> float:
    """PSNR on luma with the border cut [dB]."""
    return psnr(cut(luma(a)), cut(luma(b)))


def ssim_y(a: Image, b: Image) -> float:
    """Structural similarity on luma (Gaussian window, sigma 1.5, border cut), at most 1."""
    from scipy.ndimage import gaussian_filter

    x, y = cut(luma(a)), cut(luma(b))

    def blur(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return gaussian_filter(z, 1.5, truncate=3.5)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    pad = 5  # the window's half width: rows where it hangs over the border do not count
    return float(similarity[pad:-pad, pad:-pad].mean())


def gmsd(a: Image, b: Image) -> float:
    """Gradient magnitude similarity deviation (Xue et al. 2014) on luma; 0 is equal, lower is better."""
    from scipy.ndimage import convolve, uniform_filter

    kernel = np.array([[1, 0, -1]] * 3) / 3

    def gradient(y: NDArray[np.float64]) -> NDArray[np.float64]:
        half = uniform_filter(y, 2)[::2, ::2]
        return np.hypot(convolve(half, kernel), convolve(half, kernel.T))

    ga, gb = gradient(cut(luma(a))), gradient(cut(luma(b)))
    return float(np.std((2 * ga * gb + 170) / (ga**2 + gb**2 + 170)))


def grid_energy(image: Image) -> float:
    """Largest relative excess of gradient energy at one pixel phase of period 2, 4 or 8; 0 has no grid."""
    y, worst = cut(luma(image)), 0.0
    for profile in (np.abs(np.diff(y, axis=0)).mean(1), np.abs(np.diff(y, axis=1)).mean(0)):
        for period in (2, 4, 8):
            phases = np.array([profile[k::period].mean() for k in range(period)])
            if phases.mean() > 0:
                worst = max(worst, float(np.abs(phases / phases.mean() - 1).max()))
    return worst


def grid_excess(sr_image: Image, hr_image: Image) -> float:
    """How much more grid the SR image has than the HR image; above 0.03 it can be seen."""
    return max(0.0, grid_energy(sr_image) - grid_energy(hr_image))


def cut(y: NDArray[np.float64]) -> NDArray[np.float64]:
    return y[BORDER:-BORDER, BORDER:-BORDER]
