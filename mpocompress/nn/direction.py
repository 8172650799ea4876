"""The weights of one direction of one level of an LSTM, dense or as cores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.errors import ModelError
from mpocompress.layers.names import JOINT, LSTM_GATES
from mpocompress.nn.operands import Product, split_columns, split_layout
from mpocompress.nn.step_products import Operands
from mpocompress.nn.weight import MPOWeight

LayerWeight = Tensor | MPOWeight
"""A weight of a layer: dense, or as cores."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DirectionWeights:
    """The weights of one direction.

    Args:
        gates: weight_ih and weight_hh, or the joint matrix [weight_ih weight_hh].
        projection: weight_hr; None if the outputs are not projected.
        biases: bias_ih and bias_hh; empty without biases.
        input_size: columns of weight_ih.
    """

    gates: tuple[LayerWeight, LayerWeight] | MPOWeight
    projection: LayerWeight | None
    biases: tuple[Tensor, ...]
    input_size: int

    @property
    def weights(self) -> tuple[LayerWeight, ...]:
        """All weights except the biases."""
        gates = self.gates if isinstance(self.gates, tuple) else (self.gates,)
        return gates if self.projection is None else (*gates, self.projection)

    @property
    def is_dense(self) -> bool:
        """Whether no weight is stored as cores."""
        return not any(isinstance(weight, MPOWeight) for weight in self.weights)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of weight_hh."""
        if isinstance(self.gates, tuple):
            rows, columns = self.gates[1].shape
            return rows, columns
        rows, columns = self.gates.shape
        return rows, columns - self.input_size

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (multiplications for a row of a batch, entries of the operands) of both products of the gates."""
        if isinstance(self.gates, tuple):
            inputs, hidden = map(_size, self.gates)
        else:
            parts = split_layout(self.gates.layout, self.input_size)
            inputs, hidden = ((part.multiplications, part.operand_entries) for part in parts)
        return inputs, hidden

    def operands(self, dtype: torch.dtype) -> Operands:
        """Return the operands in a dtype; differentiable."""
        if isinstance(self.gates, tuple):
            inputs, hidden = (_product(weight, dtype) for weight in self.gates)
            is_shared = False
        else:
            inputs, hidden = split_columns(self.gates.product(dtype), self.input_size)
            is_shared = self.gates.layout.is_low_rank
        if self.biases:
            first, *others = (bias.to(dtype) for bias in self.biases)
            bias = sum(others, start=first)
        else:
            bias = inputs.operands[0].new_zeros(self.shape[0])
        return Operands(
            inputs=inputs,
            hidden=hidden,
            bias=bias,
            projection=_product(self.projection, dtype) if self.projection is not None else None,
            shared=is_shared,
        )

    def dense(self) -> tuple[Tensor, ...]:
        """Materialise all weights; differentiable.

        Returns:
            weight_ih, weight_hh, the biases if there are any, and weight_hr if there is one, in torch's order.
        """
        if isinstance(self.gates, tuple):
            inputs, hidden = map(_matrix, self.gates)
        else:
            joint = self.gates.dense()
            inputs, hidden = joint[:, : self.input_size].contiguous(), joint[:, self.input_size :].contiguous()
        projection = () if self.projection is None else (_matrix(self.projection),)
        return (inputs, hidden, *self.biases, *projection)


def weights_of(
    tensors: Mapping[str, object], suffix: str, *, input_size: int, hidden_size: int, output_size: int
) -> DirectionWeights:
    """Collect the weights of a direction by their names.

    Args:
        tensors: name -> weight or bias of the layer.
        suffix: end of the names.
        input_size: columns of weight_ih.
        hidden_size: size of the cell state.
        output_size: columns of weight_hh.

    Raises:
        ModelError: a weight is missing, given twice, or of another shape.
    """
    rows, is_projected = LSTM_GATES * hidden_size, output_size != hidden_size
    shapes = {
        "joint": (rows, input_size + output_size),
        "ih": (rows, input_size),
        "hh": (rows, output_size),
        "hr": (output_size, hidden_size),
    }
    weights: dict[str, LayerWeight] = {}
    for part, shape in shapes.items():
        weight = tensors.get(f"weight_{part}{suffix}")
        if not isinstance(weight, Tensor | MPOWeight):
            continue
        if tuple(weight.shape) != shape or (part == "joint" and not isinstance(weight, MPOWeight)):
            raise ModelError(
                where=f"weight_{part}{suffix}",
                found=f"a weight of shape {tuple(weight.shape)}",
                why=f"the layer has a weight of shape {shape} here" + (", stored as cores" if part == "joint" else ""),
                action="Give that weight.",
            )
        weights[part] = weight
    joint = weights.get("joint")
    expected = ({"ih", "hh"} if joint is None else {"joint"}) | ({"hr"} if is_projected else set())
    if set(weights) != expected:
        raise ModelError(
            where=f"LSTM weights ending in {suffix}" if suffix else "LSTM cell",
            found=", ".join(f"weight_{part}{suffix}" for part in weights) or "none",
            why="the layer needs weight_ih and weight_hh, or weight_joint instead of both"
            + (", and weight_hr" if is_projected else ""),
            action="Give these weights.",
        )
    biases = (tensors.get(f"bias_{part}{suffix}") for part in ("ih", "hh"))
    return DirectionWeights(
        gates=joint if isinstance(joint, MPOWeight) else (weights["ih"], weights["hh"]),
        projection=weights.get("hr"),
        biases=tuple(bias for bias in biases if isinstance(bias, Tensor)),
        input_size=input_size,
    )


def replace_weights(layer: nn.Module, weights: Mapping[str, MPOWeight]) -> dict[str, LayerWeight]:
    """Return the weights and biases of a dense layer, some of them replaced by MPO weights.

    Args:
        layer: the dense layer.
        weights: name -> MPO weight.

    Raises:
        ModelError: a name that the layer does not have, or no names.
    """
    members = {
        name: [name.replace(JOINT, f"weight_{part}") for part in ("ih", "hh")] if name.startswith(JOINT) else [name]
        for name in weights
    }
    unknown = next(
        (name for name, parts in members.items() if not all(part in layer._parameters for part in parts)), None
    )
    if unknown is not None or not weights:
        raise ModelError(
            where=type(layer).__name__,
            found=f"{unknown!r} among the weights" if weights else "no weights",
            why="the layer has " + ", ".join(name for name in layer._parameters if name.startswith("weight")),
            action="Give weights of the layer, by their names.",
        )
    replaced = {part for parts in members.values() for part in parts}
    kept = {name: tensor for name, tensor in layer._parameters.items() if name not in replaced and tensor is not None}
    return {**weights, **kept}


def _size(weight: LayerWeight) -> tuple[int, int]:
    """Return (multiplications for a row of a batch, entries of the operands)."""
    if isinstance(weight, MPOWeight):
        return weight.layout.multiplications, weight.layout.operand_entries
    return weight.numel(), weight.numel()


def _product(weight: LayerWeight, dtype: torch.dtype) -> Product:
    if isinstance(weight, MPOWeight):
        return weight.product(dtype)
    weight = weight if torch.is_grad_enabled() else weight.detach()  # a view would keep a reference to the parameter
    return Product(operands=(weight.to(dtype).T,))


def _matrix(weight: LayerWeight) -> Tensor:
    return weight.dense() if isinstance(weight, MPOWeight) else weight
