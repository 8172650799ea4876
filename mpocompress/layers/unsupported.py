"""Weights that a file holds in pieces or in another number format: told by their names, with the way out of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mpocompress.checkpoint.checkpoint import TensorInfo

_PARAMETRIZED = re.compile(r"^(?:(?P<layer>.*)\.)?parametrizations\.(?P<base>[^.]+)\.")
_LORA = re.compile(r"^(?:(?P<layer>.*)\.)?lora_(?:A|B|embedding_A|embedding_B|magnitude_vector|bias)(?:\.|$)")
_BITSANDBYTES = re.compile(r"^(?P<base>.*)\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$")
_PLAIN = "in the program that made the model, then save it again"

PARAMETRIZED = f"parametrized: call torch.nn.utils.parametrize.remove_parametrizations {_PLAIN}"
WEIGHT_NORM = f"weight-normed: call torch.nn.utils.remove_weight_norm {_PLAIN}"
SPECTRAL_NORM = f"spectral-normed: call torch.nn.utils.remove_spectral_norm {_PLAIN}"
PRUNED = f"pruned under a mask: call torch.nn.utils.prune.remove {_PLAIN}"
LORA = f"a LoRA adapter, or under one: merge it (merge_and_unload) {_PLAIN}"
_QUANTIZED = "compress the model as it was before, or save it again in float16 or wider"
BITSANDBYTES = f"quantized by bitsandbytes: {_QUANTIZED}"
GPTQ = f"quantized by GPTQ or AWQ: {_QUANTIZED}"
FLOAT8 = f"float8: {_QUANTIZED}"
PACKED = f"quantized and packed: {_QUANTIZED}"

# Base name + suffixes that must all be there -> those tensors, and the base itself, are what the reason says.
_PIECES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("_g", "_v"), WEIGHT_NORM),
    (("_orig", "_u"), SPECTRAL_NORM),
    (("_orig", "_mask"), PRUNED),
    (("_packed", "_scale"), PACKED),
)
_COMPANIONS = ("_v", "_shape", "_zero_point", "_g_idx")
_GPTQ = ("qweight", "qzeros", "scales", "g_idx")


def obstacles(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The tensors that are pieces of a weight, or stand for it in another number format.

    Args:
        tensors: every tensor of the state dict.

    Returns:
        Tensor name -> what it is and how to get the plain weight, in words.

    Example:
        >>> from mpocompress.checkpoint.dtypes import FLOAT32
        >>> shapes = {"fc.weight_g": (5, 1), "fc.weight_v": (5, 4)}
        >>> pieces = {name: TensorInfo(name=name, shape=shape, dtype=FLOAT32) for name, shape in shapes.items()}
        >>> obstacles(pieces)["fc.weight_v"].partition(":")[0]
        'weight-normed'
    """
    found: dict[str, str] = {}
    adapted: set[str] = set()
    for name, info in tensors.items():
        if _PARAMETRIZED.match(name):
            found[name] = PARAMETRIZED
        elif (match := _LORA.match(name)) is not None:
            found[name] = LORA
            adapted.add(match["layer"] or "")
        elif info.dtype.name.startswith("float8"):
            found[name] = FLOAT8
            found.update((scale, FLOAT8) for scale in (f"{name}_scale", f"{name}_scale_inv") if scale in tensors)
        else:
            found.update((one, reason) for one, reason in _pieces(name, tensors).items() if one not in found)
    for layer in adapted:
        for one in ("weight", "base_layer.weight"):
            if (path := _join(layer, one)) in tensors:
                found.setdefault(path, LORA)
    return found


def _pieces(name: str, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """What the first of several pieces says of all of them."""
    layer, _, leaf = name.rpartition(".")
    if leaf == "qweight":
        return {path: GPTQ for one in _GPTQ if (path := _join(layer, one)) in tensors}
    if leaf == "SCB":
        return {
            path: BITSANDBYTES for one in ("weight", "SCB", "weight_format") if (path := _join(layer, one)) in tensors
        }
    match = _BITSANDBYTES.match(name)
    if match is not None and match["base"] in tensors:
        return dict.fromkeys((match["base"], name), BITSANDBYTES)
    for suffixes, reason in _PIECES:
        base = name.removesuffix(suffixes[0])
        if base != name and "weight" in leaf and all(base + suffix in tensors for suffix in suffixes):
            parts = [base, *(base + suffix for suffix in (*suffixes, *_COMPANIONS))]
            return {one: reason for one in parts if one in tensors}
    return {}


def _join(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf
