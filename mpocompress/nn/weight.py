"""The cores of one matrix as parameters of a module, under the names that the file gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.errors import SitesError
from mpocompress.mpo.contraction import to_matrix
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites
from mpocompress.mpo.tracing import is_recorded
from mpocompress.nn.cache import Placed
from mpocompress.nn.operands import Layout, Product, as_product, layout_of

ALIGNMENT_BYTES = 64


class MPOWeight(nn.Module):
    """A weight stored as cores, in the place of the parameter that it was.

    Its parameters are named `core.0`, `core.1`, ... as in a compressed file. Where a tensor is wanted, as in
    `torch.nn.functional.linear(x, weight)` or `2 * weight.T` in somebody's own layer, it stands for its dense matrix.
    So `weight.half()` is a tensor too, and does not convert the cores; `half()` of a module around it does.

    Args:
        mpo: the decomposition; its cores become parameters, sharing memory.
        transposed: whether the parameter it replaces holds (inputs, outputs), as that of a Conv1D does.
        requires_grad: whether the cores are trained.

    Example:
        >>> weight = MPOWeight(MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)]))
        >>> weight.shape, list(weight.state_dict())
        (torch.Size([3, 2]), ['core.0', 'core.1'])
        >>> torch.nn.functional.linear(torch.ones(1, 2), weight).tolist(), (2 * weight).shape
        ([[4.0, 4.0, 4.0]], torch.Size([3, 2]))
    """

    sites: Sites
    transposed: bool

    def __init__(self, mpo: MPO, *, transposed: bool = False, requires_grad: bool = True) -> None:
        super().__init__()
        if not all(core.is_floating_point() for core in mpo.cores):
            raise SitesError(
                where="MPO weight",
                found=f"cores of {', '.join(sorted({str(core.dtype) for core in mpo.cores}))}",
                why="parameters are floating point numbers",
                action="Convert the cores.",
            )
        self.sites = mpo.sites
        self._laid = (mpo.bonds, *layout_of(mpo.sites, mpo.bonds))
        self.transposed = transposed
        self.core = Placed(
            nn.Parameter(core.detach(), requires_grad=requires_grad and not core.is_inference()) for core in mpo.cores
        )

    @property
    def cores(self) -> tuple[Tensor, ...]:
        """The cores, of shape (left_bond, row, col, right_bond)."""
        return tuple(core for core in self.core._parameters.values() if core is not None)

    @property
    def bonds(self) -> tuple[int, ...]:
        """The bond of every cut between two sites."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    @property
    def layout(self) -> Layout:
        """How the cores are merged into two operands."""
        return self._layout()[0]

    def _layout(self) -> tuple[Layout, int]:
        """The layout, and how many sites the first operand has; found anew where the bonds have changed."""
        bonds, layout, cut = self._laid
        return (layout, cut) if bonds == self.bonds else layout_of(self.sites, self.bonds)

    @property
    def parameter_count(self) -> int:
        """Number of entries of all cores."""
        return sum(core.numel() for core in self.cores)

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter it replaces."""
        rows, cols = self.sites.shape
        return torch.Size((cols, rows) if self.transposed else (rows, cols))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the cores."""
        return self.cores[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the cores are."""
        return self.cores[0].device

    @property
    def requires_grad(self) -> bool:
        """Whether a core is trained."""
        return any(core.requires_grad for core in self.cores)

    def mpo(self) -> MPO:
        """The decomposition as a value, sharing the cores."""
        return MPO(cores=self.cores, sites=self.sites)

    def to_matrix(self) -> Tensor:
        """The dense matrix, outputs first: a new tensor of shape (rows, columns), differentiable."""
        matrix = to_matrix(self.cores, self.sites)
        if not is_recorded() and not matrix.requires_grad and matrix.data_ptr() % ALIGNMENT_BYTES:
            return matrix.clone()  # products take up to half as long again from memory that is not aligned
        return matrix

    def product(self, dtype: torch.dtype) -> Product:
        """The operands that a batch is multiplied with, differentiable.

        Args:
            dtype: their dtype.

        Returns:
            The product.
        """
        recorded = torch.is_grad_enabled()  # otherwise a view would keep hold of a parameter
        cores = [(core if recorded else core.detach()).to(dtype) for core in self.cores]
        return as_product(cores, *self._layout())

    def multiplied(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """A batch multiplied with the matrix, by its cores, differentiably.

        Args:
            x: shape (..., columns).
            bias: shape (rows,), or None.

        Returns:
            Shape (..., rows).

        Raises:
            RuntimeError: another number of columns, in torch's own words.
        """
        rows, cols = self.sites.shape
        if not x.dim() or x.shape[-1] != cols:
            return torch.nn.functional.linear(x, self.to_matrix(), bias)  # which says what is wrong
        y = self.product(self.dtype)(x.reshape(-1, cols)).reshape(*x.shape[:-1], rows)
        return y if bias is None else y + bias.to(y.dtype)  # autocast may have narrowed the product

    def dense(self) -> Tensor:
        """The dense weight as the parameter it replaces held it: a new tensor of shape `shape`, differentiable."""
        matrix = self.to_matrix()
        return matrix.T if self.transposed else matrix

    def forward(self) -> Tensor:
        """The dense weight, see `dense`."""
        return self.dense()

    def __repr__(self) -> str:
        """Sites and bonds, on one line."""
        rows, cols = tuple(self.sites.row_dims), tuple(self.sites.col_dims)
        more = ", transposed=True" if self.transposed else ""
        return f"MPOWeight(sites={rows}x{cols}, bonds={self.bonds}{more})"

    def __getattr__(self, name: str) -> Any:
        """What a module has; otherwise what the dense weight has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or not hasattr(Tensor, name):
                raise
            return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Stand for the dense weight in a function of torch; in `linear`, multiply with the cores."""
        if func is torch.nn.functional.linear:
            bound = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs or {})
            x, weight, bias = bound["input"], bound["weight"], bound.get("bias")
            if isinstance(weight, MPOWeight) and not weight.transposed and not isinstance(x, MPOWeight):
                return weight.multiplied(x, _dense(bias))
        return func(*_dense(args), **_dense(kwargs or {}))


def _dense(value: Any) -> Any:
    """A nest of arguments with every MPO weight replaced by its dense weight."""
    if isinstance(value, MPOWeight):
        return value.dense()
    if isinstance(value, tuple | list):
        return type(value)(*map(_dense, value)) if hasattr(value, "_fields") else type(value)(map(_dense, value))
    if isinstance(value, Mapping):
        return {key: _dense(one) for key, one in value.items()}
    return value


def _of_tensors(name: str) -> Callable[..., Any]:
    """A method that the dense weight answers."""

    def method(self: MPOWeight, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.dense(), name)(*_dense(args), **_dense(kwargs))

    return method


_OPERATORS = ("add", "sub", "mul", "truediv", "matmul", "pow")
_CONVERSIONS = ("to", "type", "float", "double", "half", "bfloat16", "cpu", "cuda")
for _name in (
    *(f"__{side}{name}__" for name in _OPERATORS for side in ("", "r")),
    *("__neg__", "__getitem__"),
    *_CONVERSIONS,  # of a module, they would convert the cores in the middle of somebody's forward
):
    setattr(MPOWeight, _name, _of_tensors(_name))
