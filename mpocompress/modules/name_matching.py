"""Match stored tensors to model parameters; nothing is modified here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.errors import ModelError
from mpocompress.layers.kinds import full_name, short_class
from mpocompress.layers.specs import member_shapes
from mpocompress.nn import MPOWeight
from mpocompress.nn.layer import MPOLayer
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport
from mpocompress.text import listed, shown
from mpocompress.user.name_alignment import common_prefixes, map_names, rename

EXTRA_STATE = "_extra_state"
"""Name of the extra state of a module in a state dict of torch."""
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ParameterRef:
    """A parameter, buffer or extra state of a model, under one of its names.

    Args:
        name: its name in the state dict of the model.
        module: the module that has it.
        leaf: the last part of the name.
        tensor: the parameter or buffer; None for the extra state of a module.
    """

    name: str
    module: nn.Module
    leaf: str
    tensor: Tensor | None

    @property
    def module_path(self) -> str:
        """Path of the module in the model."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """What a compressed file stores for one name of the dense model.

    Args:
        shape: shape of the dense tensor.
        matrix: the compressed matrix it is a member of; None if the tensor is stored dense.
        member: its index among the members.
        stored_name: the name of the dense tensor in the file; empty for members.
    """

    shape: tuple[int, ...]
    matrix: MatrixReport | None = None
    member: int = 0
    stored_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
    """A weight of a model that cores will replace.

    Args:
        ref: the parameter.
        matrix: the compressed matrix it is a member of.
        member: its index among the members.
        stored_name: its name in the file.
    """

    ref: ParameterRef
    matrix: MatrixReport
    member: int
    stored_name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matching:
    """The stored tensors of a file, matched to the parameters of a model.

    Args:
        weights: every weight that cores will replace.
        dense: name in the model -> name in the file, of the tensors that are stored dense.
    """

    weights: tuple[Match, ...]
    dense: Mapping[str, str]


def stored_tensors(
    report: Report, infos: Mapping[str, TensorInfo], extra_states: Collection[str] = ()
) -> dict[str, StoredTensor]:
    """Return what a compressed file stores, by the names of the dense model, tied names included.

    Args:
        report: the report inside the file.
        infos: the tensors of the file.
        extra_states: names of extra states in the file.

    Returns:
        Name -> stored tensor, in file order.
    """
    cores = {name: matrix for matrix in report.compressed for name in (*matrix.core_names, *matrix.scale_names)}
    stored: dict[str, StoredTensor] = {}
    for name, info in infos.items():
        matrix = cores.get(name)
        if matrix is None:
            stored[name] = StoredTensor(shape=info.shape, stored_name=info.alias_of or name)
            continue
        for index, (member, shape) in enumerate(member_shapes(matrix).items()):
            stored[member] = StoredTensor(shape=shape, matrix=matrix, member=index)
    for alias, name in report.aliases.items():
        if name in stored:
            stored.setdefault(alias, stored[name])
    return stored | {name: StoredTensor(shape=(), stored_name=name) for name in extra_states}


def parameter_refs(model: nn.Module) -> dict[str, ParameterRef]:
    """Return every entry of the state dict of a model; shared tensors appear under each of their names.

    Args:
        model: the model.

    Example:
        >>> list(parameter_refs(nn.Linear(2, 3)))
        ['weight', 'bias']
    """
    refs: dict[str, ParameterRef] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        head = f"{path}." if path else ""
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and leaf not in module._non_persistent_buffers_set:
                refs[head + leaf] = ParameterRef(name=head + leaf, module=module, leaf=leaf, tensor=tensor)
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            name = head + EXTRA_STATE
            refs[name] = ParameterRef(name=name, module=module, leaf=EXTRA_STATE, tensor=None)
    return refs


def match_tensors(
    stored: Mapping[str, StoredTensor],
    model: nn.Module,
    *,
    strict: bool,
    where: str,
    check: Callable[[Match], None],
) -> Matching:
    """Match the tensors of a compressed file to the parameters of a model.

    Args:
        stored: the tensors, from `stored_tensors`.
        model: the model.
        strict: whether every name must be in both.
        where: the file, for messages.
        check: refuses a weight that cores cannot replace.

    Returns:
        The matching. It includes names that the file lacks if the model ties their tensor to a name that it has.

    Raises:
        ModelError: a compressed weight has no parameter, shapes differ, one parameter would get two values, or, if
            `strict`, a name is in only one of them.
    """
    refs = parameter_refs(model)
    prefixes = _prefixes(stored, refs)
    if prefixes is None:
        raise ModelError(
            where=where,
            found=f"tensors such as {listed(stored, _MOST_SHOWN) or 'none'}",
            why=f"the model has none of them; it has {listed(refs, _MOST_SHOWN) or 'no tensors'}",
            action="Pass a model of the kind that was compressed.",
        )
    names = map_names(stored, refs, prefixes)
    unmatched = next((name for name, tensor in stored.items() if tensor.matrix and name not in names), None)
    if unmatched is not None:
        raise _unmatched(unmatched, rename(unmatched, prefixes), model)
    weights = _matched_weights(stored, names, refs)
    for match in weights:
        check(match)
    _check_shapes(stored, names, refs)
    dense = _matched_dense(stored, names, refs)
    matched = {*dense, *(match.ref.name for match in weights)}
    missing = [name for name in refs if name not in matched]
    unexpected = [name for name in stored if name not in names]
    if strict and (missing or unexpected):
        sides = [f"only in the model: {listed(missing, _MOST_SHOWN)}"] if missing else []
        sides += [f"only in the file: {listed(unexpected, _MOST_SHOWN)}"] if unexpected else []
        raise ModelError(
            where=where,
            found="; ".join(sides),
            why="every tensor must be in both",
            action="Build the model that was compressed, or load with strict=False to leave these unchanged.",
        )
    return Matching(weights=weights, dense=dense)


def _prefixes(stored: Mapping[str, StoredTensor], refs: Mapping[str, ParameterRef]) -> tuple[str, str] | None:
    """Return the prefixes under which most shapes agree; if no shapes agree, most names."""

    def fits(stored_name: str, name: str) -> bool:
        return _fits(stored[stored_name].shape, refs[name].tensor)

    return common_prefixes(stored, refs, fits) or common_prefixes(stored, refs, lambda stored_name, name: True)


def _matched_weights(
    stored: Mapping[str, StoredTensor], names: Mapping[str, str], refs: Mapping[str, ParameterRef]
) -> tuple[Match, ...]:
    """Return the weights that cores will replace, under all names of each."""
    stored_names = {name: stored_name for stored_name, name in names.items()}
    first_matches: dict[int, tuple[StoredTensor, str]] = {}
    for stored_name, name in names.items():
        if stored[stored_name].matrix is not None:
            first_matches.setdefault(id(refs[name].tensor), (stored[stored_name], stored_name))
    matches = []
    for name, ref in refs.items():
        tensor, first_name = first_matches.get(id(ref.tensor), (None, ""))
        if tensor is None or tensor.matrix is None:
            continue
        stored_name = stored_names.get(name, first_name)
        if stored[stored_name] != tensor:
            raise _two_values(names[first_name], name)
        matches.append(Match(ref=ref, matrix=tensor.matrix, member=tensor.member, stored_name=stored_name))
    return tuple(matches)


def _matched_dense(
    stored: Mapping[str, StoredTensor], names: Mapping[str, str], refs: Mapping[str, ParameterRef]
) -> dict[str, str]:
    """Return name in the model -> name in the file, of dense tensors and of names that the model ties to them."""
    dense = {
        name: stored[stored_name].stored_name for stored_name, name in names.items() if not stored[stored_name].matrix
    }
    by_tensor = {
        id(refs[name].tensor): stored_name for name, stored_name in dense.items() if refs[name].tensor is not None
    }
    tied = {name: by_tensor[id(ref.tensor)] for name, ref in refs.items() if id(ref.tensor) in by_tensor}
    return {**tied, **dense}


def _check_shapes(
    stored: Mapping[str, StoredTensor], names: Mapping[str, str], refs: Mapping[str, ParameterRef]
) -> None:
    different = [pair for pair in names.items() if not _fits(stored[pair[0]].shape, refs[pair[1]].tensor)]
    if not different:
        return
    stored_name, name = different[0]
    tensor = refs[name].tensor
    raise ModelError(
        where=shown(name),
        found=f"shape {tuple(tensor.shape) if tensor is not None else ()} in the model, {stored[stored_name].shape} in "
        f"the file" + (f", and {len(different) - 1} more that differ" if len(different) > 1 else ""),
        why="a tensor must have the same shape in both",
        action="Build the model with the sizes that were compressed.",
    )


def _fits(shape: tuple[int, ...], tensor: Tensor | None) -> bool:
    """Return whether a tensor takes values of a shape: a lazy one takes any, and a scalar also those of shape (1,)."""
    return tensor is None or is_lazy(tensor) or shape == tuple(tensor.shape) or (shape == (1,) and tensor.dim() == 0)


def _unmatched(stored_name: str, name: str | None, model: nn.Module) -> ModelError:
    """Return the error for a compressed weight without a parameter in the model."""
    path, _, leaf = (name or stored_name).rpartition(".")
    module = dict(model.named_modules(remove_duplicate=False)).get(path) if name else None
    if module is None:
        found, action = "no such module in the model", "Pass a model of the kind that was compressed."
    elif isinstance(module, MPOLayer) or isinstance(module._modules.get(leaf), MPOWeight):
        found = f"{described(module)} that has cores already"
        action = "Load into a new model; or use load_state_dict if the cores have the same shapes."
    else:
        found = f"{described(module)} without a parameter {shown(leaf)}"
        action = "Pass a model of the kind that was compressed."
    return ModelError(
        where=shown(path if module is not None and path else name or stored_name),
        found=found,
        why=f"the cores of {shown(stored_name)} have no parameter to replace",
        action=action,
    )


def _two_values(first: str, second: str) -> ModelError:
    return ModelError(
        where=shown(second),
        found=f"the same parameter as {shown(first)} in the model",
        why="the file has two tensors for it, at least one of them compressed",
        action="Untie them in the model, or tie them before compressing.",
    )


def described(module: nn.Module) -> str:
    """Return the class of a module with its article, for a message.

    Args:
        module: the module.

    Example:
        >>> described(nn.GRU(2, 3))
        'an nn.GRU'
    """
    name = short_class(full_name(type(module)))
    return f"{'an' if name.startswith(('nn.', *'aeiouAEIOU')) else 'a'} {shown(name)}"
