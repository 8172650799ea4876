"""Element types of tensors by name, without torch: size, kind, and name in a safetensors header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["float", "complex", "int", "uint", "bool", "quantized", "bits"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type; its attributes are named as those of `torch.dtype`.

    Args:
        name: name in torch, such as `float32`.
        itemsize: bytes of one element.
        kind: kind of number; `quantized` and `bits` are the types of torch for which it has no plain numbers.
        safetensors: name in a safetensors header; None if the format has none.

    Example:
        >>> str(FLOAT16), FLOAT16.itemsize, FLOAT16.is_floating_point, FLOAT16.safetensors
        ('float16', 2, True, 'F16')
    """

    name: str
    itemsize: int
    kind: Kind
    safetensors: str | None = None

    @property
    def is_floating_point(self) -> bool:
        """Whether elements are real floating-point numbers."""
        return self.kind == "float"

    @property
    def is_complex(self) -> bool:
        """Whether elements are complex numbers."""
        return self.kind == "complex"

    def __str__(self) -> str:
        return self.name


BOOL = DType("bool", 1, "bool", "BOOL")
UINT8 = DType("uint8", 1, "uint", "U8")
INT8 = DType("int8", 1, "int", "I8")
UINT16 = DType("uint16", 2, "uint", "U16")
INT16 = DType("int16", 2, "int", "I16")
UINT32 = DType("uint32", 4, "uint", "U32")
INT32 = DType("int32", 4, "int", "I32")
UINT64 = DType("uint64", 8, "uint", "U64")
INT64 = DType("int64", 8, "int", "I64")
FLOAT8_E4M3FN = DType("float8_e4m3fn", 1, "float", "F8_E4M3")
FLOAT8_E4M3FNUZ = DType("float8_e4m3fnuz", 1, "float", "F8_E4M3FNUZ")
FLOAT8_E5M2 = DType("float8_e5m2", 1, "float", "F8_E5M2")
FLOAT8_E5M2FNUZ = DType("float8_e5m2fnuz", 1, "float", "F8_E5M2FNUZ")
FLOAT8_E8M0FNU = DType("float8_e8m0fnu", 1, "float", "F8_E8M0")
FLOAT16 = DType("float16", 2, "float", "F16")
BFLOAT16 = DType("bfloat16", 2, "float", "BF16")
FLOAT32 = DType("float32", 4, "float", "F32")
FLOAT64 = DType("float64", 8, "float", "F64")
COMPLEX64 = DType("complex64", 8, "complex", "C64")
COMPLEX128 = DType("complex128", 16, "complex")

_COMMON = (
    *(BOOL, UINT8, INT8, INT16, UINT16, INT32, UINT32, INT64, UINT64),
    *(FLOAT8_E4M3FN, FLOAT8_E4M3FNUZ, FLOAT8_E5M2, FLOAT8_E5M2FNUZ, FLOAT8_E8M0FNU),
    *(FLOAT16, BFLOAT16, FLOAT32, FLOAT64, COMPLEX64, COMPLEX128),
)
_RARE = (
    *(DType(name, 4, "complex") for name in ("complex32", "bcomplex32")),  # the second from torch 2.14 on
    DType("float4_e2m1fn_x2", 1, "float"),
    *(DType(f"uint{bits}", 1, "uint") for bits in range(1, 8)),
    *(DType(f"int{bits}", 1, "int") for bits in range(1, 8)),
    *(DType(name, 1, "quantized") for name in ("quint8", "qint8", "quint4x2", "quint2x4")),
    DType("qint32", 4, "quantized"),
    *(DType(name, 1, "bits") for name in ("bits1x8", "bits2x4", "bits4x2", "bits8")),
    DType("bits16", 2, "bits"),
)

DTYPES: Mapping[str, DType] = MappingProxyType({dtype.name: dtype for dtype in (*_COMMON, *_RARE)})
"""Name in torch -> element type, for every `torch.dtype`."""

SAFETENSORS_DTYPES: Mapping[str, DType] = MappingProxyType(
    {dtype.safetensors: dtype for dtype in _COMMON if dtype.safetensors is not None}
)
"""Name in a safetensors header -> element type."""
