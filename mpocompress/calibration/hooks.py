"""Hooks on the modules of a model that report the inputs of their weights and the gradients of the outputs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn

from mpocompress.calibration.lstm_forward import level_names, run_cell, run_lstm
from mpocompress.reports.json_documents import Positive
from mpocompress.text import shown

NOT_RUN = "was not run on the calibration batches"
OTHER_FORWARD = "does not multiply its input by its weight"
CHECKED_ROWS, CLOSE = 8, 0.02
"""Rows on which the forward of a custom class is compared with a product by its weight, and the largest difference,
relative to the largest output; half-precision types are that coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightGroup:
    """Weights with a common input: the weight of a layer, or [W_ih W_hh] of a level and direction of an LSTM.

    Args:
        members: names of the weights in the checkpoint, left to right.
        columns: columns of each weight.
        rows: rows of all weights.
        bias: name of the bias that can be corrected by the mean error; empty if there is none.
    """

    members: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    columns: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1)]
    rows: Positive
    bias: str

    @property
    def name(self) -> str:
        """Name of the group: its first member."""
        return self.members[0]

    def span(self, members: Sequence[str]) -> tuple[int, int] | None:
        """Return the range of columns of some adjacent members.

        Args:
            members: their names, in order.

        Returns:
            The first column and the one after the last; None if they are not members.
        """
        count = len(members)
        for first in range(len(self.members)):
            if self.members[first : first + count] == tuple(members):
                start = sum(self.columns[:first])
                return start, start + sum(self.columns[first : first + count])
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ObservedModule:
    """A module with weights to observe.

    Args:
        path: path in the model.
        module: the module.
        units: part of the module, as in `lstm_forward.ObservePart` -> its weights.
    """

    path: str
    module: nn.Module
    units: Mapping[str, WeightGroup]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observer:
    """Callbacks of observed modules.

    Args:
        observe: called with the weights, their inputs, shape (samples, cols), and a function that registers a hook on
            the gradients of the outputs, shape (samples, rows).
        unsupported: called with the weights and a reason if a call of their module cannot be observed.
    """

    observe: Callable[[WeightGroup, Tensor, Callable[[Callable[[Tensor], None]], None]], None]
    unsupported: Callable[[WeightGroup, str], None]


def find_observed(model: nn.Module, names: Mapping[str, str]) -> tuple[ObservedModule, ...]:
    """Find the modules of a model whose weights can be observed.

    Args:
        model: the model.
        names: name in the model -> name in the checkpoint, for weights and biases to be compressed.

    Returns:
        The modules. A weight that several modules share gets no bias, because every module has another mean error.

    Example:
        >>> (observed,) = find_observed(nn.Linear(3, 2), {"weight": "fc.weight", "bias": "fc.bias"})
        >>> observed.units[""]
        WeightGroup(members=('fc.weight',), columns=(3,), rows=2, bias='fc.bias')
    """
    modules = []
    for path, module in model.named_modules():
        known = {
            leaf: names[name]
            for leaf, tensor in module._parameters.items()
            if tensor is not None and (name := f"{path}.{leaf}" if path else leaf) in names
        }
        units = _units(module, known)
        if units:
            modules.append(ObservedModule(path=path, module=module, units=units))
    owners = Counter(unit.name for observed in modules for unit in observed.units.values())
    return tuple(
        dataclasses.replace(
            observed,
            units={
                part: dataclasses.replace(unit, bias="") if owners[unit.name] > 1 else unit
                for part, unit in observed.units.items()
            },
        )
        for observed in modules
    )


def _units(module: nn.Module, known: Mapping[str, str]) -> dict[str, WeightGroup]:
    """Return the weights of a module, by part; none if its forward is replaced."""
    if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        return {}
    if isinstance(module, nn.LSTM):
        plain = type(module).forward is nn.LSTM.forward and set(module._parameters) == set(module._flat_weights_names)
        return _levels(module, known) if plain else {}
    if isinstance(module, nn.LSTMCell):
        joint = _joint(module, known, "") if type(module).forward is nn.LSTMCell.forward else None
        return {"": joint} if joint is not None else {}
    weight = module._parameters.get("weight")
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) or "weight" not in known or weight is None or weight.dim() != 2:
        return {}
    rows, cols = weight.shape if isinstance(module, nn.Linear) else reversed(weight.shape)
    return {"": WeightGroup(members=(known["weight"],), columns=(cols,), rows=rows, bias=known.get("bias", ""))}


def _levels(module: nn.LSTM, known: Mapping[str, str]) -> dict[str, WeightGroup]:
    units = {}
    for name in level_names(module):
        joint = _joint(module, known, f"_{name}")
        if joint is not None:
            units[name] = joint
        projection = f"weight_hr_{name}"
        if projection in known:
            rows, cols = getattr(module, projection).shape
            units[f"hr_{name}"] = WeightGroup(members=(known[projection],), columns=(cols,), rows=rows, bias="")
    return units


