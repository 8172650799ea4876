"""Load a compressed file into a model: match its tensors, replace the compressed layers, load the rest."""

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
from mpocompress.compression.core_tensors import check_cores, stored_mpo
from mpocompress.compression.read_report import read_report
from mpocompress.errors import ModelError
from mpocompress.modules.compatibility import check_changeable, check_replaceable
from mpocompress.modules.name_matching import EXTRA_STATE, match_tensors, parameter_refs, stored_tensors
from mpocompress.modules.swap import new_weights, plan_replacements, replaced
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
    """Load a compressed checkpoint into a model: compressed layers become MPO layers, all other tensors are loaded.

    Everything is checked before anything is changed, and a later failure is undone: after an error the model is
    unchanged, in structure and in values.

    An `nn.LSTM`, `nn.LSTMCell`, `nn.Linear` or Conv1D becomes an `MPOLSTM`, `MPOLSTMCell` or `MPOLinear`. In a module
    with a forward of its own only the parameter is replaced, by an `MPOWeight`. Cores get the dtype, the device and the
    `requires_grad` of the parameter they replace. Cores are tied where the model ties parameters. Create the optimizer,
    compile, and wrap the model for several devices afterwards.

    Args:
        source: a file or folder that `compress` wrote, or an open checkpoint.
        model: the model that was compressed, with any values; the names may differ by a prefix, such as `module.`.
        strict: whether every name must be in both. If not, tensors that are in only one are left unchanged; compressed
            ones must be in both in any case.
        execution: how the new layers run: `auto`, `factorised` or `materialised`.

    Returns:
        The same model. If the model itself is a layer that is replaced, the new layer, which shares its biases.

    Raises:
        CheckpointError: the file cannot be read.
        FormatError: not a compressed file, or one that contradicts itself.
        ReportError: figures in it that do not add up.
        ModelError: the model does not fit the file, or its layers cannot be replaced.
        ExecutionError: an unknown execution.

    Example:
        >>> import mpocompress
        >>> net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
        >>> torch.save(net.state_dict(), "net.pt")
        >>> report = mpocompress.compress("net.pt", "small-net.pt", truncation=mpocompress.Truncation(max_bond=8))
        >>> load("small-net.pt", net)[0].weight.bonds
        (8,)
    """
    with contextlib.ExitStack() as stack:
        checkpoint = source if not isinstance(source, str | PathLike) else stack.enter_context(open_checkpoint(source))
        return load_into(checkpoint, model, strict=strict, execution=execution).model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """A model with the tensors of a compressed file.

    Args:
        model: the model.
        stored: name in the model -> name in the file, of the tensors that are stored dense.
    """

    model: nn.Module
    stored: Mapping[str, str]


def load_into(
    checkpoint: Checkpoint, model: nn.Module, *, strict: bool = True, execution: Execution = "auto"
) -> Loaded:
    """Load an open checkpoint as `load` does, and return the matching of names too.

    Args:
        checkpoint: the compressed file, open.
        model: the model.
        strict: as for `load`.
        execution: as for `load`.

    Raises:
        MPOCompressError: as for `load`.
    """
    execution = checked(execution)
    report = read_report(checkpoint, otherwise="Load it with model.load_state_dict, or compress it first.")
    where = checkpoint.path.name
    check_cores(report, checkpoint.tensors, where=where)
    check_changeable(model)
    extras = state_extras(checkpoint.extras, report.source.key)
    extra_states = {name: value for name, value in extras.items() if name.rpartition(".")[2] == EXTRA_STATE}
    stored = stored_tensors(report, checkpoint.tensors, extra_states)
    matching = match_tensors(stored, model, strict=strict, where=where, check=check_replaceable)
    replacements = plan_replacements(matching.weights)
    mpos = {matrix.name: stored_mpo(matrix, checkpoint.tensor, where=where) for matrix in report.compressed}
    values = {
        name: extra_states[stored_name] if stored_name in extra_states else checkpoint.tensor(stored_name)
        for name, stored_name in matching.dense.items()
    }
    weights = new_weights(replacements, mpos, report)
    overwritten = (ref.tensor for name, ref in parameter_refs(model).items() if name in values)
    with replaced(model, replacements, weights, execution) as new_model, _unchanged_on_error(overwritten):
        _materialise(new_model, values)
        _load_values(new_model, values, weights.values(), strict)
    return Loaded(model=new_model, stored=matching.dense)


@contextlib.contextmanager
def _unchanged_on_error(tensors: Iterable[Tensor | None]) -> Iterator[None]:
    """Restore the values of tensors if the body fails."""
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
    """Replace lazy tensors by plain ones; a lazy tensor that was initialised could not be restored on an error."""
    for path, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for leaf, tensor in tensors.items():
                value = values.get(f"{path}.{leaf}" if path else leaf)
                if tensor is None or value is None or not is_lazy(tensor):
                    continue
                empty = torch.empty(value.shape, dtype=tensor.dtype, device=tensor.device)
                is_parameter = isinstance(tensor, nn.Parameter)
                tensors[leaf] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty


def _load_values(model: nn.Module, values: Mapping[str, Any], weights: Iterable[MPOWeight], strict: bool) -> None:
    """Load the values with `load_state_dict`, which also calls the load hooks of modules."""
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
            why="a module in the model has its own way to load tensors",
            action="Fix the error above; the model is unchanged.",
        ) from error
