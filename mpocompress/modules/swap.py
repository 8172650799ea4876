"""Plan the replacement of modules by MPO layers, and apply it completely or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mpocompress.errors import ModelError
from mpocompress.layers.names import JOINT, joint_name
from mpocompress.modules.compatibility import Replaceable, model_error, replaceable
from mpocompress.modules.name_matching import Match, ParameterRef, described
from mpocompress.modules.provenance import Provenance, set_provenance
from mpocompress.mpo.mpo import MPO
from mpocompress.nn import MPOLSTM, Execution, MPOLinear, MPOLSTMCell, MPOWeight
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import MatrixReport
from mpocompress.text import shown


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewWeight:
    """An MPO weight that replaces one parameter, or the two of a joint matrix.

    Args:
        matrix: the matrix.
        stored_name: the name of its cores in the file, without the number of the site.
        refs: the parameters that it replaces, in the order of the members.
    """

    matrix: MatrixReport
    stored_name: str
    refs: tuple[ParameterRef, ...]

    @property
    def key(self) -> tuple[int, ...]:
        """The identities of the replaced parameters: tied weights have the same key."""
        return tuple(id(ref.tensor) for ref in self.refs)

    @property
    def parameter(self) -> Tensor:
        """The first of the replaced parameters."""
        (tensor, *_) = (ref.tensor for ref in self.refs)
        if tensor is None:
            raise ValueError("an extra state is no weight")
        return tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replacement:
    """The replacement of one module, or of its parameters.

    Args:
        path: a path of the module in the model.
        module: the module.
        kind: what is replaced.
        weights: name in the new module -> weight.
    """

    path: str
    module: nn.Module
    kind: Replaceable
    weights: Mapping[str, NewWeight]


def plan_replacements(matches: Sequence[Match]) -> tuple[Replacement, ...]:
    """Return one replacement for every module that has a compressed weight.

    Args:
        matches: every such weight, under all its names.

    Raises:
        ModelError: a module that cannot take the cores of its weights.
    """
    by_module: dict[int, dict[str, Match]] = {}
    for match in matches:
        by_module.setdefault(id(match.ref.module), {})[match.ref.leaf] = match
    replacements = tuple(map(_replacement, by_module.values()))
    _check_ties(replacements)
    return replacements


def _replacement(matches: Mapping[str, Match]) -> Replacement:
    """Return the replacement of one module, from its compressed weights."""
    first = next(iter(matches.values())).ref
    path, module = first.module_path, first.module
    kind = replaceable(module, path)
    is_lstm = kind in ("lstm", "lstm_cell")
    weights: dict[str, NewWeight] = {}
    for leaf, match in matches.items():
        if len(match.matrix.members) == 1:
            weights[leaf] = NewWeight(matrix=match.matrix, stored_name=match.stored_name, refs=(match.ref,))
            continue
        input_leaf = leaf.replace("weight_hh", "weight_ih")
        pair = [matches.get(input_leaf), matches.get(input_leaf.replace("weight_ih", "weight_hh"))]
        members = [
            other
            for index, other in enumerate(pair)
            if other is not None and (other.matrix, other.member) == (match.matrix, index)
        ]
        if len(members) < len(pair) or not is_lstm:
            raise _not_joint(path, module, match, is_lstm=is_lstm)
        weights[joint_name(input_leaf)] = NewWeight(
            matrix=match.matrix,
            stored_name=joint_name(members[0].stored_name),
            refs=tuple(member.ref for member in members),
        )
    for weight in weights.values():
        _check_alike(weight, path)
    transposed = {weight.matrix.transposed for weight in weights.values()}
    if is_lstm and True in transposed:
        raise model_error(
            path,
            f"{described(module)}, and cores of the transpose of its weight",
            "an LSTM multiplies by the weight itself",
            "Compress the original again, without selecting its weights as conv1d.",
        )
    if transposed != {kind == "conv1d"} and kind in ("linear", "conv1d"):
        # The file has the weight of the other of the two kinds: only the parameter can be replaced.
        kind = "parameter"
    return Replacement(path=path, module=module, kind=kind, weights=weights)


def new_weights(
    replacements: Sequence[Replacement], mpos: Mapping[str, MPO], report: Report
) -> dict[tuple[int, ...], MPOWeight]:
    """Return the new weights, with the dtype and on the device of the parameters that they replace.

    Args:
        replacements: the replacements.
        mpos: name of the matrix -> its decomposition.
        report: the report of the compression.

    Returns:
        `NewWeight.key` -> weight, with its own memory; tied parameters get one weight.

    Raises:
        ModelError: cores with numbers that the dtype cannot hold.
    """
    weights: dict[tuple[int, ...], MPOWeight] = {}
    for new in (new for replacement in replacements for new in replacement.weights.values()):
        if new.key in weights:
            continue
        parameter, mpo = new.parameter, mpos[new.matrix.name]
        cores = tuple(
            core.to(parameter.device, parameter.dtype, copy=True, memory_format=torch.contiguous_format)
            for core in mpo.cores
        )
        if not all(core.isfinite().all() for core in cores):
            raise model_error(
                new.refs[0].name,
                f"a parameter of {parameter.dtype}, and cores with numbers beyond its range",
                "they would become Inf",
                "Load into a model of a wider dtype, such as torch.float32 or torch.bfloat16.",
            )
        weight = MPOWeight(
            MPO(cores=cores, sites=mpo.sites),
            transposed=new.matrix.transposed,
            requires_grad=isinstance(parameter, nn.Parameter) and parameter.requires_grad,
        )
        provenance = Provenance(report=report, matrix=new.matrix, stored_name=new.stored_name)
        weights[new.key] = set_provenance(weight, provenance)
    return weights


@contextlib.contextmanager
def replaced(
    model: nn.Module,
    replacements: Sequence[Replacement],
    weights: Mapping[tuple[int, ...], MPOWeight],
    execution: Execution,
) -> Iterator[nn.Module]:
    """Apply replacements to a model, and undo them if the body fails.

    Args:
        model: the model; it is modified in place.
        replacements: the replacements.
        weights: `NewWeight.key` -> weight.
        execution: how the new layers run.

    Yields:
        The model; a new layer if the model itself is replaced.
    """
    own = [{name: weights[new.key] for name, new in replacement.weights.items()} for replacement in replacements]
    layers = {
        id(replacement.module): _layer(replacement, cores, execution)
        for replacement, cores in zip(replacements, own, strict=True)
        if replacement.kind != "parameter"
    }
    for module in model.modules():
        if type(module).__name__ == "OptimizedModule" and any(id(child) in layers for child in module.children()):
            raise model_error(
                "", "a layer inside torch.compile", "the compiled code is that of the old layer", "Compile after this."
            )
    before = [
        (module, dict(module._modules), dict(module._parameters), dict(module._buffers))
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # nothing in it is ever replaced
    ]
    try:
        for module, children, _, _ in before:
            for name, child in children.items():
                if id(child) in layers:
                    module._modules[name] = layers[id(child)]
        for replacement, cores in zip(replacements, own, strict=True):
            for leaf, weight in cores.items() if replacement.kind == "parameter" else ():
                delattr(replacement.module, leaf)
                setattr(replacement.module, leaf, weight)
        yield layers.get(id(model), model)
    except BaseException:
        for module, children, parameters, buffers in before:
            for entries in (module._modules, module._parameters, module._buffers):
                entries.clear()
            module._modules.update(children)
            module._parameters.update(parameters)
            module._buffers.update(buffers)
        raise


def _layer(replacement: Replacement, weights: Mapping[str, MPOWeight], execution: Execution) -> nn.Module:
    """Return the MPO layer that replaces a module; it shares the tensors that stay dense."""
    module = replacement.module
    if isinstance(module, nn.LSTM):
        return MPOLSTM.replacing(module, weights, execution=execution)
    if isinstance(module, nn.LSTMCell):
        return MPOLSTMCell.replacing(module, weights, execution=execution)
    (weight,) = weights.values()
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor) and is_lazy(bias):
        empty = torch.empty(weight.sites.shape[0], dtype=weight.dtype, device=weight.device)
        layer = MPOLinear(weight, nn.Parameter(empty, requires_grad=bias.requires_grad), execution=execution)
        return layer.train(module.training)
    return MPOLinear.replacing(module, weight, execution=execution)


def _check_alike(weight: NewWeight, path: str) -> None:
    """Refuse parameters that one MPO weight cannot replace."""
    tensors = [ref.tensor for ref in weight.refs if ref.tensor is not None]
    integer = next((tensor for tensor in tensors if not tensor.is_floating_point()), None)
    if integer is not None:
        raise model_error(
            weight.refs[0].name,
            f"a parameter of {integer.dtype}",
            "cores are floating point numbers",
            "Load into a model with floating point weights.",
        )
    kinds = {(tensor.dtype, str(tensor.device), tensor.requires_grad) for tensor in tensors}
    if len(kinds) > 1:
        raise model_error(
            path,
            f"{' and '.join(ref.leaf for ref in weight.refs)} of different dtype, device or requires_grad",
            f"they are one matrix in the file, {shown(weight.matrix.name)}",
            "Give them the same, or compress with lstm='separate'.",
        )


def _check_ties(replacements: Sequence[Replacement]) -> None:
    """Refuse joint matrices of which the model ties one half, and the other not, or to another weight."""
    by_tensor: dict[int, NewWeight] = {}
    for weight in (weight for replacement in replacements for weight in replacement.weights.values()):
        for ref in weight.refs:
            other = by_tensor.setdefault(id(ref.tensor), weight)
            if other.key != weight.key:
                raise model_error(
                    ref.name,
                    f"tied to {shown(other.refs[0].name)} in the model, but the weight it is joined with is not",
                    f"they are one matrix in the file, {shown(weight.matrix.name)}",
                    "Expand the file, or compress with lstm='separate'.",
                )


def _not_joint(path: str, module: nn.Module, match: Match, *, is_lstm: bool) -> ModelError:
    problem = (
        "only one of which is tied to this layer"
        if is_lstm
        else f"and {described(module)}, which has a forward of its own"
    )
    return model_error(
        path,
        f"a joint matrix of {' and '.join(map(shown, match.matrix.members))}, {problem}",
        f"only nn.LSTM and nn.LSTMCell can have {JOINT} in place of both weights",
        "Expand the file, or compress with lstm='separate'.",
    )
