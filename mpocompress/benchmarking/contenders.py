"""Ways to run one layer or model: torch's own dense paths, weights of 8 bits, and cores in every mode."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.benchmarking.torch_int8 import has_int8_layers, int8_copy, packed_bytes, why_not_int8
from mpocompress.nn.timing import BUDGET_S, SAMPLE_S, Call, clock_of, interleaved
from mpocompress.reports.benchmark import ContenderKind, Timed
from mpocompress.user.dense_model import device_of

INT8 = "dynamic int8"
_FALLS_BACK = "LSTM with projections is not supported with oneDNN"

Feed = Callable[[nn.Module], object]
"""Calls a module with the inputs at hand."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """One way to run a layer or a model.

    Args:
        name: its name, as it is shown.
        kind: `dense`, `int8` or `compressed`.
        run: runs it once and returns its outputs.
        size_bytes: counts what it holds, once it has run.
        under: makes what has to be entered around it.
        unavailable: why it cannot run, in words; empty where it can.
    """

    name: str
    kind: ContenderKind
    run: Callable[[], object]
    size_bytes: Callable[[], int]
    under: Callable[[], AbstractContextManager[object]] = nullcontext
    unavailable: str = ""


def dense_contenders(module: nn.Module, feed: Feed) -> tuple[Contender, ...]:
    """The ways in which torch itself runs a dense layer or model.

    Args:
        module: the layer or model.
        feed: calls it with the inputs.

    Returns:
        One contender for every library that torch can use on the device of the module.

    Example:
        >>> [one.name for one in dense_contenders(nn.Linear(2, 2), lambda layer: layer(torch.ones(1, 2)))][-1]
        'dense, native'
    """
    return tuple(
        Contender(
            name=f"dense, {library}",
            kind="dense",
            run=lambda: feed(module),
            size_bytes=lambda: held_bytes(module),
            under=under,
        )
        for library, under in _libraries(device_of(module).type)
    )


def one_step_contenders(lstm: nn.LSTM, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Contender, ...]:
    """The ways in which torch itself runs an LSTM for a single step, where a cell is faster than the layer.

    Args:
        lstm: the layer, not batch first.
        inputs: its input, of shape (1, batch, inputs).
        hidden: its hidden state, of shape (levels x directions, batch, hidden).
        cell: its cell state, of the same shape.

    Returns:
        One contender for every library; none where the layer has a projection, which cells lack.
    """
    if lstm.proj_size:
        return ()
    steps = _OneStep(lstm)
    return tuple(
        Contender(
            name=f"dense, cell, {library}",
            kind="dense",
            run=lambda: steps(inputs, hidden, cell),
            size_bytes=lambda: held_bytes(lstm),
            under=under,
        )
        for library, under in _libraries(device_of(lstm).type)
    )


def int8_contender(module: nn.Module, feed: Feed) -> Contender:
    """The same layer or model with weights of 8 bits, as `torch.ao.quantization.quantize_dynamic` makes it.

    Args:
        module: the dense layer or model; it stays as it is.
        feed: calls it with the inputs.

    Returns:
        The contender; one that says why where torch cannot quantize the module, or nothing in it.
    """
    reason, quantized = why_not_int8(module), module
    if not reason:
        try:
            quantized = int8_copy(module)
            with torch.inference_mode():
                feed(quantized)
        except Exception as error:  # noqa: BLE001 - torch refuses in many ways, and the user's code may not know it
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not reason and not has_int8_layers(quantized):
        reason = "torch replaced no layer"
    return Contender(
        name=INT8,
        kind="int8",
        run=lambda: feed(quantized),
        size_bytes=lambda: held_bytes(quantized),
        unavailable=reason,
    )


def compressed_contender(module: nn.Module, feed: Feed, execution: str) -> Contender:
    """A layer or model that holds cores.

    Args:
        module: the layer or model, its execution set.
        feed: calls it with the inputs.
        execution: the name of that.

    Returns:
        The contender.
    """
    return Contender(name=execution, kind="compressed", run=lambda: feed(module), size_bytes=lambda: held_bytes(module))


def race(
    contenders: Sequence[Contender],
    *,
    repeats: int,
    device: str = "cpu",
    gradients: bool = False,
    sample_s: float = SAMPLE_S,
    budget_s: float = BUDGET_S,
) -> tuple[Timed, ...]:
    """Run contenders against each other and compare their outputs.

    Args:
        contenders: a dense one first, which the outputs of the others are compared with.
        repeats: see `stopwatch.interleaved`, as for the last two.
        device: where they run; a graphics card is waited for.
        gradients: whether torch records what gradients need; without, everything runs in inference mode.
        sample_s: seconds that a sample lasts at least.
        budget_s: seconds that all samples may take.

    Returns:
        Their figures, in their order.
    """
    able = [one for one in contenders if not one.unavailable]
    with torch.inference_mode(mode=not gradients), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_FALLS_BACK)
        outputs = []
        for one in able:
            with one.under():
                outputs.append(one.run())
        differences = [largest_difference(output, outputs[0]) for output in outputs]
        del outputs
        samples = interleaved(
            [Call(run=one.run, under=one.under) for one in able],
            repeats=repeats,
            sample_s=sample_s,
            budget_s=budget_s,
            clock=clock_of(device),
        )
    timed = {
        one.name: Timed(
            contender=one.name,
            kind=one.kind,
            times_s=own.times_s,
            calls=own.calls,
            size_bytes=one.size_bytes(),
            largest_difference=difference,
        )
        for one, own, difference in zip(able, samples, differences, strict=True)
    }
    return tuple(
        timed.get(one.name) or Timed(contender=one.name, kind=one.kind, unavailable=one.unavailable)
        for one in contenders
    )


def held_bytes(module: nn.Module) -> int:
    """Bytes that a layer or model holds: parameters, packed weights of 8 bits, and what layers prepared beside them.

    Args:
        module: the layer or model.

    Returns:
        Bytes; what is shared inside it counts once.

    Example:
        >>> held_bytes(nn.Linear(2, 3))
        36
    """
    parameters = sum(one.numel() * one.element_size() for one in module.parameters())
    prepared = sum(int(getattr(one, "cached_bytes", 0)) for one in module.modules())
    return parameters + prepared + packed_bytes(module)


def largest_difference(outputs: object, others: object) -> float | None:
    """The largest absolute difference between two nests of outputs.

    Args:
        outputs: tensors, in tuples, lists or mappings.
        others: the same; where one of them has more tensors than the other, the first ones are compared.

    Returns:
        The difference; None where nothing can be compared, or is not finite.

    Example:
        >>> largest_difference((torch.zeros(2), {"h": torch.ones(1)}), (torch.ones(2), {"h": torch.zeros(1)}))
        1.0
    """
    pairs = zip(_tensors(outputs), _tensors(others), strict=False)
    found = [float((one.double() - other.double()).abs().max()) for one, other in pairs if one.shape == other.shape]
    return max(found) if found and all(map(math.isfinite, found)) else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating tensors in a nest, none of them empty."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value.detach()
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


class _OneStep:
    """An LSTM for a single step, its levels and directions one cell each."""

    def __init__(self, lstm: nn.LSTM) -> None:
        ends = ("", "_reverse") if lstm.bidirectional else ("",)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if lstm.bias else ("weight_ih", "weight_hh")
        self._levels: list[list[tuple[Any, ...]]] = [
            [tuple(getattr(lstm, f"{name}_l{level}{end}") for name in names) for end in ends]
            for level in range(lstm.num_layers)
        ]

    def __call__(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """The output of the layer, of shape (1, batch, directions x hidden)."""
        step, states = inputs[0], iter(zip(hidden, cell, strict=True))
        for level in self._levels:
            outputs = [torch.lstm_cell(step, next(states), *weights)[0] for weights in level]
            step = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return step.unsqueeze(0)


def _libraries(device: str) -> list[tuple[str, Callable[[], AbstractContextManager[object]]]]:
    """The libraries that torch can use on a device, each with the switch that chooses it."""
    if device == "cuda":
        return [("cuDNN", nullcontext), ("native", _without_cudnn)]
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return [("oneDNN", nullcontext), ("native", _without_onednn)]
    return [("native", nullcontext)]


def _without_onednn() -> AbstractContextManager[object]:
    # What is None stays as it is: setting the precision again would warn.
    return torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None, fp32_precision=None)


def _without_cudnn() -> AbstractContextManager[object]:
    return torch.backends.cudnn.flags(enabled=False)
