"""The cores of a matrix as parameters of a module, which acts as the dense weight wherever a tensor is needed.

`torch.nn.utils.parametrize` would compute `layer.weight` from parameters too, but it stores them under
`parametrizations.weight.original0`, ... and changes the class of the layer. Here the state dict has the names of a
compressed file, `weight.core.0`, `weight.core.1`, ..., so that it can be loaded from the file and saved to it.
"""

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
from mpocompress.nn.cache import TrackedParameters
from mpocompress.nn.operands import OperandLayout, Product, as_product, layout_of
from mpocompress.user.pytree import map_leaves

ALIGNMENT_BYTES = 64


class MPOWeight(nn.Module):
    """A weight stored as cores, which replaces a parameter of a layer.

    Its parameters are named `core.0`, `core.1`, ..., as in a compressed file. If a tensor is needed, as in
    `torch.nn.functional.linear(x, weight)` or `2 * weight.T` in a user's layer, it acts as its dense matrix. Therefore
    `weight.half()` returns a tensor and does not convert the cores; `half()` of a module that contains it does.

    Args:
        mpo: the decomposition; its cores become parameters that share memory with it.
        transposed: whether the replaced parameter has shape (inputs, outputs), as that of a Conv1D does.
        requires_grad: whether the cores are trained.

    Example:
        >>> weight = MPOWeight(MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)]))
        >>> weight.shape, list(weight.state_dict())
        (torch.Size([3, 2]), ['core.0', 'core.1'])
        >>> torch.nn.functional.linear(torch.ones(1, 2), weight).tolist(), (2 * weight).shape
        ([[4.0, 4.0, 4.0]], torch.Size([3, 2]))
    """

    __module__ = "mpocompress"

    sites: Sites
    transposed: bool

    def __init__(self, mpo: MPO, *, transposed: bool = False, requires_grad: bool = True) -> None:
        super().__init__()
        if not all(core.is_floating_point() for core in mpo.cores):
            raise SitesError(
                where="MPO weight",
                found=f"cores of {', '.join(sorted({str(core.dtype) for core in mpo.cores}))}",
                why="parameters need a floating-point dtype",
                action="Convert the cores.",
            )
        self.sites = mpo.sites
        self._layout_for = (mpo.bonds, *layout_of(mpo.sites, mpo.bonds))
        self.transposed = transposed
        self.core = TrackedParameters(
            nn.Parameter(core.detach(), requires_grad=requires_grad and not core.is_inference()) for core in mpo.cores
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without private classes, so that a pickled model does not depend on their names."""
        state = self.__dict__.copy()
        del state["_layout_for"]
        cores = nn.ParameterList()
        cores.__dict__.update({name: value for name, value in self.core.__dict__.items() if name != "assignments"})
        return state | {"_modules": {**self._modules, "core": cores}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        cores = TrackedParameters()
        cores.__dict__.update(self.core.__dict__)
        self._modules["core"] = cores
        self._layout_for = (self.bonds, *layout_of(self.sites, self.bonds))

    @property
    def cores(self) -> tuple[Tensor, ...]:
        """The cores, of shape (left_bond, row, col, right_bond)."""
        return tuple(core for core in self.core._parameters.values() if core is not None)

    @property
    def bonds(self) -> tuple[int, ...]:
        """The bonds between neighbouring sites."""
        return tuple(core.shape[-1] for core in self.cores[:-1])

    @property
    def layout(self) -> OperandLayout:
        """The layout of the two operands into which the cores are merged."""
        return self._layout()[0]

    def _layout(self) -> tuple[OperandLayout, int]:
        """Return the layout and the number of sites of the first operand, for the current bonds."""
        bonds, layout, cut = self._layout_for
        return (layout, cut) if bonds == self.bonds else layout_of(self.sites, self.bonds)

    @property
    def parameter_count(self) -> int:
        """Entries of all cores."""
        return sum(core.numel() for core in self.cores)

    @property
    def shape(self) -> torch.Size:
        """Shape of the replaced parameter."""
        rows, cols = self.sites.shape
        return torch.Size((cols, rows) if self.transposed else (rows, cols))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the cores."""
        return self.cores[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the cores."""
        return self.cores[0].device

    @property
    def requires_grad(self) -> bool:
        """Whether any core is trained."""
        return any(core.requires_grad for core in self.cores)

    def mpo(self) -> MPO:
        """Return the decomposition; it shares the cores."""
        return MPO(cores=self.cores, sites=self.sites)

    def to_matrix(self) -> Tensor:
        """Return the dense matrix, of shape (outputs, inputs): a new tensor, differentiable."""
        matrix = to_matrix(self.cores, self.sites)
        if not is_recorded() and not matrix.requires_grad and matrix.data_ptr() % ALIGNMENT_BYTES:
            return matrix.clone()  # products with memory that is not aligned take up to half as long again
        return matrix

    def product(self, dtype: torch.dtype) -> Product:
        """Return the operands in a dtype; differentiable.

        Args:
            dtype: dtype of the operands.
        """
        # Without gradients, a view would keep a reference to a parameter.
        cores = [(core if torch.is_grad_enabled() else core.detach()).to(dtype) for core in self.cores]
        return as_product(cores, *self._layout())

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Multiply a batch by the matrix, from the cores; differentiable.

        Args:
            x: shape (..., inputs).
            bias: shape (outputs,), or None.

        Returns:
            Shape (..., outputs).

        Raises:
            RuntimeError: another number of inputs; torch's own message.
        """
        rows, cols = self.sites.shape
        if not x.dim() or x.shape[-1] != cols:
            return torch.nn.functional.linear(x, self.to_matrix(), bias)  # raises torch's error
        y = self.product(self.dtype)(x.reshape(-1, cols)).reshape(*x.shape[:-1], rows)
        return y if bias is None else y + bias.to(y.dtype)  # autocast may have given the product another dtype

    def dense(self) -> Tensor:
        """Return the dense weight in the shape of the replaced parameter: a new tensor, differentiable."""
        matrix = self.to_matrix()
        return matrix.T if self.transposed else matrix

    def forward(self) -> Tensor:
        """Return the dense weight; see `dense`."""
        return self.dense()

    def __repr__(self) -> str:
        """Show sites and bonds on one line."""
        rows, cols = tuple(self.sites.row_dims), tuple(self.sites.col_dims)
        transposed = ", transposed=True" if self.transposed else ""
        return f"MPOWeight(sites={rows}x{cols}, bonds={self.bonds}{transposed})"

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the module, or else of the dense weight."""
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
        """Call a function of torch with the dense weight; in `linear`, multiply from the cores."""
        if func is torch.nn.functional.linear:
            bound = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs or {})
            x, weight, bias = bound["input"], bound["weight"], bound.get("bias")
            if isinstance(weight, MPOWeight) and not weight.transposed and not isinstance(x, MPOWeight):
                return weight.linear(x, _dense(bias))
        return func(*_dense(args), **_dense(kwargs or {}))


def _dense(value: Any) -> Any:
    """Replace every MPO weight in a tree of arguments by its dense weight."""
    return map_leaves(lambda leaf: leaf.dense() if isinstance(leaf, MPOWeight) else leaf, value)


def _tensor_method(name: str) -> Callable[..., Any]:
    """Make a method that calls that of the dense weight."""

    def method(self: MPOWeight, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.dense(), name)(*_dense(args), **_dense(kwargs))

    return method


_OPERATORS = ("add", "sub", "mul", "truediv", "matmul", "pow")
_CONVERSIONS = ("to", "type", "float", "double", "half", "bfloat16", "cpu", "cuda")
for _name in (
    *(f"__{side}{name}__" for name in _OPERATORS for side in ("", "r")),
    *("__neg__", "__getitem__"),
    *_CONVERSIONS,  # those of a module would convert the cores during a forward pass
):
    setattr(MPOWeight, _name, _tensor_method(_name))
