"""The user's model with the weights of a checkpoint, run on the user's batches; weights can be tried and undone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpocompress.calibration.batches import Batches
from mpocompress.calibration.divergence import Measure, measure_for, primary
from mpocompress.calibration.hooks import Watch, find_watches, overheard
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.errors import CalibrationError, MPOCompressError
from mpocompress.reports.calibration import BEYOND, OutputKind
from mpocompress.user.batches import fed, moved
from mpocompress.user.code import told_with_its_line
from mpocompress.user.dense_model import copied, fill

SEED = 0
TUNING_SAMPLES = 48
"""Samples that decisions are measured on, at least."""
TUNING_SHARE = 0.25
"""Share of the batches to learn from that they are measured on, at most, but for one batch."""
TUNING_ANSWERS = 512
"""Rows of a classifier's outputs that they are measured on, at least."""

Values = Mapping[str, Tensor]
"""Name of a tensor in the checkpoint -> its values, in the shape it has there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What the original model puts out.

    Args:
        batches: what it is called with.
        outputs: what comes out, one tensor a batch.
    """

    batches: Sequence[object]
    outputs: Sequence[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far outputs are from those of the original.

    Args:
        divergence: the mean over all rows; `BEYOND` where one is not finite or has another shape.
        agreement: of a classifier, the fraction of rows whose largest entry is at the same place; None of others.
    """

    divergence: float
    agreement: float | None


class Rig:
    """A private copy of the user's model, in evaluation mode, with the weights of a checkpoint.

    Of the batches to learn from, the first are what decisions are measured on (`tuning`), so that these are not judged
    by what they were made for; `rest` are the others, or all where there would be none.

    Args:
        model: the user's model; it is copied, and its values do not matter.
        checkpoint: the weights.
        batches: what it is called with.
        kind: what its outputs are; None to tell it from them.

    Raises:
        ModelError: it cannot be copied, has a parameter that the checkpoint lacks, or none in common with it.
        CalibrationError: it does not take the batches, or puts out nothing that can be compared, or NaN.
    """

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, batches: Batches, kind: OutputKind | None = None
    ) -> None:
        self.model = copied(model)
        self._places = fill(self.model, checkpoint)
        self.model.eval().requires_grad_(requires_grad=False)
        self.device = str(next((one.device for one in self.model.parameters()), torch.device("cpu")))
        names = {place: name for name, places in self._places.items() for place in places}
        self.watches: tuple[Watch, ...] = find_watches(self.model, names)
        self.batches = batches
        output, named = primary(self.run(batches.learning[0]))
        first = self._rows(output, batches.learning[0])
        self.measure: Measure = measure_for([first], named=named, kind=kind)
        self.tuning = self._tuned([first])
        self.rest: Sequence[object] = batches.learning[len(self.tuning.batches) :] or batches.learning
        held_out = tuple(self.output(batch) for batch in batches.held_out)
        self.held_out = Reference(batches=batches.held_out, outputs=held_out)
        if self._compared((one, one) for one in (*self.tuning.outputs, *held_out)).divergence:
            raise CalibrationError(
                where=type(self.model).__name__,
                found="NaN or Inf in what it puts out for the calibration batches",
                why="there is nothing to compare the outputs of the compressed model with",
                action="Look at these batches and at the weights, or compress without calibration inputs.",
            )

    def _tuned(self, outputs: list[Tensor]) -> Reference:
        """As many batches as decisions are measured on, from the first ones."""
        batches = self.batches.learning
        while len(outputs) < len(batches) * TUNING_SHARE:
            few = self.batches.count(batches[: len(outputs)]) < TUNING_SAMPLES
            rows = sum(one.numel() // one.shape[-1] for one in outputs)
            if not few and (self.measure.kind != "classification" or rows >= TUNING_ANSWERS):
                break
            outputs.append(self.output(batches[len(outputs)]))
        return Reference(batches=batches[: len(outputs)], outputs=outputs)

    @property
    def scale(self) -> float:
        """What a large divergence is: a nat, or that between outputs for different inputs."""
        return 1.0 if self.measure.kind == "classification" else self.unrelated(self.tuning) or 0.0

    def run(self, batch: object) -> object:
        """What the model puts out for a batch, without gradients.

        Args:
            batch: what it is called with.

        Returns:
            Its output.

        Raises:
            CalibrationError: the model raises.
        """
        with torch.no_grad():
            return self.run_openly(batch)

    def run_openly(self, batch: object) -> object:
        """The same, open to gradients.

        Args:
            batch: what it is called with.

        Returns:
            Its output.

        Raises:
            CalibrationError: the model raises.
        """
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(SEED)  # a model that draws draws the same every time
                return fed(self.model, moved(self.batches.inputs(batch), self.device))
        except MPOCompressError:
            raise
        except Exception as error:
            raise CalibrationError(
                where=type(self.model).__name__,
                found=told_with_its_line(error),
                why="the model does not take the calibration batches",
                action="Give batches that the model is called with: a tensor, a tuple of arguments, or a dict of "
                "named ones; of inputs with labels the inputs alone, or a loss as well.",
            ) from error

    def output(self, batch: object) -> Tensor:
        """The tensor that outputs are compared by.

        Args:
            batch: what the model is called with.

        Returns:
            The tensor, on the CPU.
        """
        return self._rows(primary(self.run(batch))[0], batch)

    def _rows(self, output: Tensor, batch: object) -> Tensor:
        """An output on the CPU; of one that has a single number for every sample, each is a row."""
        is_squeezed = output.dim() == 1 and len(output) == self.batches.count([batch])
        return (output[:, None] if is_squeezed else output).cpu()

    def divergence(self, reference: Reference) -> float:
        """How far the outputs are from those of the original.

        Args:
            reference: those.

        Returns:
            The mean over all rows of outputs; `BEYOND` where one is not finite or has another shape.
        """
        return self.compared(reference).divergence

    def compared(self, reference: Reference) -> Comparison:
        """Compare the outputs with those of the original.

        Args:
            reference: those.

        Returns:
            How far they are apart.
        """
        return self._compared(
            (expected, self.output(batch)) for batch, expected in zip(reference.batches, reference.outputs, strict=True)
        )

    def unrelated(self, reference: Reference) -> float | None:
        """How far outputs of the original are apart for different inputs.

        Args:
            reference: its outputs.

        Returns:
            The divergence of every sample's output from that of the next; None where there is one sample only.
        """
        pairs = [(one, one.roll(1, dims=0)) for one in reference.outputs if one.dim() > 1 and len(one) > 1]
        if not pairs:
            others = (*reference.outputs[1:], *reference.outputs[:1])
            both = zip(reference.outputs, others, strict=True)
            pairs = [(one, other) for one, other in both if one is not other and one.shape == other.shape]
        found = self._compared(pairs).divergence if pairs else 0.0
        return found if 0.0 < found < BEYOND else None

    def _compared(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Comparison:
        total, divisor, agreed, count = 0.0, 0.0, 0, 0
        for expected, found in pairs:
            if expected.shape != found.shape:
                return Comparison(divergence=BEYOND, agreement=None)
            rows, weight = self.measure.divergences(expected, found)
            total, divisor = total + float(rows.sum()), divisor + weight
            agreed += int(self.measure.agreement(expected, found).sum())
            count += len(rows)
        mean = total / divisor if divisor else 0.0
        return Comparison(
            divergence=mean if mean < BEYOND else BEYOND,
            agreement=agreed / count if count and self.measure.kind == "classification" else None,
        )

    @contextlib.contextmanager
    def holding(self, values: Values) -> Iterator[None]:
        """Let the model have other weights in the block.

        Args:
            values: the weights; names that the model does not have are left out.
        """
        before = {name: self._get(name) for name in values if name in self._places}
        try:
            for name in before:
                self._set(name, values[name])
            yield
        finally:
            for name, value in before.items():
                self._set(name, value)

    def calls(self, module: nn.Module, batch: object) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        """The arguments of every call of a module for a batch.

        Args:
            module: a module of the model.
            batch: what the model is called with.

        Returns:
            Positional and named arguments.
        """
        heard: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []
        with overheard(module, heard.append):
            self.run(batch)
        return heard

    def _get(self, name: str) -> Tensor:
        return _parameter(self.model, self._places[name][0]).detach().clone()

    def _set(self, name: str, value: Tensor) -> None:
        with torch.no_grad():
            for place in self._places[name]:
                _parameter(self.model, place).copy_(value)


def _parameter(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(path), leaf)
    return found
