"""Which module of a model becomes which MPO layer; and the change itself, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mpocompress.errors import ModelError
from mpocompress.layers.names import JOINT, joint_name
from mpocompress.modules.compatibility import Form, form_of, refused
from mpocompress.modules.name_matching import Placed, Slot, described
from mpocompress.modules.provenance import Record, remember
from mpocompress.mpo.mpo import MPO
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell, MPOWeight
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport
from mpocompress.text import shown


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewWeight:
    """A weight that takes the place of one parameter, or of the two of a joint matrix.

    Args:
        matrix: the matrix.
        place: what the file files it under there.
        slots: what it replaces, in the order of the members.
    """

    matrix: MatrixReport
    place: str
    slots: tuple[Slot, ...]

    @property
    def key(self) -> tuple[int, ...]:
        """Which parameters it replaces: equal wherever the same ones are."""
        return tuple(id(slot.tensor) for slot in self.slots)

    @property
    def like(self) -> Tensor:
        """The first of the parameters."""
        (tensor, *_) = (slot.tensor for slot in self.slots)
        if tensor is None:
            raise ValueError("an extra state is no weight")
        return tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """What becomes of one module.

    Args:
        path: where it is in the model, at one place at least.
        module: the module.
        form: what it is.
        weights: new name -> weight.
    """

    path: str
    module: nn.Module
    form: Form
    weights: Mapping[str, NewWeight]


def changes_for(members: Sequence[Placed]) -> tuple[Change, ...]:
    """What becomes of every module that has a weight to be replaced.

    Args:
        members: every such weight, under all its names.

    Returns:
        One change for every module.

    Raises:
        ModelError: a module that cannot have the cores meant for it.
    """
    by_module: dict[int, dict[str, Placed]] = {}
    for one in members:
        by_module.setdefault(id(one.slot.module), {})[one.slot.leaf] = one
    changes = tuple(map(_change, by_module.values()))
    _check_ties(changes)
    return changes


def _change(leaves: Mapping[str, Placed]) -> Change:
    """What becomes of one module."""
    first = next(iter(leaves.values()))
    path, module = first.slot.name.rpartition(".")[0], first.slot.module
    form = form_of(module, path)
    weights: dict[str, NewWeight] = {}
    for leaf, one in leaves.items():
        if len(one.matrix.members) == 1:
            weights[leaf] = NewWeight(matrix=one.matrix, place=one.name, slots=(one.slot,))
            continue
        inputs = leaf.replace("weight_hh", "weight_ih")
        pair = [leaves.get(inputs), leaves.get(inputs.replace("weight_ih", "weight_hh"))]
        sound = [
            two for place, two in enumerate(pair) if two is not None and (two.matrix, two.member) == (one.matrix, place)
        ]
        if len(sound) < len(pair) or form not in ("lstm", "lstm_cell"):
            raise _not_joint(path, module, one, tied=form in ("lstm", "lstm_cell"))
        weights[joint_name(inputs)] = NewWeight(
            matrix=one.matrix, place=joint_name(sound[0].name), slots=tuple(two.slot for two in sound)
        )
    for new in weights.values():
        _check_alike(new, path)
    transposed = {new.matrix.transposed for new in weights.values()}
    if form in ("lstm", "lstm_cell") and True in transposed:
        raise refused(
            path,
            f"{described(module)}, and cores of the transpose of its weight",
            "an LSTM multiplies with the weight itself",
            "Compress the original again, without having its weights taken for those of a Conv1D.",
        )
    if transposed != {form == "conv1d"} and form in ("linear", "conv1d"):
        form = "parameter"  # the file takes it for the other of the two: torch multiplies it out as it has to be
    return Change(path=path, module=module, form=form, weights=weights)


def made_weights(
    changes: Sequence[Change], mpos: Mapping[str, MPO], report: Report
) -> dict[tuple[int, ...], MPOWeight]:
    """The new weights: one wherever the same parameters are replaced, with the dtype and on the device of these.

    Args:
        changes: what becomes of the modules.
        mpos: name of the matrix -> its decomposition.
        report: what was done to the checkpoint.

    Returns:
        `NewWeight.key` -> weight, with memory of its own.

    Raises:
        ModelError: cores too large for the dtype.
    """
    made: dict[tuple[int, ...], MPOWeight] = {}
    for change in changes:
        for new in change.weights.values():
            if new.key in made:
                continue
            like, mpo = new.like, mpos[new.matrix.name]
            cores = tuple(
                core.to(like.device, like.dtype, copy=True, memory_format=torch.contiguous_format) for core in mpo.cores
            )
            if not all(core.isfinite().all() for core in cores):
                raise refused(
                    new.slots[0].name,
                    f"a parameter of {like.dtype}, and cores with numbers beyond it",
                    "they would become Inf",
                    "Load into a model of a wider dtype, such as torch.float32 or torch.bfloat16.",
                )
            weight = MPOWeight(
                MPO(cores=cores, sites=mpo.sites),
                transposed=new.matrix.transposed,
                requires_grad=isinstance(like, nn.Parameter) and like.requires_grad,
            )
            made[new.key] = remember(weight, Record(report=report, matrix=new.matrix, place=new.place))
    return made


@contextlib.contextmanager
def swapped(
    model: nn.Module,
    changes: Sequence[Change],
    weights: Mapping[tuple[int, ...], MPOWeight],
    execution: Execution,
) -> Iterator[nn.Module]:
    """Make the changes; when the body fails they are undone.

    Args:
        model: the model.
        changes: what becomes of its modules.
        weights: `NewWeight.key` -> weight.
        execution: how the new layers run.

    Yields:
        The model; a new layer if the model itself is one.
    """
    own = [{new: weights[one.key] for new, one in change.weights.items()} for change in changes]
    layers = {
        id(change.module): _layer(change, cores, execution)
        for change, cores in zip(changes, own, strict=True)
        if change.form != "parameter"
    }
    for module in model.modules():
        if type(module).__name__ == "OptimizedModule" and any(id(child) in layers for child in module.children()):
            raise refused(
                "", "a layer that torch.compile wraps", "what was compiled is the layer itself", "Compile after this."
            )
    before = [
        (module, dict(module._modules), dict(module._parameters), dict(module._buffers))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # nothing in it is ever changed
    ]
    try:
        for module, children, _, _ in before:
            for name, child in children.items():
                if id(child) in layers:
                    module._modules[name] = layers[id(child)]
        for change, cores in zip(changes, own, strict=True):
            for leaf, weight in cores.items() if change.form == "parameter" else ():
                delattr(change.module, leaf)
                setattr(change.module, leaf, weight)
        yield layers.get(id(model), model)
    except BaseException:
        for module, children, parameters, buffers in before:
            for held in (module._modules, module._parameters, module._buffers):
                held.clear()
            module._modules.update(children)
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        raise


def _layer(change: Change, weights: Mapping[str, MPOWeight], execution: Execution) -> nn.Module:
    """The layer that takes the place of a module; what stays dense is shared with it."""
    module = change.module
    if isinstance(module, nn.LSTM):
        return MPOLSTM.replacing(module, weights, execution=execution)
    if isinstance(module, nn.LSTMCell):
        return MPOLSTMCell.replacing(module, weights, execution=execution)
    (weight,) = weights.values()
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor) and is_lazy(bias):
        empty = torch.empty(weight.sites.shape[0], dtype=weight.dtype, device=weight.device)
        new = MPOLinear(weight, nn.Parameter(empty, requires_grad=bias.requires_grad), execution=execution)
        return new.train(module.training)
    return MPOLinear.replacing(module, weight, execution=execution)


def _check_alike(new: NewWeight, path: str) -> None:
    """Refuse parameters that one weight cannot stand for."""
    tensors = [slot.tensor for slot in new.slots if slot.tensor is not None]
    odd = next((tensor for tensor in tensors if not tensor.is_floating_point()), None)
    if odd is not None:
        raise refused(
            new.slots[0].name,
            f"a parameter of {odd.dtype}",
            "cores are floating point numbers",
            "Load into a model with floating-point weights.",
        )
    kinds = {(tensor.dtype, str(tensor.device), tensor.requires_grad) for tensor in tensors}
    if len(kinds) > 1:
        raise refused(
            path,
            f"{' and '.join(slot.leaf for slot in new.slots)} of different dtype, device or requires_grad",
            f"they are one matrix in the file, {shown(new.matrix.name)}",
            "Make them alike, or compress with lstm='separate'.",
        )


def _check_ties(changes: Sequence[Change]) -> None:
    """Refuse joint matrices of which one half is tied in the model, and the other not, or to something else."""
    keys: dict[int, NewWeight] = {}
    for change in changes:
        for new in change.weights.values():
            for slot in new.slots:
                other = keys.setdefault(id(slot.tensor), new)
                if other.key != new.key:
                    raise refused(
                        slot.name,
                        f"tied to {shown(other.slots[0].name)} in the model, but what it is joined with is not",
                        f"they are one matrix in the file, {shown(new.matrix.name)}",
                        "Expand the file, or compress with lstm='separate'.",
                    )


def _not_joint(path: str, module: nn.Module, one: Placed, *, tied: bool) -> ModelError:
    found = "of which only one is tied to this layer" if tied else f"and {described(module)}, which runs in its own way"
    return refused(
        path,
        f"a joint matrix of {' and '.join(map(shown, one.matrix.members))}, {found}",
        f"only nn.LSTM and nn.LSTMCell take {JOINT}, in the place of both weights",
        "Expand the file, or compress with lstm='separate'.",
    )
