"""The weights of the dense twin of a model with MPO layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mpocompress.layers.names import JOINT
from mpocompress.nn import MPOWeight


def dense_state(model: nn.Module, dense: nn.Module) -> dict[str, Tensor]:
    """Return the state dict with which a dense model computes the same as a model with MPO layers.

    Args:
        model: the model with MPO layers.
        dense: the same model without MPO layers; only the shapes of its weights are used.

    Returns:
        Name -> tensor, for every name of `dense`: dense weights are new, other tensors are shared with `model`.

    Example:
        >>> import mpocompress
        >>> from mpocompress.nn import MPOLinear
        >>> layer = nn.Linear(64, 64)
        >>> mpo = mpocompress.decompose(layer.weight, truncation=mpocompress.Truncation(max_bond=8))
        >>> state = dense_state(MPOLinear.replacing(layer, MPOWeight(mpo)), layer)
        >>> sorted(state), bool((state["weight"] == mpo.to_matrix()).all())
        (['bias', 'weight'], True)
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in dense.state_dict().items()}
    weights = dict(_dense_weights(model, shapes))
    return {name: tensor for name, tensor in {**model.state_dict(), **weights}.items() if name in shapes}


def _dense_weights(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight that is stored as cores, under its name in the dense model."""
    for name, weight in model.named_modules(remove_duplicate=False):
        if not isinstance(weight, MPOWeight):
            continue
        matrix = weight.dense().detach()
        path, _, leaf = name.rpartition(".")
        prefix = f"{path}." if path else ""
        if not leaf.startswith(JOINT):
            yield name, matrix
            continue
        names = [f"{prefix}{leaf.replace(JOINT, part)}" for part in ("weight_ih", "weight_hh")]
        columns = [shapes[member][1] for member in names]
        yield from zip(names, torch.split(matrix, columns, dim=1), strict=True)
