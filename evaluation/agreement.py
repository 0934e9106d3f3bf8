"""How well a modality's map agrees with the map of the undegraded photograph, patch by patch.

Not in the paper. The reference is what the same extractors see where nothing was lost but pixels: in the HR image
shrunk to the LR size, for edges in the coarse image of that. (The HR image's own edges are ten times as many, nearly
all of texture that no LR image shows.) An error that the extractors make on clean photographs too is not seen here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.network import M3ESR, SCALE
from models.resize import resize

CELL = 16  # pixels of a rendered map per token
EDGE_REACH = 2  # px that an edge may be off
EDGE_PRIOR = 4.0  # edge pixels whose agreement is taken for 1/2: a patch without edges is neither right nor wrong


@torch.no_grad()
def reference_maps(network: M3ESR, hr_image: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """hr_image (B, 3, 16 rows, 16 columns) in [0, 1] -> the maps of `M3ESR.render`, as they would be undegraded."""
    clean = shrink(hr_image)
    return network.render(clean, network.estimate(clean)[1], names)[0]


def shrink(hr_image: Tensor) -> Tensor:
    """The LR image that a bicubic reduction alone would have left."""
    return resize(hr_image, (hr_image.shape[-2] // SCALE, hr_image.shape[-1] // SCALE)).clamp(0, 1)


def map_agreement(name: str, given: Tensor, reference: Tensor) -> Tensor:
    """Two maps of one modality in the form that the fusion takes -> agreement (B, rows, columns), higher is better.

    Segmentation and depth: minus the mean absolute difference of the rendered maps, in [-1, 0]. DINO: the cosine, in
    [-1, 1]. Edges: the share of edge pixels of either map that lie within 2 px of the other's, in [0, 1].
    """
    if name == "dino":
        return F.cosine_similarity(given, reference, dim=1)
    if name == "edge":
        return edge_agreement(given[:, :1], reference[:, :1])
    return -F.avg_pool2d((given - reference).abs().mean(1, keepdim=True), CELL)[:, 0]


def edge_agreement(given: Tensor, reference: Tensor) -> Tensor:
    """Edge maps (B, 1, H, W), 1 on an edge -> (B, rows, columns)."""
    near = [widen(edges) for edges in (given, reference)]
    matched = F.avg_pool2d(given * near[1] + reference * near[0], CELL) * CELL**2
    present = F.avg_pool2d(given + reference, CELL) * CELL**2
    return ((matched + 0.5 * EDGE_PRIOR) / (present + EDGE_PRIOR))[:, 0]


def widen(edges: Tensor) -> Tensor:
    """1 within 2 px of an edge, along both axes; a row and then a column, which is faster than a square."""
    side = 2 * EDGE_REACH + 1
    rows = F.max_pool2d(edges, (1, side), stride=1, padding=(0, EDGE_REACH))
    return F.max_pool2d(rows, (side, 1), stride=1, padding=(EDGE_REACH, 0))
