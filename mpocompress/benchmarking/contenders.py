"""Contenders of a benchmark: torch's dense kernels, dynamic int8, and a compressed module in every execution mode."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.benchmarking.torch_int8 import has_int8_layers, int8_copy, packed_bytes, why_not_int8
from mpocompress.nn.timing import BUDGET_S, SAMPLE_S, Call, clock_of, interleaved
from mpocompress.reports.benchmark import ContenderKind, ContenderResult
from mpocompress.user.dense_model import device_of
from mpocompress.user.pytree import tensors

INT8 = "dynamic int8"
_NO_ONEDNN = "LSTM with projections is not supported with oneDNN"

RunModule = Callable[[nn.Module], object]
"""Calls a module with the inputs of a benchmark."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contender:
    """One way to run a layer or a model.

    Args:
        name: name in the report.
        kind: `dense`, `int8` or `compressed`.
        run: runs it once and returns its outputs.
        size_bytes: returns the bytes that it holds, after a run.
        context: makes a context that is entered around it.
        unavailable: why it cannot run; empty if it can.
    """

    name: str
    kind: ContenderKind
    run: Callable[[], object]
    size_bytes: Callable[[], int]
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    unavailable: str = ""


def dense_contenders(module: nn.Module, run: RunModule) -> tuple[Contender, ...]:
    """Return a contender for every library with which torch can run a dense layer or model on its device.

    Args:
        module: the layer or model.
        run: calls it with the inputs.

    Example:
        >>> contenders = dense_contenders(nn.Linear(2, 2), lambda layer: layer(torch.ones(1, 2)))
        >>> contenders[-1].name
        'dense, native'
    """
    return tuple(
        Contender(
            name=f"dense, {library}",
            kind="dense",
            run=lambda: run(module),
            size_bytes=lambda: module_bytes(module),
            context=context,
        )
        for library, context in _libraries(device_of(module).type)
    )


def one_step_contenders(lstm: nn.LSTM, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Contender, ...]:
    """Return contenders that run an LSTM for a single step by cells, which are faster than the layer.

    Args:
        lstm: the layer, not batch first.
        inputs: its input, of shape (1, batch, inputs).
        hidden: its hidden state, of shape (levels x directions, batch, hidden).
        cell: its cell state, of the same shape.

    Returns:
        One contender per library; none if the layer has a projection, which cells do not support.
    """
    if lstm.proj_size:
        return ()
    cells = _Cells(lstm)
    return tuple(
        Contender(
            name=f"dense, cell, {library}",
            kind="dense",
            run=lambda: cells(inputs, hidden, cell),
            size_bytes=lambda: module_bytes(lstm),
            context=context,
        )
        for library, context in _libraries(device_of(lstm).type)
    )


def int8_contender(module: nn.Module, run: RunModule) -> Contender:
    """Return the contender of dynamic int8 quantisation; it gives the reason if torch cannot quantise the module.

    Args:
        module: the dense layer or model; it is not changed.
        run: calls it with the inputs.
    """
    reason, quantized = why_not_int8(module), module
    if not reason:
        try:
            quantized = int8_copy(module)
            with torch.inference_mode():
                run(quantized)
        except Exception as error:  # noqa: BLE001 - torch raises many types, and the user's code may fail too
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if not reason and not has_int8_layers(quantized):
        reason = "torch replaced no layer"
    return Contender(
        name=INT8,
        kind="int8",
        run=lambda: run(quantized),
        size_bytes=lambda: module_bytes(quantized),
        unavailable=reason,
    )


def compressed_contender(module: nn.Module, run: RunModule, execution: str) -> Contender:
    """Return the contender of a layer or model with MPO weights.

    Args:
        module: the layer or model, with its execution mode set.
        run: calls it with the inputs.
        execution: the execution mode, which is the name of the contender.
    """
    return Contender(
        name=execution, kind="compressed", run=lambda: run(module), size_bytes=lambda: module_bytes(module)
    )


