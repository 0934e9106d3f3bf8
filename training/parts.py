"""The networks of a profile lie in one checkpoint, each under its name: taking one out, and putting another in."""

from collections.abc import Mapping

from torch import Tensor


def take_part(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of `part` ("coarse", "detail", ...) by the names that they have in the network alone."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def put_part(tensors: Mapping[str, Tensor], part: str, added: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`added` in the place of any `part` that there was; the rest as it is."""
    prefix = f"{part}."
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    return kept | {prefix + name: tensor for name, tensor in added.items()}
