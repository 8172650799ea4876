"""A Linear layer whose weight is a matrix product operator."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpocompress.errors import ModelError
from mpocompress.mpo.tracing import is_recorded
from mpocompress.nn.cache import Preparing
from mpocompress.nn.call_checks import needs_gradients
from mpocompress.nn.cost import TRAINED_PRODUCTS, product_seconds
from mpocompress.nn.execution import MODELLED, Candidate, Execution, ExecutionChoice, bucket, checked, choose, in_force
from mpocompress.nn.operands import Product
from mpocompress.nn.weight import MPOWeight

Run = Callable[[Tensor], Tensor]

FACTORISED, MATERIALISED = "factorised", "materialised"
CHUNK_ENTRIES = 2**18
"""Between the two products there are about this many numbers at a time, so that they stay in a cache."""
SMALLEST_CHUNK = 4
"""Fewer rows of a batch than these are not worth a product of their own."""
REORDERING_S = 1e-5
"""What moving the middle of the two products takes beside them."""
TRACED_ROWS = 256
"""A layer that is exported or compiled is taken to run on this many rows: how many come later is not known."""


class MPOLinear(Preparing, ExecutionChoice):
    """A Linear layer with cores in the place of its weight; it answers every call that `torch.nn.Linear` answers.

    Args:
        weight: the weight; one that is `transposed` stands for that of a Conv1D.
        bias: shape (out_features,), or None.
        execution: `factorised` runs with the cores, `materialised` multiplies them out once and runs as a dense layer,
            `auto` takes what is faster here.

    Raises:
        ModelError: a bias of another size.
        ExecutionError: an execution that there is not.

    Example:
        >>> import mpocompress
        >>> mpo = mpocompress.decompose(torch.randn(64, 128), truncation=mpocompress.Truncation(max_bond=8))
        >>> MPOLinear(MPOWeight(mpo))(torch.randn(3, 128)).shape
        torch.Size([3, 64])
    """

    bias: nn.Parameter | None

    def __init__(self, weight: MPOWeight, bias: Tensor | None = None, *, execution: Execution = "auto") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.sites.shape
        if bias is not None and bias.shape != (self.out_features,):
            raise ModelError(
                where="bias of a Linear layer",
                found=f"shape {tuple(bias.shape)}",
                why=f"the weight has {self.out_features} outputs",
                action="Give one number for every output.",
            )
        self.execution = checked(execution)
        self.weight = weight
        candidates = self._candidates(TRACED_ROWS, trained=False)
        self._traced_way = min(candidates, key=lambda way: candidates[way].modelled_s)
        self.register_parameter("bias", bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias))

    @staticmethod
    def replacing(layer: nn.Module, weight: MPOWeight, *, execution: Execution = "auto") -> MPOLinear:
        """Make the layer that takes the place of a dense one.

        Args:
            layer: a Linear or Conv1D layer; it is not changed. Its bias is shared.
            weight: its weight.
            execution: as for the class.

        Returns:
            The new layer, in training mode if the other is.

        Raises:
            ModelError: a weight or a bias of another size.
        """
        replaced = getattr(layer, "weight", None)
        if isinstance(replaced, Tensor) and tuple(replaced.shape) != tuple(weight.shape):
            raise ModelError(
                where=type(layer).__name__,
                found=f"a weight of shape {tuple(weight.shape)}",
                why=f"it takes the place of one of shape {tuple(replaced.shape)}",
                action="Give the weight of this layer.",
            )
        new = MPOLinear(weight, getattr(layer, "bias", None), execution=execution)
        new.train(layer.training)
        return new

    def forward(
        self,
        input: Tensor,  # noqa: A002 - shape: (..., in_features)
    ) -> Tensor:  # shape: (..., out_features)
        """Multiply with the weight and add the bias.

        Args:
            input: any number of dimensions, one at least.

        Returns:
            A new tensor.

        Raises:
            RuntimeError: another number of features, in torch's own words.
        """
        if is_recorded():
            way = self._traced_way if in_force(self.execution) in ("auto", MODELLED) else in_force(self.execution)
            return self._recorded(input, way)
        # A small layer takes two microseconds: nothing more than this is looked at when it has run before.
        store = self.__dict__["_store"]
        if not torch.is_grad_enabled() and store is not None and store.is_current():
            ready: Run | None = store.made.get(input.numel())
            if ready is not None:
                return ready(input)
        if needs_gradients(self, input):
            candidates = self._candidates(input.shape[:-1].numel(), trained=True)
            return self._recorded(input, choose(candidates, in_force(self.execution), "recorded"))
        store = self._current()
        with torch.autocast(input.device.type, enabled=False):  # what is made here outlives it
            run = store.made[input.numel()] = self._ready(input.to(self._dtype), store.made)
        return run(input)

    def extra_repr(self) -> str:
        """Sizes as torch shows them, and how it runs; sites and bonds stand with the weight."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"execution={self.execution}"
        )

    def _recorded(self, x: Tensor, way: str) -> Tensor:
        """Run differentiably, in plain calls of torch."""
        if way == MATERIALISED:
            return F.linear(x, self.weight.to_matrix(), self.bias)
        return self.weight.multiplied(x, self.bias)

    def _ready(self, x: Tensor, made: dict[Hashable, Any]) -> Run:
        """What runs inputs of this size without gradients."""
        rows = x.shape[:-1].numel()
        makers = {FACTORISED: self._factorised, MATERIALISED: self._materialised}
        runs: dict[str, Run] = {}

        def run(name: str) -> Tensor:
            if name not in runs:
                runs[name] = makers[name](made, rows)
            return runs[name](x)

        candidates = {
            name: Candidate(mode=one.mode, modelled_s=one.modelled_s, run=partial(run, name))
            for name, one in self._candidates(rows, trained=False).items()
        }
        kept = set(made)
        key = ("linear", bucket(rows), self.weight.sites, self.weight.bonds, x.dtype, x.device.type)
        name = choose(candidates, in_force(self.execution), key)
        for other in {FACTORISED, MATERIALISED} - kept - {name}:
            made.pop(other, None)  # made to be measured only
        return runs.get(name) or makers[name](made, rows)

    def _materialised(self, made: dict[Hashable, Any], rows: int) -> Run:
        """A dense layer."""
        if MATERIALISED not in made:
            made[MATERIALISED] = self.weight.to_matrix()
        weight, bias, linear = made[MATERIALISED], self.bias, F.linear
        return lambda x: linear(x, weight, bias)

    def _factorised(self, made: dict[Hashable, Any], rows: int) -> Run:
        """Two products, and between them no more numbers than stay in a cache."""
        if FACTORISED not in made:
            made[FACTORISED] = self.weight.product(self.weight.dtype)
        product: Product = made[FACTORISED]
        layout, (first, second) = self.weight.layout, product.operands
        bias, columns, outputs = self.bias, self.in_features, self.out_features
        if layout.is_low_rank:
            linear, wide, tall = F.linear, first.T, second.T
            return lambda x: linear(linear(x, wide), tall, bias)
        chunk = max(SMALLEST_CHUNK, CHUNK_ENTRIES // (layout.cols[0] * layout.rows[1] * layout.bond))

        def run(x: Tensor) -> Tensor:
            if not x.dim() or x.shape[-1] != columns:
                return F.linear(x, first.new_empty(outputs, columns))  # which says what is wrong
            flat = x.reshape(-1, columns)
            y = product(flat[:chunk])
            if len(flat) > chunk:
                whole = y.new_empty(len(flat), outputs)
                whole[:chunk] = y
                for start in range(chunk, len(flat), chunk):
                    whole[start : start + chunk] = product(flat[start : start + chunk])
                y = whole
            y = y.view(*x.shape[:-1], outputs)
            return y if bias is None else y.add_(bias)

        return run

    def _candidates(self, rows: int, *, trained: bool) -> dict[str, Candidate]:
        layout = self.weight.layout
        dense, itemsize = self.in_features * self.out_features, self.weight.dtype.itemsize
        cores = product_seconds(rows, layout.multiplications, layout.operand_entries, itemsize)
        cores += 0.0 if layout.is_low_rank else REORDERING_S
        whole = product_seconds(rows, dense, dense, itemsize)
        if trained:  # multiplied out at every call
            whole = TRAINED_PRODUCTS * (whole + product_seconds(layout.bond, dense, dense, itemsize))
            cores = TRAINED_PRODUCTS * cores
        return {
            FACTORISED: Candidate(mode=FACTORISED, modelled_s=cores),
            MATERIALISED: Candidate(mode=MATERIALISED, modelled_s=whole),
        }