def _joint(module: nn.Module, known: Mapping[str, str], suffix: str) -> WeightGroup | None:
    leaves = [f"weight_ih{suffix}", f"weight_hh{suffix}"]
    if any(leaf not in known for leaf in leaves):
        return None
    shapes = [getattr(module, leaf).shape for leaf in leaves]
    return WeightGroup(
        members=tuple(known[leaf] for leaf in leaves),
        columns=tuple(shape[1] for shape in shapes),
        rows=shapes[0][0],
        bias=known.get(f"bias_ih{suffix}", ""),
    )


@contextlib.contextmanager
def observing(modules: Sequence[ObservedModule], observer: Observer) -> Iterator[None]:
    """Observe modules in the block, without a change of their outputs.

    Args:
        modules: the modules.
        observer: the callbacks.
    """
    with contextlib.ExitStack() as stack:
        for observed in modules:
            module = observed.module
            if isinstance(module, nn.LSTM | nn.LSTMCell):
                call = module.forward  # type: ignore[has-type, unused-ignore] # torch 2.10
                vars(module)["forward"] = partial(_recurrent_forward, observed, observer, call)
                stack.callback(vars(module).pop, "forward")
            else:
                hook = module.register_forward_hook(partial(_product_hook, observed, observer), with_kwargs=True)
                stack.callback(hook.remove)
        yield


def _recurrent_forward(
    observed: ObservedModule, observer: Observer, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run an observed LSTM or cell; run its own forward if the arguments are not supported."""

    def observe_part(part: str, inputs: Tensor, outputs: Tensor, is_real: Tensor | None) -> None:
        unit = observed.units.get(part)
        if unit is not None:
            _observe(unit, observer, inputs, outputs, is_real)

    run: Callable[..., Any] = run_lstm if isinstance(observed.module, nn.LSTM) else run_cell
    try:
        x, state = lstm_arguments(*args, **kwargs)
        return run(observed.module, x, state, observe_part)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        for unit in observed.units.values():
            reason = f"was called with unsupported arguments ({type(error).__name__}: {shown(str(error))})"
            observer.unsupported(unit, reason)
        return forward(*args, **kwargs)


def lstm_arguments(input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - the names of torch
    """Return the arguments of a call of an LSTM or a cell, positional or named.

    Args:
        input: the input.
        hx: the initial state.

    Example:
        >>> lstm_arguments(hx=None, input=1)
        (1, None)
    """
    return input, hx


def _product_hook(
    observed: ObservedModule, observer: Observer, module: nn.Module, args: Any, kwargs: Any, output: Any
) -> Any:
    """Observe a module that multiplies by its weight; returns an output that accepts hooks on its gradient."""
    (unit,) = observed.units.values()
    inputs = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(inputs, Tensor) or not isinstance(output, Tensor):
        observer.unsupported(unit, f"was called with {type(inputs).__name__} and returned {type(output).__name__}")
        return None
    output_shape = (*inputs.shape[:-1], unit.rows)
    if inputs.dim() == 0 or inputs.shape[-1] != sum(unit.columns) or tuple(output.shape) != output_shape:
        observer.unsupported(unit, f"was called with shape {tuple(inputs.shape)} and returned {tuple(output.shape)}")
        return None
    if type(module).forward is not nn.Linear.forward and not _multiplies(module, inputs, output):
        observer.unsupported(unit, OTHER_FORWARD)
        return None
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        # A leaf must not be written to in place, as an activation after this module may do.
        output = output + torch.zeros_like(output, requires_grad=True)
    _observe(unit, observer, inputs, output, None)
    return output


def _multiplies(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Return whether an output is the input times the weight of a module or its transpose, plus its bias."""
    x, y = (tensor.detach().reshape(-1, tensor.shape[-1])[:CHECKED_ROWS].float() for tensor in (inputs, output))
    weight, parameter = module._parameters["weight"], module._parameters.get("bias")
    if weight is None:
        return False
    bias = None if parameter is None else parameter.detach().float()
    matrices = (matrix.detach().float() for matrix in (weight, weight.T) if matrix.shape == (y.shape[1], x.shape[1]))
    products = (nn.functional.linear(x, matrix, bias) for matrix in matrices)
    return any(bool((product - y).abs().max() <= CLOSE * product.abs().max()) for product in products)


def _observe(unit: WeightGroup, observer: Observer, inputs: Tensor, outputs: Tensor, is_real: Tensor | None) -> None:
    """Call the observer with the inputs of weights, without padding."""

    def rows_of(values: Tensor) -> Tensor:
        rows = values.detach().reshape(-1, values.shape[-1])
        return rows if is_real is None else rows[is_real.reshape(-1)]

    def on_gradient(add: Callable[[Tensor], None]) -> None:
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: add(rows_of(gradient)))  # type: ignore[no-untyped-call]

    observer.observe(unit, rows_of(inputs), on_gradient)


@contextlib.contextmanager
def recording_calls(module: nn.Module, record: Callable[[tuple[Any, Mapping[str, Any]]], None]) -> Iterator[None]:
    """Record the arguments of every call of a module in the block.

    Args:
        module: the module.
        record: called with the positional and the named arguments.
    """
    hook = module.register_forward_pre_hook(lambda _, args, kwargs: record((args, kwargs)), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