def time_contenders(
    contenders: Sequence[Contender],
    *,
    repeats: int,
    device: str = "cpu",
    gradients: bool = False,
    sample_s: float = SAMPLE_S,
    budget_s: float = BUDGET_S,
) -> tuple[ContenderResult, ...]:
    """Time contenders against each other and compare their outputs.

    Args:
        contenders: the contenders; the outputs of all are compared with those of the first, a dense one.
        repeats: largest number of samples; see `interleaved`, as for the last two arguments.
        device: the device on which they run.
        gradients: whether torch records the calls for gradients; otherwise they run in inference mode.
        sample_s: shortest duration of a sample, in seconds.
        budget_s: seconds for all samples.

    Returns:
        The measurements, in the order of the contenders.
    """
    available = [contender for contender in contenders if not contender.unavailable]
    with torch.inference_mode(mode=not gradients), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_NO_ONEDNN)
        outputs = []
        for contender in available:
            with contender.context():
                outputs.append(contender.run())
        differences = [largest_difference(output, outputs[0]) for output in outputs]
        del outputs
        all_samples = interleaved(
            [Call(run=contender.run, context=contender.context) for contender in available],
            repeats=repeats,
            sample_s=sample_s,
            budget_s=budget_s,
            clock=clock_of(device),
        )
    timed = {
        contender.name: ContenderResult(
            name=contender.name,
            kind=contender.kind,
            times_s=samples.times_s,
            calls_per_sample=samples.calls,
            size_bytes=contender.size_bytes(),
            largest_difference=difference,
        )
        for contender, samples, difference in zip(available, all_samples, differences, strict=True)
    }
    return tuple(
        timed.get(contender.name)
        or ContenderResult(name=contender.name, kind=contender.kind, unavailable=contender.unavailable)
        for contender in contenders
    )


def module_bytes(module: nn.Module) -> int:
    """Return the bytes that a layer or model holds: parameters, packed int8 weights, and the caches of MPO layers.

    Args:
        module: the layer or model; shared parameters count once.

    Example:
        >>> module_bytes(nn.Linear(2, 3))
        36
    """
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    cached = sum(int(getattr(layer, "cached_bytes", 0)) for layer in module.modules())
    return parameters + cached + packed_bytes(module)


def largest_difference(outputs: object, reference: object) -> float | None:
    """Return the largest absolute difference between two trees of outputs.

    Args:
        outputs: tensors in tuples, lists or mappings.
        reference: the same; additional tensors of one tree are not compared.

    Returns:
        The difference; None if nothing can be compared, or a difference is not finite.

    Example:
        >>> largest_difference((torch.zeros(2), {"h": torch.ones(1)}), (torch.ones(2), {"h": torch.zeros(1)}))
        1.0
    """
    pairs = zip(_comparable(outputs), _comparable(reference), strict=False)
    differences = [float((new.double() - old.double()).abs().max()) for new, old in pairs if new.shape == old.shape]
    return max(differences) if differences and all(map(math.isfinite, differences)) else None


def _comparable(tree: object) -> Iterator[Tensor]:
    """Yield the floating-point tensors of a tree that are not empty."""
    return (tensor.detach() for tensor in tensors(tree) if tensor.is_floating_point() and tensor.numel())


class _Cells:
    """An LSTM for a single step, with one cell per level and direction."""

    def __init__(self, lstm: nn.LSTM) -> None:
        suffixes = ("", "_reverse") if lstm.bidirectional else ("",)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if lstm.bias else ("weight_ih", "weight_hh")
        self._levels: list[list[tuple[Any, ...]]] = [
            [tuple(getattr(lstm, f"{name}_l{level}{suffix}") for name in names) for suffix in suffixes]
            for level in range(lstm.num_layers)
        ]

    def __call__(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """Return the output of the layer, of shape (1, batch, directions x hidden)."""
        step, states = inputs[0], iter(zip(hidden, cell, strict=True))
        for level in self._levels:
            outputs = [torch.lstm_cell(step, next(states), *weights)[0] for weights in level]
            step = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return step.unsqueeze(0)


def _libraries(device: str) -> list[tuple[str, Callable[[], AbstractContextManager[object]]]]:
    """Return the libraries that torch can use on a device, each with the context that selects it."""
    if device == "cuda":
        return [("cuDNN", nullcontext), ("native", _without_cudnn)]
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return [("oneDNN", nullcontext), ("native", _without_onednn)]
    return [("native", nullcontext)]


def _without_onednn() -> AbstractContextManager[object]:
    # None keeps a setting; setting the precision again would warn.
    return torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None, fp32_precision=None)


def _without_cudnn() -> AbstractContextManager[object]:
    return torch.backends.cudnn.flags(enabled=False)
