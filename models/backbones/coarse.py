"""The coarse network beside a public backbone: Real-ESRGAN, for uncertainty (Eq. 13) and previews."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.backbones.memory import Placement
from models.backbones.sizes import WorkSizes
from models.preview import OnPreview, PreviewCanvas
from models.resize import resize
from models.routing.realesrgan import RRDBNet, SRVGGNetCompact, load_realesrgan
from models.routing.uncertainty import estimate_uncertainty
from models.tiling import run_padded_tiles

FOLDER = "xinntao/Real-ESRGAN"
FILES = ("RealESRGAN_x4plus.pth", "realesr-general-x4v3.pth")  # the first that is there
SCALE = 4
TILE, PAD = 256, 10  # LR pixels; the official padding


class CoarseEstimator:
    """Real-ESRGAN on the LR image, tile by tile, in float32: the uncertainty is a small difference of its answer."""

    def __init__(self, network: RRDBNet | SRVGGNetCompact, placement: Placement):
        self.network, self.placement = network, placement
        placement.add(network)

    @classmethod
    def find(cls, root: Path, placement: Placement) -> "CoarseEstimator | None":
        """The installed x4 network, if there is one. Raises ValueError when its file is broken."""
        path = next((root / FOLDER / name for name in FILES if (root / FOLDER / name).is_file()), None)
        if path is None:
            return None
        network = load_realesrgan(path)
        scale = network.config.upscale if isinstance(network, SRVGGNetCompact) else network.config.scale
        if scale != SCALE:
            raise ValueError(f"{path} enlarges by {scale}; the coarse network must enlarge by {SCALE}")
        return cls(network, placement)

    def maps(
        self,
        lr: Tensor,
        sizes: WorkSizes,
        work: Tensor,
        size: tuple[int, int],
        on_preview: OnPreview | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """{"uncertainty": (rows, columns)} per 16 px of the `work` image (1, 3, H, W); tells a preview, if asked.

        size: (width, height) [px] of the answer.
        """
        coarse = self.run(resize(lr, sizes.lr).clamp(0, 1))
        if on_preview is not None:
            canvas = PreviewCanvas(resize(lr, sizes.lr).clamp(0, 1), size, 1, on_preview)
            canvas.add(0, 0, coarse, SCALE)
        uncertainty = estimate_uncertainty(resize(coarse, sizes.work).clamp(0, 1), work)
        return {"uncertainty": uncertainty[0, 0].cpu().numpy()}

    def run(self, lr_image: Tensor) -> Tensor:
        """(1, 3, H, W) in [0, 1] -> (1, 3, 4H, 4W) in [0, 1], float32."""
        with self.placement.use(self.network):
            coarse = run_padded_tiles(self.network, lr_image, TILE, PAD, SCALE)
        return coarse.clamp(0, 1)
