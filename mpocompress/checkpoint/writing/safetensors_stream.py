"""Write safetensors, one tensor at a time and always in the same order.

The library's own `save_file` writes the entries of `__metadata__` in an order that changes from run to run (safetensors
0.8), and needs all tensors in memory at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import BinaryIO

import torch

from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.checkpoint.writing.deterministic import packed
from mpocompress.errors import OutputError
from mpocompress.text import shown, shown_size

MAX_HEADER_BYTES = 100_000_000  # readers refuse more
_ALIGNMENT = 8
_RESERVED = "__metadata__"


def check_storable(dtypes: Mapping[str, DType], where: str) -> None:
    """Refuse tensors that safetensors cannot hold, by their names and dtypes.

    Args:
        dtypes: name -> element type.
        where: the output, for messages.

    Raises:
        OutputError: safetensors has no such dtype, or a name is reserved or contains half a character.

    Example:
        >>> from mpocompress.checkpoint.dtypes import FLOAT32
        >>> check_storable({"fc.weight": FLOAT32}, "out.safetensors")
    """
    for name, dtype in dtypes.items():
        if dtype.safetensors is None:
            found, why = f"{shown(name)} is of type {dtype}", "safetensors cannot hold tensors of this type"
        elif name == _RESERVED:
            found, why = f"a tensor named {name}", "safetensors reserves this name for text entries"
        elif any("\ud800" <= char <= "\udfff" for char in name):
            found, why = (
                f"a tensor named {shown(name)}",
                "safetensors cannot hold half a character (a lone surrogate)",
            )
        else:
            continue
        raise OutputError(where=where, found=found, why=why, action="Write a .pt file.")


def write_safetensors(
    stream: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], where: str
) -> None:
    """Write tensors and text entries as safetensors, in the order of the library: wide types first, then by name.

    Args:
        stream: written to from its current position on.
        tensors: dense tensors; shared ones are written as copies.
        metadata: text entries of the header, sorted on writing.
        where: the output, for messages.

    Raises:
        OutputError: a tensor cannot be stored (see `check_storable`), or the header is too large.

    Example:
        >>> import io, safetensors.torch
        >>> stream = io.BytesIO()
        >>> write_safetensors(stream, {"fc.bias": torch.ones(2)}, {"format": "pt"}, "out.safetensors")
        >>> safetensors.torch.load(stream.getvalue())
        {'fc.bias': tensor([1., 1.])}
    """
    dtypes = {name: dtype_of(tensor.dtype) for name, tensor in tensors.items()}
    check_storable(dtypes, where)
    header: dict[str, object] = {_RESERVED: dict(sorted(metadata.items()))}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    start = 0
    for name in order:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": dtypes[name].safetensors, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise OutputError(
            where=where,
            found=f"a header of {shown_size(len(text))}",
            why=f"readers of safetensors refuse more than {shown_size(MAX_HEADER_BYTES)}",
            action="Write a .pt file.",
        )
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for name in order:
        if tensors[name].numel():
            stream.write(packed(tensors[name]).reshape(-1).view(torch.uint8).numpy().data)
