"""Which tensor of a model each tensor of a compressed file is for; everything is told before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mpocompress.checkpoint import TensorInfo
from mpocompress.errors import ModelError
from mpocompress.layers.kinds import full_name, short_class
from mpocompress.nn import MPOLSTM, MPOLinear, MPOLSTMCell, MPOWeight
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport
from mpocompress.text import listed, shown
from mpocompress.user.name_alignment import common_prefixes, map_names, rename

EXTRA_STATE = "_extra_state"
"""What torch files the extra state of a module under."""
_MOST_SHOWN = 5

MPOLayer = MPOLSTM | MPOLSTMCell | MPOLinear


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slot:
    """A name of a model and what goes by it.

    Args:
        name: as in the state dict of the model.
        module: whose it is.
        leaf: the last word of the name.
        tensor: the parameter or buffer; None for the extra state of a module.
    """

    name: str
    module: nn.Module
    leaf: str
    tensor: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a compressed file holds for one name of the dense model.

    Args:
        shape: shape of the dense tensor.
        matrix: the compressed matrix it is a member of; None for what is stored as it is.
        member: its number among the members.
        stored: the name it is stored under; empty for members.
    """

    shape: tuple[int, ...]
    matrix: MatrixReport | None = None
    member: int = 0
    stored: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """A weight of a model that is to be replaced by cores.

    Args:
        slot: where it is.
        matrix: the matrix that it is a member of.
        member: its number among the members.
        name: what the file calls it.
    """

    slot: Slot
    matrix: MatrixReport
    member: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """Where everything goes.

    Args:
        members: every weight that is replaced by cores.
        stored: name in the model -> the name that its new value is stored under.
    """

    members: tuple[Placed, ...]
    stored: Mapping[str, str]


def held_by(report: Report, tensors: Mapping[str, TensorInfo], extra: Collection[str] = ()) -> dict[str, Held]:
    """What a compressed file holds, by the names of the dense model; tied names included.

    Args:
        report: the report inside the file.
        tensors: the tensors of the file.
        extra: names of extra states beside them.

    Returns:
        Name -> what is held for it, in file order.
    """
    cores = {name: matrix for matrix in report.compressed for name in (*matrix.core_names, *matrix.scale_names)}
    held: dict[str, Held] = {}
    for name, info in tensors.items():
        matrix = cores.get(name)
        if matrix is None:
            held[name] = Held(shape=info.shape, stored=info.alias_of or name)
            continue
        for number, (member, columns) in enumerate(zip(matrix.members, matrix.member_columns, strict=True)):
            shape = (matrix.shape[0], columns)
            held[member] = Held(shape=shape[::-1] if matrix.transposed else shape, matrix=matrix, member=number)
    for alias, name in report.aliases.items():
        if name in held:
            held.setdefault(alias, held[name])
    return held | {name: Held(shape=(), stored=name) for name in extra}


def slots_of(model: nn.Module) -> dict[str, Slot]:
    """Every tensor of a model that its state dict has; what is shared comes under each of its names.

    Args:
        model: the model.

    Returns:
        Name -> slot.

    Example:
        >>> list(slots_of(nn.Linear(2, 3)))
        ['weight', 'bias']
    """
    slots: dict[str, Slot] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        head = f"{path}." if path else ""
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and leaf not in module._non_persistent_buffers_set:
                slots[head + leaf] = Slot(name=head + leaf, module=module, leaf=leaf, tensor=tensor)
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            slots[head + EXTRA_STATE] = Slot(name=head + EXTRA_STATE, module=module, leaf=EXTRA_STATE, tensor=None)
    return slots


def place(
    held: Mapping[str, Held],
    model: nn.Module,
    *,
    strict: bool,
    where: str,
    check: Callable[[Placed], None],
) -> Placement:
    """Find the place of every tensor of a compressed file in a model.

    Args:
        held: as `held_by` gives it.
        model: the model.
        strict: whether every name has to be on both sides.
        where: the file, for messages.
        check: refuses a weight that its module cannot have as cores.

    Returns:
        The places; a name that the file lacks but whose tensor goes by another one, too, is among them.

    Raises:
        ModelError: a weight that is compressed has no place, a shape is another one, one parameter would have two
            values, or, if `strict`, a name is on one side only.
    """
    slots = slots_of(model)
    prefixes = _prefixes(held, slots)
    if prefixes is None:
        raise ModelError(
            where=where,
            found=f"tensors such as {listed(held, _MOST_SHOWN) or 'none'}",
            why=f"none of them is in the model, which has {listed(slots, _MOST_SHOWN) or 'none'}",
            action="Give a model of the kind that was compressed.",
        )
    found = map_names(held, slots, prefixes)
    homeless = next((name for name, one in held.items() if one.matrix is not None and name not in found), None)
    if homeless is not None:
        raise _homeless(homeless, rename(homeless, prefixes), model)
    members = _members(held, found, slots)
    for one in members:
        check(one)
    _check_shapes(held, found, slots)
    stored = _stored(held, found, slots, members)
    taken = {*stored, *(one.slot.name for one in members)}
    missing = [name for name in slots if name not in taken]
    unexpected = [name for name in held if name not in found]
    if strict and (missing or unexpected):
        sides = [f"only in the model: {listed(missing, _MOST_SHOWN)}"] if missing else []
        sides += [f"only in the file: {listed(unexpected, _MOST_SHOWN)}"] if unexpected else []
        raise ModelError(
            where=where,
            found="; ".join(sides),
            why="every tensor has to be in both",
            action="Build the model that was compressed, or load with strict=False to leave these as they are.",
        )
    return Placement(members=members, stored=stored)


