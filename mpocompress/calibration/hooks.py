"""The modules whose weights are to be compressed, watched while the model runs: what goes in, and what comes out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.calibration.lstm_forward import level_names, run_cell, run_lstm
from mpocompress.text import shown

NEVER = "never ran on the calibration inputs"
OWN_WAY = "runs in a way of its own, which is not its weight times its input"
ROWS_TRIED, NEAR = 8, 0.02
"""On how many rows that is tried, and how near it has to be, as a share of the largest; half types are that coarse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is multiplied at once: the weight of a layer, or [W_ih W_hh] of a level and direction of an LSTM.

    Args:
        members: names of its tensors in the checkpoint, left to right.
        columns: columns of each.
        rows: its outputs.
        bias: name of the bias that its mean error can be put into; empty without.
    """

    members: tuple[str, ...]
    columns: tuple[int, ...]
    rows: int
    bias: str

    @property
    def name(self) -> str:
        """What it goes by: its first member."""
        return self.members[0]

    def span(self, members: Sequence[str]) -> tuple[int, int] | None:
        """The columns of some neighbouring members.

        Args:
            members: their names, in order.

        Returns:
            The first column and the one after the last; None where they are not among the members.
        """
        wanted = tuple(members)
        for first in range(len(self.members)):
            if self.members[first : first + len(wanted)] == wanted:
                start = sum(self.columns[:first])
                return start, start + sum(self.columns[first : first + len(wanted)])
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Watch:
    """A module that is watched.

    Args:
        path: where it is in the model.
        module: the module.
        units: part of the module, as `tracing.See` is told it, -> unit.
    """

    path: str
    module: nn.Module
    units: Mapping[str, Unit]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Watcher:
    """Who is told.

    Args:
        see: told a unit, its inputs of shape (samples, cols), and a hook on the gradient of what comes out, which is
            called with a function of gradients of shape (samples, rows).
        odd: told a unit and what was odd about a call of its module, in words.
    """

    see: Callable[[Unit, Tensor, Callable[[Callable[[Tensor], None]], None]], None]
    odd: Callable[[Unit, str], None]


def find_watches(model: nn.Module, names: Mapping[str, str]) -> tuple[Watch, ...]:
    """The modules of a model that have weights to be compressed and can be watched.

    Args:
        model: the model.
        names: name of a tensor in the model -> in the checkpoint; of weights and biases.

    Returns:
        One for every such module. A weight that several modules share has no bias to put its mean error into: each
        has another mean.

    Example:
        >>> (watch,) = find_watches(nn.Linear(3, 2), {"weight": "fc.weight", "bias": "fc.bias"})
        >>> watch.units[""]
        Unit(members=('fc.weight',), columns=(3,), rows=2, bias='fc.bias')
    """
    watches = []
    for path, module in model.named_modules():
        known = {
            leaf: names[name]
            for leaf, tensor in module._parameters.items()
            if tensor is not None and (name := f"{path}.{leaf}" if path else leaf) in names
        }
        units = _units(module, known)
        if units:
            watches.append(Watch(path=path, module=module, units=units))
    owners = Counter(unit.name for watch in watches for unit in watch.units.values())
    return tuple(
        dataclasses.replace(
            watch,
            units={
                part: dataclasses.replace(unit, bias="") if owners[unit.name] > 1 else unit
                for part, unit in watch.units.items()
            },
        )
        for watch in watches
    )


def _units(module: nn.Module, known: Mapping[str, str]) -> dict[str, Unit]:
    """The units of a module, by part; none of one that runs in its own way."""
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
    return {"": Unit(members=(known["weight"],), columns=(cols,), rows=rows, bias=known.get("bias", ""))}


def _levels(module: nn.LSTM, known: Mapping[str, str]) -> dict[str, Unit]:
    units = {}
    for name in level_names(module):
        joint = _joint(module, known, f"_{name}")
        if joint is not None:
            units[name] = joint
        projection = f"weight_hr_{name}"
        if projection in known:
            rows, cols = getattr(module, projection).shape
            units[f"hr_{name}"] = Unit(members=(known[projection],), columns=(cols,), rows=rows, bias="")
    return units


def _joint(module: nn.Module, known: Mapping[str, str], end: str) -> Unit | None:
    leaves = [f"weight_ih{end}", f"weight_hh{end}"]
    if any(leaf not in known for leaf in leaves):
        return None
    shapes = [getattr(module, leaf).shape for leaf in leaves]
    return Unit(
        members=tuple(known[leaf] for leaf in leaves),
        columns=tuple(shape[1] for shape in shapes),
        rows=shapes[0][0],
        bias=known.get(f"bias_ih{end}", ""),
    )


@contextlib.contextmanager
def watched(watches: Sequence[Watch], watcher: Watcher) -> Iterator[None]:
    """Watch modules while the model runs in the block; they compute the same.

    Args:
        watches: the modules.
        watcher: who is told.
    """
    with contextlib.ExitStack() as stack:
        for watch in watches:
            module = watch.module
            if isinstance(module, nn.LSTM | nn.LSTMCell):
                call = module.forward  # type: ignore[has-type, unused-ignore] # torch 2.10
                vars(module)["forward"] = partial(_recurrent, watch, watcher, call)
                stack.callback(vars(module).pop, "forward")
            else:
                hook = module.register_forward_hook(partial(_product, watch, watcher), with_kwargs=True)
                stack.callback(hook.remove)
        yield


def _recurrent(watch: Watch, watcher: Watcher, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The forward of a watched LSTM or cell; where it is called in a way that is not known, its own."""

    def see(part: str, inputs: Tensor, outputs: Tensor, real: Tensor | None) -> None:
        unit = watch.units.get(part)
        if unit is not None:
            _tell(unit, watcher, inputs, outputs, real)

    run: Callable[..., Any] = run_lstm if isinstance(watch.module, nn.LSTM) else run_cell
    try:
        x, state = arguments(*args, **kwargs)
        return run(watch.module, x, state, see)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        for unit in watch.units.values():
            watcher.odd(unit, f"was called in an odd way ({type(error).__name__}: {shown(str(error))})")
        return forward(*args, **kwargs)


