"""What the calls in a checkpoint's pickle make: plain Python values, numbers of NumPy, and torch tensors.

Only what is named here is made, by functions of our own; everything else stays an `Instance`.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from mpocompress.checkpoint.pickles.reader import Build
from mpocompress.checkpoint.pickles.values import Global, Instance, Keys, UnusualTensor
from mpocompress.checkpoint.storages import Storage, tensor_over
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

_NUMBER_KINDS = "biufc"
# Nothing is called whatever its name; what calls these is refused as a whole, since its author means no good.
_HARMFUL = {
    *(
        "os",
        "posix",
        "nt",
        "sys",
        "subprocess",
        "pty",
        "shutil",
        "socket",
        "runpy",
        "importlib",
        "ctypes",
        "webbrowser",
    ),
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__", "breakpoint", "input")),
}


def builder(where: str, others: Mapping[str, Callable[..., object]] | None = None) -> Build:
    """Return the function that makes values from names and arguments.

    Args:
        where: the file, for messages.
        others: further functions by name.

    Returns:
        To be given to `read_pickle`.

    Example:
        >>> build = builder("x.pt")
        >>> build("torch.Size", ((2, 3),)), build("net.Net", ()).class_name
        (torch.Size([2, 3]), 'net.Net')
    """
    plain = _plain()
    memory = {**_UNUSUAL, **_tensors(where), **(others or {})}

    def build(name: str, arguments: tuple[Any, ...]) -> object:
        if name in _HARMFUL or name.partition(".")[0] in _HARMFUL:
            raise CheckpointError(
                where=where,
                found=f"its pickle asks to call {shown(name)}",
                why="no model needs that: the file is made to do harm, and nothing in it was run",
                action="Get the model from a source you trust.",
            )
        if name in memory:
            return memory[name](*arguments)
        try:
            return plain[name](*arguments)
        except (KeyError, TypeError, ValueError, RuntimeError):  # unknown, or called in a way that is
            return Instance(name, arguments)

    return build


def _tensors(where: str) -> dict[str, Callable[..., object]]:
    """The functions that rebuild tensors, by name."""

    def typed(storage: object, offset: object, size: object, stride: object, *_: object) -> torch.Tensor:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without memory")
        return tensor_over(storage, storage.dtype, offset, size, stride, where)

    def untyped(storage: object, offset: object, size: object, stride: object, *rest: object) -> torch.Tensor:
        dtype = rest[2] if len(rest) > 2 else None
        if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
            raise TypeError("a tensor without memory or dtype")
        return tensor_over(storage, dtype, offset, size, stride, where)

    def subclass(function: object, kind: object, arguments: object, _: object) -> object:
        """A tensor of a subclass, or with attributes, as the plain tensor it is made of."""
        if not isinstance(function, Global) or not isinstance(kind, Global) or not isinstance(arguments, tuple):
            raise TypeError("a tensor made in no known way")
        plain = kind.name in ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
        make = rebuild.get(function.name)
        return make(*arguments) if plain and make is not None else UnusualTensor(kind=f"a tensor of class {kind.name}")

    rebuild: dict[str, Callable[..., object]] = {
        "torch._utils._rebuild_tensor": typed,
        "torch._utils._rebuild_tensor_v2": typed,
        "torch._utils._rebuild_tensor_v3": untyped,
        "torch._utils._rebuild_parameter": _first,
        "torch._utils._rebuild_parameter_with_state": _first,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
        "torch._utils._rebuild_sparse_tensor": _sparse,
        "torch._utils._rebuild_meta_tensor_no_storage": _without_data,
    }
    return {**rebuild, "torch._tensor._rebuild_from_type_v2": subclass}


def _first(tensor: object, *_: object) -> object:
    """A parameter, or a tensor of another device, is the tensor it is made of."""
    if not isinstance(tensor, torch.Tensor | UnusualTensor):
        raise TypeError("a parameter made of no tensor")
    return tensor


def _sparse(layout: object, data: object) -> object:
    kind = layout.arguments[:1] if isinstance(layout, Instance) else ()
    if kind != ("torch.sparse_coo",) or not isinstance(data, tuple):
        return UnusualTensor(kind="a sparse tensor")
    indices, values, size, *_ = data
    # Its indices are not checked here: they may be wrong, and are carried over as they are.
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=False)


def _without_data(dtype: object, size: object, stride: object, _: object) -> torch.Tensor:
    if not isinstance(dtype, torch.dtype) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise TypeError("a tensor without dtype or size")
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _unusual(kind: str) -> Callable[..., object]:
    return lambda *_: UnusualTensor(kind=kind)


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes written in {encoding}")
    return text.encode("latin-1")


def _bytearray(data: bytes | str = b"", *_: object) -> bytearray:
    if not isinstance(data, bytes | str):  # a number would ask for so many bytes
        raise TypeError("bytes of something else")
    return bytearray(data.encode("latin-1") if isinstance(data, str) else data)


def _reconstructed(kind: object, base: object, state: object) -> Instance:
    """An object as the oldest pickles make it: a dict or a list that became an instance of a subclass."""
    made = Instance(kind.name if isinstance(kind, Global) else "unknown", (base, state))
    if isinstance(state, dict):
        made.items.update(state)
    elif isinstance(state, list):
        made.entries.extend(state)
    return made


def _new(kind: object, *arguments: object) -> Instance:
    return Instance(kind.name if isinstance(kind, Global) else "unknown", arguments)


def _numpy_number(dtype: object, data: object) -> object:
    """A number of NumPy as the number it is."""
    code = dtype.arguments[0] if isinstance(dtype, Instance) and dtype.arguments else None
    if not isinstance(code, str) or not isinstance(data, bytes) or np.dtype(code).kind not in _NUMBER_KINDS:
        return Instance("numpy.generic", (dtype, data))
    state = dtype.attributes.get("__setstate__") if isinstance(dtype, Instance) else None
    big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    return np.frombuffer(data, np.dtype(code).newbyteorder(">" if big_endian else "<"), count=1)[0].item()


def _plain() -> dict[str, Callable[..., object]]:
    """The functions that make plain Python values, by name."""
    key = Keys()

    def pairs(given: Any = ()) -> OrderedDict[Any, Any]:
        return OrderedDict((key(name), value) for name, value in (given.items() if isinstance(given, dict) else given))

    return {
        "builtins.set": lambda entries=(): set(map(key, entries)),
        "builtins.frozenset": lambda entries=(): frozenset(map(key, entries)),
        "builtins.dict": lambda given=(): dict(pairs(given)),
        "builtins.list": lambda entries=(): list(entries),
        "builtins.complex": lambda real=0.0, imaginary=0.0: complex(float(real), float(imaginary)),
        "builtins.bytes": lambda: b"",
        "builtins.bytearray": _bytearray,
        "_codecs.encode": _encoded,
        "collections.OrderedDict": pairs,
        "collections.defaultdict": lambda _=None, given=(): dict(pairs(given)),
        "collections.Counter": lambda counts=(): Counter(dict(pairs(counts))),
        "copyreg._reconstructor": _reconstructed,
        "copyreg.__newobj__": _new,
        "copyreg.__newobj_ex__": _new,
        "numpy.core.multiarray.scalar": _numpy_number,
        "numpy._core.multiarray.scalar": _numpy_number,
        "torch.Size": lambda size=(): torch.Size(size),
        "torch.device": torch.device,
    }


_UNUSUAL: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_qtensor": _unusual("a quantized tensor"),
    "torch._utils._rebuild_nested_tensor": _unusual("a nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _unusual("a tensor of a class of its own"),
    "torch._utils._rebuild_sparse_csr_tensor": _unusual("a sparse tensor"),
}
