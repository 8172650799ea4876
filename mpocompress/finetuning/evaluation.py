"""Evaluation of a model during training: the loss on held-out batches, the divergence from the teacher, and a score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.calibration.divergence import DivergenceTotals, unrelated_divergence
from mpocompress.calibration.outputs import output_rows
from mpocompress.errors import FinetuneError, MPOCompressError
from mpocompress.finetuning.forward import compared_output, run_model
from mpocompress.finetuning.objective import Objective
from mpocompress.finetuning.options import Score
from mpocompress.finetuning.recurrent_state import StatefulRNN
from mpocompress.reports.finetuning import Evaluation
from mpocompress.text import shown
from mpocompress.user.batches import Batch
from mpocompress.user.code import describe_error
from mpocompress.user.randomness import Randomness, Stream, stream_seed

CACHE_BYTES = 2**28
"""Largest size of the teacher's outputs for all held-out batches that are cached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """An evaluation, with the figure that the learning rate follows.

    Args:
        evaluation: the evaluation.
        distance: mean divergence from the teacher as it is part of the training loss; None without a teacher.
    """

    evaluation: Evaluation
    distance: float | None


class Evaluator:
    """Evaluates a model between steps.

    Args:
        model: the model.
        teacher: the teacher; None without one.
        objective: the training loss.
        held_out: the batches to evaluate on.
        score: the user's score; None without one.
        stateful: hooks of both models if states are carried from batch to batch.
        seed: seed of the run; random numbers drawn by the models are the same in every evaluation.
        device: device of the models.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        teacher: nn.Module | None,
        objective: Objective,
        held_out: Sequence[Batch],
        score: Score | None,
        stateful: Sequence[StatefulRNN],
        seed: int,
        device: torch.device,
    ) -> None:
        self._model, self._teacher, self._objective = model, teacher, objective
        self._held_out, self._score, self._stateful = held_out, score, stateful
        self._seed, self._device = seed, device
        self._cache: dict[int, Tensor] = {}
        self._is_caching = True

    def evaluate(self, step: int) -> Measurement:
        """Evaluate the model in evaluation mode, in full precision, without gradients; it is left in that mode.

        Args:
            step: number of steps done.

        Returns:
            The evaluation; if a figure is not finite, one whose loss is NaN.

        Raises:
            FinetuneError: the model or the score fails, or a figure is not finite before the first step.
        """
        self._model.eval()
        losses: list[tuple[float, int]] = []
        distances: list[tuple[float, int]] = []
        totals = DivergenceTotals()
        with self._isolated():
            for place, held_out in enumerate(self._held_out):
                batch = held_out.to(self._device)
                expected = self._expected(place, batch)
                loss = self._objective.of_output(run_model(self._model, batch), expected, batch)
                losses.append((float(loss.total), loss.rows))
                if loss.distance is not None:
                    distances.append((float(loss.distance), loss.rows))
                if loss.compared is not None and self._objective.measure is not None:
                    totals += self._objective.measure.totals(*loss.compared)
        is_classifier = self._objective.measure is not None and self._objective.measure.kind == "classification"
        evaluation = Evaluation(
            step=step,
            loss=weighted_mean(losses),
            divergence=totals.mean if totals.rows else None,
            agreement=totals.agreement if is_classifier else None,
            score=self._scored(),
        )
        if not _is_finite(evaluation):
            if step == 0:
                raise self._not_finite(evaluation)
            evaluation = Evaluation(step=step, loss=math.nan)
        return Measurement(evaluation=evaluation, distance=weighted_mean(distances) if distances else None)

    def unrelated(self) -> float | None:
        """Return the divergence between the teacher's outputs for different inputs; see `unrelated_divergence`."""
        measure = self._objective.measure
        if self._teacher is None or measure is None:
            return None
        with self._isolated():
            return unrelated_divergence(measure, self._teacher_rows())

    def _teacher_rows(self) -> Iterator[Tensor]:
        for place, batch in enumerate(self._held_out):
            expected = self._expected(place, batch.to(self._device))
            if expected is not None:
                yield output_rows(expected, batch.samples)

    @contextmanager
    def _isolated(self) -> Iterator[None]:
        """Run without gradients and without carried states, with random numbers of the evaluation."""
        seed = stream_seed(self._seed, Stream.EVALUATION)
        with torch.no_grad(), Randomness(seed).drawing(), ExitStack() as stack:
            for hooks in self._stateful:
                stack.enter_context(hooks.fresh())
            yield

    def _expected(self, place: int, batch: Batch) -> Tensor | None:
        """Return the compared output of the teacher for a held-out batch."""
        if self._teacher is None or self._objective.measure is None:
            return None
        if place in self._cache:
            return self._cache[place].to(self._device)
        output = compared_output(run_model(self._teacher, batch))
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in (output, *self._cache.values()))
        self._is_caching &= size_bytes <= CACHE_BYTES
        if self._is_caching:
            self._cache[place] = output.cpu()
        else:
            self._cache = {}  # all or none: with carried states, every batch needs those before it
        return output

    def _scored(self) -> float | None:
        if self._score is None:
            return None
        seed = stream_seed(self._seed, Stream.SCORE)
        with torch.no_grad(), Randomness(seed).drawing(), ExitStack() as stack:
            for hooks in self._stateful:
                stack.enter_context(hooks.paused())
            try:
                score = self._score(self._model)
                return float(score)  # type: ignore[arg-type] # whatever the user's function returns
            except MPOCompressError:
                raise
            except Exception as error:
                raise FinetuneError(
                    where="score",
                    found=shown(describe_error(error)),
                    why="a score is a number; higher is better",
                    action="Fix the error above: return a float from the function that evaluates the model.",
                ) from error

    def _not_finite(self, evaluation: Evaluation) -> FinetuneError:
        is_score = evaluation.score is not None and not math.isfinite(evaluation.score)
        return FinetuneError(
            where=type(self._model).__name__,
            found=f"a score of {evaluation.score}" if is_score else "outputs that are NaN or Inf",
            why="improvements could not be measured from it",
            action="Check the held-out batches and the weights; a score must be finite.",
        )


def _is_finite(evaluation: Evaluation) -> bool:
    figures = (evaluation.loss, evaluation.divergence, evaluation.score)
    return all(figure is None or math.isfinite(figure) for figure in figures)


def weighted_mean(parts: Sequence[tuple[float, int]]) -> float:
    """Return the mean of values with weights; 0 if there are none.

    Args:
        parts: value and weight.

    Example:
        >>> weighted_mean([(1.0, 1), (4.0, 2)])
        3.0
    """
    weight = sum(count for _, count in parts)
    return sum(value * count for value, count in parts) / weight if weight else 0.0
