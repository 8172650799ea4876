"""A compressed file into the user's own module: checked as a whole, swapped, and filled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.contents.extras import state_extras
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.format import check_cores, stored_mpo
from mpocompress.compression.stored_report import stored_report
from mpocompress.errors import ModelError
from mpocompress.modules.compatibility import check_changeable, check_form
from mpocompress.modules.name_matching import EXTRA_STATE, held_by, place, slots_of
from mpocompress.modules.swap import changes_for, made_weights, swapped
from mpocompress.nn import Execution, MPOWeight
from mpocompress.nn.execution import checked
from mpocompress.text import shown


def load(
    source: str | PathLike[str] | Checkpoint,
    model: nn.Module,
    *,
    strict: bool = True,
    execution: Execution = "auto",
) -> nn.Module:
    """Put a compressed checkpoint into a model: compressed layers are swapped for MPO layers, all else is loaded.

    Everything is checked before anything is changed, and whatever fails later is undone: on an error the model is as it
    was, in structure and in values.

    An `nn.LSTM`, `nn.LSTMCell`, `nn.Linear` or Conv1D becomes an `MPOLSTM`, `MPOLSTMCell` or `MPOLinear`. A module with
    a forward of its own stays, and only its parameter is replaced, by an `MPOWeight`. Cores get the dtype, the device
    and the `requires_grad` of the parameter they replace. Where the model ties parameters, so are the cores. Make the
    optimizer, compile, and wrap the model for several devices afterwards.

    Args:
        source: a file or folder that `compress` wrote, or one that is open.
        model: the model that was compressed, with any values; the names may differ by a prefix, as `module.`.
        strict: whether every name has to be on both sides. Without, tensors that are on one side only are left as they
            are; compressed ones must have their place all the same.
        execution: how the new layers run: `auto`, `factorised` or `materialised`.

    Returns:
        The same model. A new layer only if the model itself is the layer that is swapped; it shares its biases with the
        one that was given.

    Raises:
        CheckpointError: the file cannot be read.
        FormatError: not a compressed file, or one that contradicts itself.
        ReportError: figures in it that do not add up.
        ModelError: the model is another one, or cannot have its layers replaced.
        ExecutionError: an execution that there is not.

    Example:
        >>> import mpocompress
        >>> net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        >>> torch.save(net.state_dict(), "net.pt")
        >>> report = mpocompress.compress("net.pt", "small-net.pt", truncation=mpocompress.Truncation(max_bond=8))
        >>> load("small-net.pt", net)[0].weight.bonds
        (8,)
    """
    with contextlib.ExitStack() as stack:
        opened = source if not isinstance(source, str | PathLike) else stack.enter_context(open_checkpoint(source))
        return loaded(opened, model, strict=strict, execution=execution).model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A model with what a compressed file holds.

    Args:
        model: the model.
        stored: name in the model -> name in the file, of what is stored as it is.
    """

    model: nn.Module
    stored: Mapping[str, str]


def loaded(checkpoint: Checkpoint, model: nn.Module, *, strict: bool = True, execution: Execution = "auto") -> Loaded:
    """Load as `load` does, and say where everything came from.

    Args:
        checkpoint: the compressed file, open.
        model: the model.
        strict: as for `load`.
        execution: as for `load`.

    Returns:
        The model, and its names in the file.

    Raises:
        MPOCompressError: as for `load`.
    """
    execution = checked(execution)
    report = stored_report(checkpoint, otherwise="Load it with model.load_state_dict, or compress it first.")
    where = checkpoint.path.name
    check_cores(report, checkpoint.tensors, where=where)
    check_changeable(model)
    beside = state_extras(checkpoint.extras, report.source.key)
    extra = {name: value for name, value in beside.items() if name.rpartition(".")[2] == EXTRA_STATE}
    placement = place(held_by(report, checkpoint.tensors, extra), model, strict=strict, where=where, check=check_form)
    changes = changes_for(placement.members)
    mpos = {matrix.name: stored_mpo(matrix, checkpoint.tensor, where=where) for matrix in report.compressed}
    values = {
        name: extra[stored] if stored in extra else checkpoint.tensor(stored)
        for name, stored in placement.stored.items()
    }
    weights = made_weights(changes, mpos, report)
    held = (slot.tensor for name, slot in slots_of(model).items() if name in values)
    with swapped(model, changes, weights, execution) as whole, _unchanged_on_error(held):
        _materialise(whole, values)
        _fill(whole, values, weights.values(), strict)
    return Loaded(model=whole, stored=placement.stored)


@contextlib.contextmanager
def _unchanged_on_error(tensors: Iterable[Tensor | None]) -> Iterator[None]:
    """Give tensors the values back that they had, when the body fails."""
    plain = {id(tensor): tensor for tensor in tensors if tensor is not None and not is_lazy(tensor)}.values()
    before = [(tensor, tensor.detach().clone()) for tensor in plain]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        raise


def _materialise(model: nn.Module, values: Mapping[str, Any]) -> None:
    """Put plain tensors in the place of lazy ones, which could not be made lazy again."""
    for path, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for leaf, tensor in tensors.items():
                value = values.get(f"{path}.{leaf}" if path else leaf)
                if tensor is None or value is None or not is_lazy(tensor):
                    continue
                empty = torch.empty(value.shape, dtype=tensor.dtype, device=tensor.device)
                is_parameter = isinstance(tensor, nn.Parameter)
                tensors[leaf] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty


def _fill(model: nn.Module, values: Mapping[str, Any], weights: Iterable[MPOWeight], strict: bool) -> None:
    """Load the values with torch's own function, so that modules with ways of their own are asked."""
    new = {id(weight) for weight in weights}
    cores = {
        f"{path}.core.{site}": core.detach()
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, MPOWeight) and id(module) in new
        for site, core in enumerate(module.cores)
    }
    try:
        model.load_state_dict({**values, **cores}, strict=strict)
    except RuntimeError as error:
        raise ModelError(
            where=type(model).__name__,
            found=f"load_state_dict refused the tensors ({shown(str(error))})",
            why="a module in it loads in a way of its own",
            action="Mend that; the model is as it was.",
        ) from error
