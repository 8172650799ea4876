"""Results of the calls in a checkpoint's pickle: plain Python values, numbers of NumPy, and descriptions of tensors.

Only the functions listed here have a result, computed by code of this package; every other call becomes an `Instance`.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.lazy_tensors import (
    AnyLazyTensor,
    Device,
    LazyMetaTensor,
    LazyTensor,
    Size,
    lay_out,
    lay_out_meta,
    lay_out_sparse,
)
from mpocompress.checkpoint.pickles.reader import Build
from mpocompress.checkpoint.pickles.values import Global, Instance, Keys, UnusualTensor
from mpocompress.checkpoint.storages import Storage
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

# Type of a NumPy number, as its pickle gives it -> format of `struct`; complex numbers are two floats.
_NUMBER_FORMATS = {
    "b1": "?",
    "i1": "b",
    "i2": "h",
    "i4": "i",
    "i8": "q",
    "u1": "B",
    "u2": "H",
    "u4": "I",
    "u8": "Q",
    "f2": "e",
    "f4": "f",
    "f8": "d",
    "c8": "ff",
    "c16": "dd",
}
# Nothing is ever called by name. A file that calls one of these is refused as a whole, because no model needs it.
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
_QUANTIZED = UnusualTensor(kind="a quantized tensor")


def builder(where: str, others: Mapping[str, Callable[..., object]] | None = None) -> Build:
    """Return the function that gives the results of calls, for `read_pickle`.

    Args:
        where: the file, for messages.
        others: further functions by name.

    Example:
        >>> build = builder("x.pt")
        >>> build("builtins.set", (("a",),)), build("net.Net", ()).class_name
        ({'a'}, 'net.Net')
    """
    plain = _plain()
    tensors = {**_UNUSUAL, **_tensors(where), **(others or {})}

    def build(name: str, arguments: tuple[Any, ...]) -> object:
        if name in _HARMFUL or name.partition(".")[0] in _HARMFUL:
            raise CheckpointError(
                where=where,
                found=f"its pickle calls {shown(name)}",
                why="no model needs this call: the file is malicious; nothing in it was run",
                action="Get the model from a source you trust.",
            )
        if name in tensors:
            return tensors[name](*arguments)
        try:
            return plain[name](*arguments)
        except (KeyError, TypeError, ValueError):  # an unknown function, or unknown arguments
            return Instance(name, arguments)

    return build


def _tensors(where: str) -> dict[str, Callable[..., object]]:
    """The functions that rebuild tensors, by name."""

    def typed(storage: object, offset: object, size: object, stride: object, *_: object) -> LazyTensor:
        if not isinstance(storage, Storage):
            raise TypeError("a tensor without storage")
        return lay_out(storage, storage.dtype, offset, size, stride, where)

    def untyped(
        storage: object, offset: object, size: object, stride: object, *rest: object
    ) -> LazyTensor | UnusualTensor:
        dtype = rest[2] if len(rest) > 2 else None
        if not isinstance(storage, Storage) or not isinstance(dtype, DType):
            raise TypeError("a tensor without storage or dtype")
        if dtype.kind == "quantized":
            return _QUANTIZED
        return lay_out(storage, dtype, offset, size, stride, where)

    def subclass(function: object, kind: object, arguments: object, _: object) -> object:
        """A tensor of a subclass, or with attributes, as the plain tensor it is built of."""
        if not isinstance(function, Global) or not isinstance(kind, Global) or not isinstance(arguments, tuple):
            raise TypeError("a tensor that is built in an unknown way")
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
    """A parameter, or a tensor of another device, as the tensor it is built of."""
    if not isinstance(tensor, AnyLazyTensor | UnusualTensor):
        raise TypeError("a parameter without a tensor")
    return tensor


def _sparse(layout: object, data: object) -> object:
    kind = layout.arguments[:1] if isinstance(layout, Instance) else ()
    if kind != ("torch.sparse_coo",) or not isinstance(data, tuple):
        return UnusualTensor(kind="a sparse tensor")
    indices, values, size, *_ = data
    return lay_out_sparse(indices, values, size)


def _without_data(dtype: object, size: object, stride: object, _: object) -> LazyMetaTensor | UnusualTensor:
    if not isinstance(dtype, DType):
        raise TypeError("a tensor without dtype")
    return _QUANTIZED if dtype.kind == "quantized" else lay_out_meta(dtype, size, stride)


def _unusual(kind: str) -> Callable[..., object]:
    return lambda *_: UnusualTensor(kind=kind)


def _encoded(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes written in {encoding}")
    return text.encode("latin-1")


def _bytearray(data: bytes | str = b"", *_: object) -> bytearray:
    if not isinstance(data, bytes | str):  # a number would allocate that many bytes
        raise TypeError("bytes from another type")
    return bytearray(data.encode("latin-1") if isinstance(data, str) else data)


def _reconstructed(kind: object, base: object, state: object) -> Instance:
    """An object as the oldest pickles build it: an instance of a subclass of dict or list."""
    instance = Instance(kind.name if isinstance(kind, Global) else "unknown", (base, state))
    if isinstance(state, dict):
        instance.items.update(state)
    elif isinstance(state, list):
        instance.entries.extend(state)
    return instance


def _new(kind: object, *arguments: object) -> Instance:
    return Instance(kind.name if isinstance(kind, Global) else "unknown", arguments)


def _numpy_number(dtype: object, data: object) -> object:
    """A number of NumPy as a Python number."""
    code = dtype.arguments[0] if isinstance(dtype, Instance) and dtype.arguments else None
    number_format = _NUMBER_FORMATS.get(code) if isinstance(code, str) else None
    if number_format is None or not isinstance(dtype, Instance) or not isinstance(data, bytes):
        return Instance("numpy.generic", (dtype, data))
    state = dtype.attributes.get("__setstate__")
    big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
    try:
        parts = struct.unpack_from((">" if big_endian else "<") + number_format, data)
    except struct.error as error:
        raise ValueError(str(error)) from error
    return complex(*parts) if len(parts) == 2 else parts[0]


def _device(kind: object, number: object = None) -> Device:
    if not isinstance(kind, str) or not isinstance(number, int | None):
        raise TypeError("a device without a name")
    return Device(kind if number is None else f"{kind}:{number}")


def _plain() -> dict[str, Callable[..., object]]:
    """The functions that return plain Python values, by name."""
    key = Keys()

    def pairs(items: Any = ()) -> OrderedDict[Any, Any]:
        return OrderedDict((key(name), value) for name, value in (items.items() if isinstance(items, dict) else items))

    return {
        "builtins.set": lambda entries=(): set(map(key, entries)),
        "builtins.frozenset": lambda entries=(): frozenset(map(key, entries)),
        "builtins.dict": lambda items=(): dict(pairs(items)),
        "builtins.list": lambda entries=(): list(entries),
        "builtins.complex": lambda real=0.0, imaginary=0.0: complex(float(real), float(imaginary)),
        "builtins.bytes": lambda: b"",
        "builtins.bytearray": _bytearray,
        "_codecs.encode": _encoded,
        "collections.OrderedDict": pairs,
        "collections.defaultdict": lambda _=None, items=(): dict(pairs(items)),
        "collections.Counter": lambda counts=(): Counter(dict(pairs(counts))),
        "copyreg._reconstructor": _reconstructed,
        "copyreg.__newobj__": _new,
        "copyreg.__newobj_ex__": _new,
        "numpy.core.multiarray.scalar": _numpy_number,
        "numpy._core.multiarray.scalar": _numpy_number,
        "torch.Size": Size,
        "torch.device": _device,
    }


_UNUSUAL: dict[str, Callable[..., object]] = {
    "torch._utils._rebuild_qtensor": lambda *_: _QUANTIZED,
    "torch._utils._rebuild_nested_tensor": _unusual("a nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _unusual("a tensor of a custom class"),
    "torch._utils._rebuild_sparse_csr_tensor": _unusual("a sparse tensor"),
}
