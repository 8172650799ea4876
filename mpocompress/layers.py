"""Compressible layers as names and shapes: which tensors form which matrix. No tensor is held here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LayerKind = Literal["lstm", "lstm_cell", "linear", "conv1d"]
KindFrom = Literal["as asked", "recorded class", "model", "config", "name and shape"]
"""From where it is known what a layer is, the surest first."""

LSTM_GATES = 4
MIN_SIDE = 64
"""Matrices with a side below this stay dense by default: truncating a small output layer like the rest ruins models."""
JOINT = "weight_joint"
"""Stands for `weight_ih` and `weight_hh` in the name of a joint matrix."""

RECURRENT = re.compile(r"^(?:(?P<layer>.*)\.)?weight_(?P<part>ih|hh|hr)(?P<level>_l\d+)?(?P<reverse>_reverse)?$")
"""The names that PyTorch gives to the weights of LSTM, GRU and RNN layers and cells."""

_LEVEL = re.compile(r"_l(\d+)(?:_reverse)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One tensor of a checkpoint that takes part in a matrix.

    Args:
        name: its name in the state dict.
        shape: (rows, columns) in the matrix, rows being outputs.
        dtype: name of its dtype, as `float32`.
        transposed: whether the file holds it as (columns, rows).
        aliases: its other names, where it is tied.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    transposed: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything a pattern may call it by: its names, and of the others also their modules."""
        modules = (alias.rpartition(".")[0] for alias in self.aliases)
        return (self.name, *self.aliases, *(module for module in modules if module))


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSpec:
    """One matrix to decompose: a tensor, or several side by side that share their rows.

    Args:
        name: what its cores are filed under: the tensor's own name, or that of the joint matrix.
        members: the tensors, left to right.
        kind_from: from where it is known what its layer is.

    Example:
        >>> ih = Member(name="lstm.weight_ih_l0", shape=(1024, 28), dtype="float32")
        >>> hh = Member(name="lstm.weight_hh_l0", shape=(1024, 256), dtype="float32")
        >>> MatrixSpec(name=joint_name(ih.name), members=(ih, hh)).shape
        (1024, 284)
    """

    name: str
    members: tuple[Member, ...]
    kind_from: KindFrom = "name and shape"

    @property
    def transposed(self) -> bool:
        """Whether the file holds the matrix as (columns, rows)."""
        return self.members[0].transposed

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the matrix."""
        return self.members[0].shape[0], sum(member.shape[1] for member in self.members)

    @property
    def dense_parameters(self) -> int:
        """Number of entries."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer, or one level and direction of a stacked LSTM, with the ways its weights can be put into matrices.

    Args:
        name: path of the module in the model; empty for the model itself.
        kind: what it is.
        forms: alternatives, each a set of matrices that holds all compressible tensors of the layer once.
    """

    name: str
    kind: LayerKind
    forms: tuple[tuple[MatrixSpec, ...], ...]

    @property
    def dense_parameters(self) -> int:
        """Number of entries of its compressible tensors."""
        return sum(matrix.dense_parameters for matrix in self.forms[0])


def is_recurrent(name: str) -> bool:
    """Whether a tensor has the name of a weight of an LSTM, GRU or RNN.

    Args:
        name: its name.

    Returns:
        Whether it does.

    Example:
        >>> is_recurrent("encoder.weight_hh_l0_reverse"), is_recurrent("fc.weight")
        (True, False)
    """
    return RECURRENT.match(name) is not None


def is_projection(name: str) -> bool:
    """Whether a tensor has the name of the projection of an LSTM, the one weight whose rows are not those of its gates.

    Args:
        name: its name.

    Returns:
        Whether it does.

    Example:
        >>> is_projection("encoder.weight_hr_l0"), is_projection("encoder.weight_hh_l0")
        (True, False)
    """
    match = RECURRENT.match(name)
    return match is not None and match["part"] == "hr"


def core_name(matrix: str, site: int) -> str:
    """Name of one core in a compressed checkpoint.

    Args:
        matrix: name of the matrix.
        site: number of the site, from 0.

    Returns:
        The name.

    Example:
        >>> core_name("lstm.weight_hh_l0", 1)
        'lstm.weight_hh_l0.core.1'
    """
    return f"{matrix}.core.{site}"


def scale_name(core: str) -> str:
    """Name of the scales of an int8 core.

    Args:
        core: name of the core.

    Returns:
        The name.

    Example:
        >>> scale_name("fc.weight.core.0")
        'fc.weight.core.0.scale'
    """
    return f"{core}.scale"


def joint_name(weight_ih: str) -> str:
    """Name of the joint matrix [W_ih W_hh] of an LSTM layer.

    Args:
        weight_ih: name of its input-to-hidden weight.

    Returns:
        The name, with `weight_joint` in place of `weight_ih`.

    Example:
        >>> joint_name("encoder.weight_ih_l0_reverse")
        'encoder.weight_joint_l0_reverse'
    """
    head, _, tail = weight_ih.rpartition("weight_ih")
    return f"{head}{JOINT}{tail}"


def first_in_stacks(layers: Sequence[LayerSpec]) -> tuple[tuple[int, ...], ...]:
    """The layers that come first in a stack of numbered ones, told from their names.

    A stack is what differs in one number: the levels of an LSTM (`weight_hh_l0`, `weight_hh_l1`), or modules such as
    `encoder.layer.0` and `encoder.layer.1`. Of nested stacks the outermost counts.

    Args:
        layers: the layers, in file order.

    Returns:
        For every stack of two or more, the positions in `layers` of those with the lowest number.

    Example:
        >>> weight = Member(name="net.0.weight", shape=(8, 8), dtype="float32")
        >>> first, second = (
        ...     LayerSpec(name=name, kind="linear", forms=((MatrixSpec(name=f"{name}.weight", members=(weight,)),),))
        ...     for name in ("net.0", "net.2")
        ... )
        >>> first_in_stacks([first, second])
        ((0,),)
    """
    depths: dict[str, set[int]] = {}
    for layer in layers:
        for stack, depth in _numbers(layer):
            depths.setdefault(stack, set()).add(depth)
    first: dict[str, list[int]] = {}
    for position, layer in enumerate(layers):
        outermost = next(((stack, depth) for stack, depth in _numbers(layer) if len(depths[stack]) > 1), None)
        if outermost is not None and outermost[1] == min(depths[outermost[0]]):
            first.setdefault(outermost[0], []).append(position)
    return tuple(tuple(positions) for positions in first.values())


def _numbers(layer: LayerSpec) -> list[tuple[str, int]]:
    """The stacks a layer may belong to and its number in each, outermost first."""
    parts = layer.name.split(".")
    found = [(".".join(parts[:place]), int(part)) for place, part in enumerate(parts) if part.isdecimal()]
    level = _LEVEL.search(layer.forms[0][0].name)
    return found if level is None else [*found, (f"{layer.name} levels", int(level[1]))]