def _prefixes(held: Mapping[str, Held], slots: Mapping[str, Slot]) -> tuple[str, str] | None:
    """The prefixes under which most shapes agree; where none does, most names."""

    def fits(name: str, other: str) -> bool:
        return _fits(held[name].shape, slots[other].tensor)

    return common_prefixes(held, slots, fits) or common_prefixes(held, slots, lambda name, other: True)


def _members(held: Mapping[str, Held], found: Mapping[str, str], slots: Mapping[str, Slot]) -> tuple[Placed, ...]:
    """The weights that are replaced, under all names of each."""
    called = {other: name for name, other in found.items()}
    homes: dict[int, tuple[Held, str]] = {}
    for name, other in found.items():
        if held[name].matrix is not None:
            homes.setdefault(id(slots[other].tensor), (held[name], name))
    members = []
    for other, slot in slots.items():
        known, first = homes.get(id(slot.tensor), (None, ""))
        if known is None or known.matrix is None:
            continue
        name = called.get(other, first)
        if held[name] != known:
            raise _one_parameter(found[first], other)
        members.append(Placed(slot=slot, matrix=known.matrix, member=known.member, name=name))
    return tuple(members)


def _stored(
    held: Mapping[str, Held], found: Mapping[str, str], slots: Mapping[str, Slot], members: Iterable[Placed]
) -> dict[str, str]:
    """Name in the model -> name in the file of what is stored as it is; also where the file leaves a tied name out."""
    stored = {other: held[name].stored for name, other in found.items() if held[name].matrix is None}
    values = {id(slots[other].tensor): kept for other, kept in stored.items() if slots[other].tensor is not None}
    tied = {other: values[id(slot.tensor)] for other, slot in slots.items() if id(slot.tensor) in values}
    return {**tied, **stored}


def _check_shapes(held: Mapping[str, Held], found: Mapping[str, str], slots: Mapping[str, Slot]) -> None:
    others = [(name, other) for name, other in found.items() if not _fits(held[name].shape, slots[other].tensor)]
    if not others:
        return
    name, other = others[0]
    tensor = slots[other].tensor
    raise ModelError(
        where=shown(other),
        found=f"shape {tuple(tensor.shape) if tensor is not None else ()} in the model, {held[name].shape} in the file"
        + (f", and {len(others) - 1} more that differ" if len(others) > 1 else ""),
        why="a model takes only tensors of its own shapes",
        action="Build the model with the sizes that were compressed.",
    )


def _fits(shape: tuple[int, ...], tensor: Tensor | None) -> bool:
    """Whether a value of a shape can be loaded; a lazy parameter takes any, and a scalar what torch takes for one."""
    return tensor is None or is_lazy(tensor) or shape == tuple(tensor.shape) or (shape == (1,) and tensor.dim() == 0)


def _homeless(name: str, wanted: str | None, model: nn.Module) -> ModelError:
    """The error for a compressed weight that the model has not."""
    path, _, leaf = (wanted or name).rpartition(".")
    module = dict(model.named_modules(remove_duplicate=False)).get(path) if wanted else None
    if module is None:
        found, action = "no such module in the model", "Give a model of the kind that was compressed."
    elif isinstance(module, MPOLayer) or isinstance(module._modules.get(leaf), MPOWeight):
        found = f"{described(module)} that holds cores already"
        action = "Load into a new model; or use load_state_dict, where the cores have the same shapes."
    else:
        found = f"{described(module)} without a parameter {shown(leaf)}"
        action = "Give a model of the kind that was compressed."
    return ModelError(
        where=shown(path if module is not None and path else wanted or name),
        found=found,
        why=f"the cores of {shown(name)} have no place to go",
        action=action,
    )


def _one_parameter(first: str, second: str) -> ModelError:
    return ModelError(
        where=shown(second),
        found=f"the same parameter as {shown(first)} in the model",
        why="they are two in the file, of which one at least is compressed",
        action="Untie them in the model, or tie them before compressing.",
    )


def described(module: nn.Module) -> str:
    """A module by its class, for a message.

    Args:
        module: the module.

    Returns:
        Text such as `an nn.GRU`.

    Example:
        >>> described(nn.GRU(2, 3))
        'an nn.GRU'
    """
    name = short_class(full_name(type(module)))
    return f"{'an' if name.startswith(('nn.', *'aeiouAEIOU')) else 'a'} {shown(name)}"
