"""A Linear layer whose weight is a matrix product operator."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from mpocompress.errors import ModelError
from mpocompress.mpo.tracing import is_recorded
from mpocompress.nn.call_checks import needs_gradients
from mpocompress.nn.cost import TRAINED_PRODUCTS, product_seconds
from mpocompress.nn.execution import MODELLED, Candidate, Execution, bucket, checked, choose, in_force
from mpocompress.nn.layer import MPOLayer
from mpocompress.nn.operands import Product
from mpocompress.nn.weight import MPOWeight

LinearFunction = Callable[[Tensor], Tensor]
Variant = Literal["factorised", "materialised"]

CHUNK_ENTRIES = 2**18
"""Intermediate entries between the two products at a time, so that they stay in a cache."""
SMALLEST_CHUNK = 4
"""Fewest rows of a batch for which a separate product is worthwhile."""
REORDERING_S = 1e-5
"""Seconds of reordering between the two products."""
TRACED_ROWS = 256
"""Assumed number of rows of a layer that is exported or compiled, because the actual number is not known."""


class MPOLinear(MPOLayer):
    """A Linear layer whose weight is stored as cores; it accepts the arguments of `torch.nn.Linear`.

    Args:
        weight: the weight; a `transposed` one is that of a Conv1D.
        bias: shape (out_features,), or None.
        execution: `factorised` runs from the cores, `materialised` contracts them once and runs as a dense layer,
            `auto` runs the faster of both.

    Raises:
        ModelError: a bias of another size.
        ExecutionError: unknown execution mode.

    Example:
        >>> import mpocompress
        >>> mpo = mpocompress.decompose(torch.randn(64, 128), truncation=mpocompress.Truncation(max_bond=8))
        >>> MPOLinear(MPOWeight(mpo))(torch.randn(3, 128)).shape
        torch.Size([3, 64])
    """

    __module__ = "mpocompress"

    bias: nn.Parameter | None

    def __init__(self, weight: MPOWeight, bias: Tensor | None = None, *, execution: Execution = "auto") -> None:
        super().__init__()
        self.out_features, self.in_features = weight.sites.shape
        if bias is not None and bias.shape != (self.out_features,):
            raise ModelError(
                where="bias of a Linear layer",
                found=f"shape {tuple(bias.shape)}",
                why=f"the weight has {self.out_features} outputs",
                action="Give one entry for every output.",
            )
        self.execution = checked(execution)
        self.weight = weight
        candidates = self._candidates(TRACED_ROWS, trained=False)
        self._traced_variant = min(candidates, key=lambda name: candidates[name].modelled_s)
        self.register_parameter("bias", bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias))

    @staticmethod
    def replacing(layer: nn.Module, weight: MPOWeight, *, execution: Execution = "auto") -> MPOLinear:
        """Make an MPO layer from a dense one.

        Args:
            layer: a Linear or Conv1D layer; it is not changed. Its bias is shared.
            weight: the weight.
            execution: as for the class.

        Returns:
            The new layer, in training mode if `layer` is.

        Raises:
            ModelError: a weight or a bias of another size.
        """
        replaced = getattr(layer, "weight", None)
        if isinstance(replaced, Tensor) and tuple(replaced.shape) != tuple(weight.shape):
            raise ModelError(
                where=type(layer).__name__,
                found=f"a weight of shape {tuple(weight.shape)}",
                why=f"it replaces one of shape {tuple(replaced.shape)}",
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
            input: at least one dimension.

        Raises:
            RuntimeError: another number of features; torch's own message.
        """
        if is_recorded():
            execution = in_force(self.execution)
            return self._recorded(input, self._traced_variant if execution in ("auto", MODELLED) else execution)
        # A small layer takes two microseconds: an input size that has run before needs no other checks.
        cache = self.__dict__["_cache"]
        if not torch.is_grad_enabled() and cache is not None and cache.is_current():
            cached: LinearFunction | None = cache.values.get(input.numel())
            if cached is not None:
                return cached(input)
        if needs_gradients(self, input):
            candidates = self._candidates(input.shape[:-1].numel(), trained=True)
            return self._recorded(input, choose(candidates, in_force(self.execution), "recorded"))
        cache = self._current_cache()
        with torch.autocast(input.device.type, enabled=False):  # cached values are used outside of autocast too
            function = cache.values[input.numel()] = self._function_for(input.to(self._dtype), cache.values)
        return function(input)

    def extra_repr(self) -> str:
        """Return sizes as torch does, and the execution mode; sites and bonds are shown with the weight."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"execution={self.execution}"
        )

    def _recorded(self, x: Tensor, variant: str) -> Tensor:
        """Run in plain calls of torch; differentiable."""
        if variant == "materialised":
            return F.linear(x, self.weight.to_matrix(), self.bias)
        return self.weight.linear(x, self.bias)

    def _function_for(self, x: Tensor, cache: dict[Hashable, Any]) -> LinearFunction:
        """Return the function that runs inputs of this size without gradients."""
        rows = x.shape[:-1].numel()
        makers = {"factorised": self._factorised, "materialised": self._materialised}
        functions: dict[Variant, LinearFunction] = {}

        def run(name: Variant) -> Tensor:
            if name not in functions:
                functions[name] = makers[name](cache)
            return functions[name](x)

        candidates = {
            name: replace(candidate, run=partial(run, name))
            for name, candidate in self._candidates(rows, trained=False).items()
        }
        before = set(cache)
        key = ("linear", bucket(rows), self.weight.sites, self.weight.bonds, x.dtype, x.device.type)
        chosen = choose(candidates, in_force(self.execution), key)
        for other in makers.keys() - before - {chosen}:
            cache.pop(other, None)  # made only to be measured
        return functions.get(chosen) or makers[chosen](cache)

    def _materialised(self, cache: dict[Hashable, Any]) -> LinearFunction:
        """Make the function of a dense layer."""
        if "materialised" not in cache:
            cache["materialised"] = self.weight.to_matrix()
        weight, bias, linear = cache["materialised"], self.bias, F.linear
        return lambda x: linear(x, weight, bias)

    def _factorised(self, cache: dict[Hashable, Any]) -> LinearFunction:
        """Make the function of two products, on chunks of rows whose intermediate result stays in a cache."""
        if "factorised" not in cache:
            cache["factorised"] = self.weight.product(self.weight.dtype)
        product: Product = cache["factorised"]
        layout, (first, second) = self.weight.layout, product.operands
        bias, columns, outputs = self.bias, self.in_features, self.out_features
        if layout.is_low_rank:
            linear, wide, tall = F.linear, first.T, second.T
            return lambda x: linear(linear(x, wide), tall, bias)
        chunk = max(SMALLEST_CHUNK, CHUNK_ENTRIES // (layout.cols[0] * layout.rows[1] * layout.bond))

        def run(x: Tensor) -> Tensor:
            if not x.dim() or x.shape[-1] != columns:
                return F.linear(x, first.new_empty(outputs, columns))  # raises torch's error
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

    def _candidates(self, rows: int, *, trained: bool) -> dict[Variant, Candidate]:
        layout = self.weight.layout
        dense, itemsize = self.in_features * self.out_features, self.weight.dtype.itemsize
        factorised_s = product_seconds(rows, layout.multiplications, layout.operand_entries, itemsize)
        factorised_s += 0.0 if layout.is_low_rank else REORDERING_S
        materialised_s = product_seconds(rows, dense, dense, itemsize)
        if trained:  # the cores are contracted at every call
            contraction_s = product_seconds(layout.bond, dense, dense, itemsize)
            materialised_s = TRAINED_PRODUCTS * (materialised_s + contraction_s)
            factorised_s = TRAINED_PRODUCTS * factorised_s
        return {
            "factorised": Candidate(mode="factorised", modelled_s=factorised_s),
            "materialised": Candidate(mode="materialised", modelled_s=materialised_s),
        }
