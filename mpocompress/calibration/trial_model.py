"""The user's model with the weights of a checkpoint, run on the calibration batches with trial weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.calibration.batches import CalibrationBatches, sample_total
from mpocompress.calibration.divergence import DivergenceTotals, Measure, measure_for, unrelated_divergence
from mpocompress.calibration.hooks import ObservedModule, find_observed, recording_calls
from mpocompress.calibration.outputs import output_rows, primary
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.errors import CalibrationError, MPOCompressError
from mpocompress.reports.calibration import BEYOND, OutputKind
from mpocompress.user.batches import Batch, call_model, to_device
from mpocompress.user.code import describe_error
from mpocompress.user.dense_model import copy_model, device_of, load_weights
from mpocompress.user.randomness import Randomness

FORWARD_SEED = 0
VALIDATION_SAMPLES = 48
"""Smallest number of samples that decisions are measured on."""
VALIDATION_SHARE = 0.25
"""Largest share of the batches to learn from that decisions are measured on, unless that is less than one batch."""
VALIDATION_ROWS = 512
"""Smallest number of rows of a classifier's outputs that decisions are measured on."""

Values = Mapping[str, Tensor]
"""Name of a tensor in the checkpoint -> its values, in the shape it has there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """Outputs of the original model.

    Args:
        batches: the batches.
        outputs: the output for each batch.
    """

    batches: Sequence[Batch]
    outputs: Sequence[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Difference between outputs and those of the original model.

    Args:
        divergence: mean over all rows; `BEYOND` if an output is not finite or has another shape.
        agreement: for classification, the fraction of rows with their largest entry at the same place; None for others.
    """

    divergence: float
    agreement: float | None


class TrialModel:
    """A private copy of the user's model, in evaluation mode, with the weights of a checkpoint.

    Decisions are measured on the first of the batches to learn from (`validation`), so that they are made on other
    batches than the trial weights; `rest` are the others, or all if there would be none.

    Args:
        model: the user's model; it is copied, and its weights do not matter.
        checkpoint: the weights.
        batches: the calibration batches.
        kind: kind of the outputs; None to infer it.

    Raises:
        ModelError: the model cannot be copied, or has a parameter that the checkpoint lacks.
        CalibrationError: the model does not accept the batches, or its outputs cannot be compared or are NaN.
    """

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, batches: CalibrationBatches, kind: OutputKind | None = None
    ) -> None:
        self.model = copy_model(model)
        self._places = load_weights(self.model, checkpoint)
        self.model.eval().requires_grad_(requires_grad=False)
        self.device = str(device_of(self.model))
        names = {place: name for name, places in self._places.items() for place in places}
        self.observed: tuple[ObservedModule, ...] = find_observed(self.model, names)
        self.batches = batches
        output, name = primary(self.run(batches.learning[0]))
        first = output_rows(output, batches.learning[0].samples).cpu()
        self.measure: Measure = measure_for([first], named=name, kind=kind)
        self.validation = self._validation([first])
        self.rest: Sequence[Batch] = batches.learning[len(self.validation.batches) :] or batches.learning
        held_out = tuple(self.output(batch) for batch in batches.held_out)
        self.held_out = Reference(batches=batches.held_out, outputs=held_out)
        if self._compared((output, output) for output in (*self.validation.outputs, *held_out)).divergence:
            raise CalibrationError(
                where=type(self.model).__name__,
                found="NaN or Inf in the outputs for the calibration batches",
                why="the outputs of the compressed model cannot be compared with them",
                action="Check these batches and the weights, or compress without calibration inputs.",
            )

    def _validation(self, outputs: list[Tensor]) -> Reference:
        """Return the first batches, as many as decisions need; `outputs` are those known already."""
        batches = self.batches.learning
        while len(outputs) < len(batches) * VALIDATION_SHARE:
            has_samples = sample_total(batches[: len(outputs)]) >= VALIDATION_SAMPLES
            rows = sum(output.numel() // output.shape[-1] for output in outputs)
            if has_samples and (self.measure.kind != "classification" or rows >= VALIDATION_ROWS):
                break
            outputs.append(self.output(batches[len(outputs)]))
        return Reference(batches=batches[: len(outputs)], outputs=outputs)

    @property
    def scale(self) -> float:
        """Divergence that counts as large: one nat, or for other kinds that between outputs for different inputs."""
        return 1.0 if self.measure.kind == "classification" else self.unrelated(self.validation) or 0.0

    def run(self, batch: Batch) -> object:
        """Return the output of the model for a batch, without gradients.

        Raises:
            CalibrationError: the model raises.
        """
        with torch.no_grad():
            return self.run_with_gradients(batch)

    def run_with_gradients(self, batch: Batch) -> object:
        """Return the output of the model for a batch, with gradients.

        Raises:
            CalibrationError: the model raises.
        """
        try:
            with Randomness(FORWARD_SEED).drawing():  # a model that draws random numbers draws the same ones every time
                return call_model(self.model, to_device(batch.inputs, self.device))
        except MPOCompressError:
            raise
        except Exception as error:
            raise CalibrationError(
                where=type(self.model).__name__,
                found=describe_error(error),
                why="the model does not accept the calibration batches",
                action="Give batches that the model can be called with: a tensor, a tuple of arguments, or a mapping "
                "of named arguments. If batches are inputs with labels, give the inputs alone, or a loss as well.",
            ) from error

    def output(self, batch: Batch) -> Tensor:
        """Return the output that is compared, on the CPU, shape (..., outputs)."""
        return output_rows(primary(self.run(batch))[0], batch.samples).cpu()

    def divergence(self, reference: Reference) -> float:
        """Return the mean divergence from the original; `BEYOND` if an output is not finite or has another shape."""
        return self.compared(reference).divergence

    def compared(self, reference: Reference) -> Comparison:
        """Compare the outputs of the model as it is now with those of the original."""
        return self._compared(
            (expected, self.output(batch)) for batch, expected in zip(reference.batches, reference.outputs, strict=True)
        )

    def unrelated(self, reference: Reference) -> float | None:
        """Return the divergence between outputs of the original for different inputs; see `unrelated_divergence`."""
        return unrelated_divergence(self.measure, reference.outputs)

    def _compared(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Comparison:
        totals = DivergenceTotals()
        for expected, output in pairs:
            if expected.shape != output.shape:
                return Comparison(divergence=BEYOND, agreement=None)
            totals += self.measure.totals(expected, output)
        return Comparison(
            divergence=totals.mean if totals.mean < BEYOND else BEYOND,
            agreement=totals.agreement if self.measure.kind == "classification" else None,
        )

    @contextlib.contextmanager
    def holding(self, values: Values) -> Iterator[None]:
        """Give the model other weights in the block, and restore them after it.

        Args:
            values: the weights; names that the model does not have are ignored.
        """
        before = {name: self._get(name) for name in values if name in self._places}
        try:
            for name in before:
                self._set(name, values[name])
            yield
        finally:
            for name, value in before.items():
                self._set(name, value)

    def calls(self, module: nn.Module, batch: Batch) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        """Return the positional and named arguments of every call of a module of the model for a batch."""
        calls: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
        with recording_calls(module, calls.append):
            self.run(batch)
        return calls

    def _get(self, name: str) -> Tensor:
        return _parameter(self.model, self._places[name][0]).detach().clone()

    def _set(self, name: str, value: Tensor) -> None:
        with torch.no_grad():
            for place in self._places[name]:
                _parameter(self.model, place).copy_(value)


def _parameter(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    parameter: Tensor = getattr(model.get_submodule(path), leaf)
    return parameter