def arguments(input: Any, hx: Any = None) -> tuple[Any, Any]:  # noqa: A002 - torch calls them so
    """The arguments of a call of an LSTM or a cell, however it was written.

    Args:
        input: its input.
        hx: its initial state.

    Returns:
        Both.

    Example:
        >>> arguments(hx=None, input=1)
        (1, None)
    """
    return input, hx


def _product(watch: Watch, watcher: Watcher, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """The hook of a module that multiplies with its weight: tells what goes in, and lets gradients be seen."""
    (unit,) = watch.units.values()
    inputs = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(inputs, Tensor) or not isinstance(output, Tensor):
        watcher.odd(unit, f"was called with {type(inputs).__name__} and gave {type(output).__name__}")
        return None
    wanted = (*inputs.shape[:-1], unit.rows)
    if inputs.dim() == 0 or inputs.shape[-1] != sum(unit.columns) or tuple(output.shape) != wanted:
        watcher.odd(unit, f"was called with shape {tuple(inputs.shape)} and gave {tuple(output.shape)}")
        return None
    if type(module).forward is not nn.Linear.forward and not _multiplies(module, inputs, output):
        watcher.odd(unit, OWN_WAY)
        return None
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        # What is written to in place later must be no leaf.
        output = output + torch.zeros_like(output, requires_grad=True)
    _tell(unit, watcher, inputs, output, None)
    return output


def _multiplies(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Whether a class of its own gives its weight, or that transposed, times its input, plus its bias."""
    x, y = (one.detach().reshape(-1, one.shape[-1])[:ROWS_TRIED].float() for one in (inputs, output))
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    if weight is None:
        return False
    ways = (way.detach().float() for way in (weight, weight.T) if way.shape == (y.shape[1], x.shape[1]))
    made = (nn.functional.linear(x, way, None if bias is None else bias.detach().float()) for way in ways)
    return any(bool((one - y).abs().max() <= NEAR * one.abs().max()) for one in made)


def _tell(unit: Unit, watcher: Watcher, inputs: Tensor, outputs: Tensor, real: Tensor | None) -> None:
    def rows_of(values: Tensor) -> Tensor:
        rows = values.detach().reshape(-1, values.shape[-1])
        return rows if real is None else rows[real.reshape(-1)]

    def on_gradient(add: Callable[[Tensor], None]) -> None:
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: add(rows_of(gradient)))  # type: ignore[no-untyped-call]

    watcher.see(unit, rows_of(inputs), on_gradient)


@contextlib.contextmanager
def overheard(module: nn.Module, heard: Callable[[tuple[Any, Mapping[str, Any]]], None]) -> Iterator[None]:
    """Be told the arguments of every call of a module while the model runs in the block.

    Args:
        module: the module.
        heard: told positional and named arguments.
    """
    hook = module.register_forward_pre_hook(lambda _, args, kwargs: heard((args, kwargs)), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
