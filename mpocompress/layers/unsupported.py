"""Weights that a file holds in pieces or in another number format, recognised by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mpocompress.checkpoint.checkpoint import TensorInfo

_PARAMETRIZED = re.compile(r"^(?:(?P<layer>.*)\.)?parametrizations\.(?P<base>[^.]+)\.")
_LORA = re.compile(r"^(?:(?P<layer>.*)\.)?lora_(?:A|B|embedding_A|embedding_B|magnitude_vector|bias)(?:\.|$)")
_BITSANDBYTES = re.compile(r"^(?P<base>.*)\.(?:absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..+)$")
_PLAIN = "in the program that built the model, then save it again"

PARAMETRIZED = f"parametrized: call torch.nn.utils.parametrize.remove_parametrizations {_PLAIN}"
WEIGHT_NORM = f"weight-normed: call torch.nn.utils.remove_weight_norm {_PLAIN}"
SPECTRAL_NORM = f"spectral-normed: call torch.nn.utils.remove_spectral_norm {_PLAIN}"
PRUNED = f"pruned under a mask: call torch.nn.utils.prune.remove {_PLAIN}"
LORA = f"a LoRA adapter or its base weight: merge it (merge_and_unload) {_PLAIN}"
_QUANTIZED = "compress the model before quantisation, or save it again in float16 or wider"
BITSANDBYTES = f"quantized by bitsandbytes: {_QUANTIZED}"
GPTQ = f"quantized by GPTQ or AWQ: {_QUANTIZED}"
FLOAT8 = f"float8: {_QUANTIZED}"
PACKED = f"quantized and packed: {_QUANTIZED}"

# Suffixes that all exist after one base name -> the reason for those tensors and for the base itself.
_PIECES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("_g", "_v"), WEIGHT_NORM),
    (("_orig", "_u"), SPECTRAL_NORM),
    (("_orig", "_mask"), PRUNED),
    (("_packed", "_scale"), PACKED),
)
_COMPANIONS = ("_v", "_shape", "_zero_point", "_g_idx")
_GPTQ = ("qweight", "qzeros", "scales", "g_idx")


def unsupported_weights(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return the tensors that are pieces of a weight, or hold it in another number format.

    Args:
        tensors: every tensor of the state dict.

    Returns:
        Tensor name -> its form, and how to get the plain weight.

    Example:
        >>> from mpocompress.checkpoint.dtypes import FLOAT32
        >>> shapes = {"fc.weight_g": (5, 1), "fc.weight_v": (5, 4)}
        >>> pieces = {name: TensorInfo(name=name, shape=shape, dtype=FLOAT32) for name, shape in shapes.items()}
        >>> unsupported_weights(pieces)["fc.weight_v"].partition(":")[0]
        'weight-normed'
    """
    reasons: dict[str, str] = {}
    adapted: set[str] = set()
    for name, info in tensors.items():
        if _PARAMETRIZED.match(name):
            reasons[name] = PARAMETRIZED
        elif (match := _LORA.match(name)) is not None:
            reasons[name] = LORA
            adapted.add(match["layer"] or "")
        elif info.dtype.name.startswith("float8"):
            reasons[name] = FLOAT8
            reasons.update((scale, FLOAT8) for scale in (f"{name}_scale", f"{name}_scale_inv") if scale in tensors)
        else:
            for piece, reason in _pieces(name, tensors).items():
                reasons.setdefault(piece, reason)
    for layer in adapted:
        for leaf in ("weight", "base_layer.weight"):
            if (path := _join(layer, leaf)) in tensors:
                reasons.setdefault(path, LORA)
    return reasons


def _pieces(name: str, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The reason for every companion tensor of a split weight, found by the first of them."""
    layer, _, leaf = name.rpartition(".")
    if leaf == "qweight":
        return {path: GPTQ for part in _GPTQ if (path := _join(layer, part)) in tensors}
    if leaf == "SCB":
        parts = ("weight", "SCB", "weight_format")
        return {path: BITSANDBYTES for part in parts if (path := _join(layer, part)) in tensors}
    match = _BITSANDBYTES.match(name)
    if match is not None and match["base"] in tensors:
        return dict.fromkeys((match["base"], name), BITSANDBYTES)
    for suffixes, reason in _PIECES:
        base = name.removesuffix(suffixes[0])
        if base != name and "weight" in leaf and all(base + suffix in tensors for suffix in suffixes):
            companions = (base, *(base + suffix for suffix in (*suffixes, *_COMPANIONS)))
            return {companion: reason for companion in companions if companion in tensors}
    return {}


def _join(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf
