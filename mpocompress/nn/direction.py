"""The weights of one direction of one level of an LSTM, dense or as cores, and what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.errors import ModelError
from mpocompress.layers.names import JOINT, LSTM_GATES
from mpocompress.nn.operands import Product, split_columns, split_layout
from mpocompress.nn.steps import Operands
from mpocompress.nn.weight import MPOWeight

Weight = Tensor | MPOWeight


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DirectionWeights:
    """Which weights a direction has: those of inputs and outputs apart, or one joint matrix.

    Args:
        inputs: weight_ih.
        hidden: weight_hh.
        joint: [weight_ih weight_hh], in the place of both.
        projection: weight_hr; None where the outputs are not projected.
        biases: bias_ih and bias_hh; empty where there are none.
        input_size: columns of weight_ih.
    """

    inputs: Weight | None
    hidden: Weight | None
    joint: MPOWeight | None
    projection: Weight | None
    biases: tuple[Tensor, ...]
    input_size: int

    @property
    def weights(self) -> tuple[Weight, ...]:
        """All of them but the biases."""
        return tuple(one for one in (self.joint, self.inputs, self.hidden, self.projection) if one is not None)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All parameters."""
        cores = (core for one in self.weights for core in (one.cores if isinstance(one, MPOWeight) else (one,)))
        return (*cores, *self.biases)

    @property
    def is_dense(self) -> bool:
        """Whether no weight is stored as cores."""
        return not any(isinstance(one, MPOWeight) for one in self.weights)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of weight_hh."""
        rows, columns = (self.joint if self.joint is not None else _given(self.hidden)).shape
        return rows, columns - self.input_size if self.joint is not None else columns

    def sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(multiplications for a row of a batch, entries of the operands) of the inputs' and the outputs' product."""
        if self.joint is not None:
            parts = split_layout(self.joint.layout, self.input_size)
            inputs, hidden = ((part.multiplications, part.operand_entries) for part in parts)
            return inputs, hidden
        return _size(self.inputs), _size(self.hidden)

    def operands(self, dtype: torch.dtype) -> Operands:
        """The operands, differentiable.

        Args:
            dtype: their dtype.

        Returns:
            What a sequence is run with.
        """
        if self.joint is not None:
            inputs, hidden = split_columns(self.joint.product(dtype), self.input_size)
        else:
            inputs, hidden = _product(self.inputs, dtype), _product(self.hidden, dtype)
        shared = self.joint is not None and self.joint.layout.is_low_rank
        rows = self.weights[0].shape[0]
        bias = sum(bias.to(dtype) for bias in self.biases) if self.biases else inputs.operands[0].new_zeros(rows)
        return Operands(
            inputs=inputs,
            hidden=hidden,
            bias=bias if isinstance(bias, Tensor) else inputs.operands[0].new_zeros(rows),
            projection=_product(self.projection, dtype) if self.projection is not None else None,
            shared=shared,
        )

    def dense(self) -> tuple[Tensor, ...]:
        """All weights multiplied out, differentiable.

        Returns:
            weight_ih, weight_hh, the biases if there are any, and weight_hr if there is one: as torch wants them.
        """
        if self.joint is not None:
            whole = self.joint.dense()
            inputs, hidden = whole[:, : self.input_size].contiguous(), whole[:, self.input_size :].contiguous()
        else:
            inputs, hidden = _matrix(self.inputs), _matrix(self.hidden)
        projection = () if self.projection is None else (_matrix(self.projection),)
        return (inputs, hidden, *self.biases, *projection)


def weights_of(
    tensors: Mapping[str, object], suffix: str, *, input_size: int, hidden_size: int, output_size: int
) -> DirectionWeights:
    """The weights of a direction, found by their names.

    Args:
        tensors: name -> weight or bias of the layer.
        suffix: what the names end with.
        input_size: columns of weight_ih.
        hidden_size: size of the cell state.
        output_size: columns of weight_hh.

    Returns:
        The weights.

    Raises:
        ModelError: a weight is missing, there twice, or of another shape.
    """
    rows, projects = LSTM_GATES * hidden_size, output_size != hidden_size
    wanted = {
        "joint": (rows, input_size + output_size),
        "ih": (rows, input_size),
        "hh": (rows, output_size),
        "hr": (output_size, hidden_size),
    }
    found: dict[str, Weight] = {}
    for part, shape in wanted.items():
        weight = tensors.get(f"weight_{part}{suffix}")
        if not isinstance(weight, Tensor | MPOWeight):
            continue
        if tuple(weight.shape) != shape or (part == "joint" and not isinstance(weight, MPOWeight)):
            raise ModelError(
                where=f"weight_{part}{suffix}",
                found=f"a weight of shape {tuple(weight.shape)}",
                why=f"this one has shape {shape}" + (", and is stored as cores" if part == "joint" else ""),
                action="Give that weight.",
            )
        found[part] = weight
    parts = {"joint"} if "joint" in found else {"ih", "hh"}
    if set(found) != parts | ({"hr"} if projects else set()):
        raise ModelError(
            where=f"LSTM weights ending in {suffix}" if suffix else "LSTM cell",
            found=", ".join(f"weight_{part}{suffix}" for part in found) or "none",
            why="there have to be weight_ih and weight_hh, or weight_joint in the place of both"
            + (", and weight_hr" if projects else ""),
            action="Give these.",
        )
    biases = (tensors.get(f"bias_{part}{suffix}") for part in ("ih", "hh"))
    joint = found.get("joint")
    return DirectionWeights(
        inputs=found.get("ih"),
        hidden=found.get("hh"),
        joint=joint if isinstance(joint, MPOWeight) else None,
        projection=found.get("hr"),
        biases=tuple(bias for bias in biases if isinstance(bias, Tensor)),
        input_size=input_size,
    )


def kept_of(layer: nn.Module, weights: Mapping[str, MPOWeight]) -> dict[str, Weight]:
    """The weights of the layer that takes the place of a dense one: those given, and what stays of the other.

    Args:
        layer: the dense one.
        weights: name -> weight.

    Returns:
        All of them.

    Raises:
        ModelError: a name that the layer does not have.
    """
    members = {
        name: [name.replace(JOINT, f"weight_{part}") for part in ("ih", "hh")] if name.startswith(JOINT) else [name]
        for name in weights
    }
    unknown = next((name for name, of in members.items() if not all(one in layer._parameters for one in of)), None)
    if unknown is not None or not weights:
        raise ModelError(
            where=type(layer).__name__,
            found=f"{unknown!r} among the weights" if weights else "no weights",
            why="it has " + ", ".join(name for name in layer._parameters if name.startswith("weight")),
            action="Give weights of the layer, by their names.",
        )
    gone = {one for of in members.values() for one in of}
    kept = {name: tensor for name, tensor in layer._parameters.items() if name not in gone and tensor is not None}
    return {**weights, **kept}


def _size(weight: Weight | None) -> tuple[int, int]:
    """Multiplications for a row of a batch, and entries of the operands."""
    weight = _given(weight)
    if isinstance(weight, MPOWeight):
        return weight.layout.multiplications, weight.layout.operand_entries
    return weight.numel(), weight.numel()


def _product(weight: Weight | None, dtype: torch.dtype) -> Product:
    weight = _given(weight)
    if isinstance(weight, MPOWeight):
        return weight.product(dtype)
    weight = weight if torch.is_grad_enabled() else weight.detach()  # a view would keep hold of the parameter
    return Product(operands=(weight.to(dtype).T,))


def _matrix(weight: Weight | None) -> Tensor:
    weight = _given(weight)
    return weight.dense() if isinstance(weight, MPOWeight) else weight


def _given(weight: Weight | None) -> Weight:
    """A weight that `weights_of` has seen to be there."""
    if weight is None:
        raise ValueError("a weight is missing")
    return weight
