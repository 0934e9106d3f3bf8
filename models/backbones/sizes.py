"""The size rule of the published DiT4SR and SeeSR scripts: how large a picture the backbone works on.

Dimension key: B batch  H W pixels
"""

from dataclasses import dataclass

from torch import Tensor

from models.resize import resize

PROCESS_SIDE = 512  # pixels; the backbones were trained on squares of this side
VAE_SCALE = 8  # pixels per latent cell


@dataclass(frozen=True)
class WorkSizes:
    """The sizes that an image passes through, each (height, width) [px]."""

    lr: tuple[int, int]  # the LR image, enlarged first if it is too small
    upscaled: tuple[int, int]
    work: tuple[int, int]  # the same in whole latent cells: what the backbone sees


def work_sizes(
    height: int, width: int, upscale: float = 4, process_side: int = PROCESS_SIDE, multiple: int = VAE_SCALE
) -> WorkSizes:
    """Sizes for an LR image of height x width [px].

    A side under process_side // upscale: the image is first scaled until its shorter side is that long; then it is
    scaled by `upscale`; then down to multiples of `multiple`. The answer is resized from there to the size asked for.

    Raises:
        ValueError: an empty image, or an upscale outside 1..process_side.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image of {height} x {width} pixels is empty")
    if not 1 <= upscale <= process_side:
        raise ValueError(f"upscale {upscale} is outside 1..{process_side}")
    smallest = int(process_side // upscale)
    lr = height, width
    if min(lr) < smallest:
        # Truncation as published: a side may come out one pixel short (49 -> 127), an odd latent. Ours may be odd.
        ratio = smallest / min(lr)
        lr = int(ratio * height), int(ratio * width)
    upscaled = int(lr[0] * upscale), int(lr[1] * upscale)
    work = upscaled[0] // multiple * multiple, upscaled[1] // multiple * multiple
    return WorkSizes(lr, upscaled, work)


def enlarge(lr_image: Tensor, sizes: WorkSizes) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, *sizes.work) in [0, 1]: bicubic at every stage, as published.

    The scripts round to 8 bits in between; here the image stays float, because 16-bit inputs are welcome.
    """
    for size in (sizes.lr, sizes.upscaled, sizes.work):
        lr_image = resize(lr_image, size).clamp(0, 1)
    return lr_image
