"""A larger coarse network that starts as the same function as a smaller trained one."""

from operator import gt

import torch
from torch import Tensor

from models.routing.coarse import CoarseConfig, CoarseNetwork


def widen(tensors: dict[str, Tensor], old: CoarseConfig, new: CoarseConfig) -> CoarseNetwork:
    """A network of config `new` with the weights of one of config `old`; both give the same image.

    Every trained kernel lies in the corner of the wider one; what the added channels send to the old ones is zero, so
    they begin as spectators. Added blocks begin as the identity. Raises ValueError when `new` is smaller somewhere.
    """
    sizes = [(*config.widths, *config.num_blocks) for config in (old, new)]
    if len(sizes[0]) != len(sizes[1]) or old.scale != new.scale or any(map(gt, *sizes)):
        raise ValueError(f"{new} is not {old} with more channels or blocks")
    network = CoarseNetwork(new)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name not in tensors:
                continue
            kept = tensors[name]
            if name.startswith("ups."):  # its outputs are shuffled: 4 neighbours in a row are one channel
                tensor, kept = tensor.unflatten(0, (-1, 4)), kept.unflatten(0, (-1, 4))
            if kept.dim() > 1:
                tensor[: kept.shape[0]] = 0
                inner = 2 if name.startswith("ups.") and kept.dim() > 2 else 1
                index = (slice(kept.shape[0]), *(slice(None),) * (inner - 1), slice(kept.shape[inner]))
                tensor[index] = kept
            else:
                tensor[: kept.shape[0]] = kept
    return network
