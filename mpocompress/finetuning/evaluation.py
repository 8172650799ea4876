"""A model measured on held-out batches, and by the user's own score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from mpocompress.errors import MPOCompressError, TuningError
from mpocompress.finetuning.data import Example
from mpocompress.finetuning.objective import Objective, called, compared, mean_of
from mpocompress.finetuning.options import Score
from mpocompress.finetuning.recurrent_state import Carrier
from mpocompress.reports.finetuning import Evaluation
from mpocompress.text import shown
from mpocompress.user.code import told_with_its_line
from mpocompress.user.randomness import Randomness, mixed

REMEMBERED_BYTES = 2**28
"""The teacher's outputs for the held-out batches are kept, up to so many bytes."""


class Judge:
    """Measures a model between steps.

    Args:
        model: the model.
        teacher: what it learns from; None without one.
        objective: what is minimised.
        held_out: batches that it is measured on.
        score: the user's own measure; None without one.
        carriers: of the states of the model and of the teacher; empty where no state is carried.
        seed: draws in the model are the same at every measurement.
        device: where the models are.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        teacher: nn.Module | None,
        objective: Objective,
        held_out: Sequence[Example],
        score: Score | None,
        carriers: Sequence[Carrier],
        seed: int,
        device: torch.device,
    ) -> None:
        self._model, self._teacher, self._objective = model, teacher, objective
        self._held_out, self._score, self._carriers = held_out, score, carriers
        self._seed, self._device = seed, device
        self._remembered: dict[int, Tensor] = {}
        self._remembers = True

    def measured(self, step: int) -> Evaluation:
        """Measure the model as it is, in evaluation mode, in full precision, without gradients.

        Args:
            step: steps done.

        Returns:
            The measurement. The model is left in evaluation mode.

        Raises:
            TuningError: the model or the score fails, or, before the first step, a figure is not finite.
        """
        self._model.eval()
        losses: list[tuple[float, int]] = []
        distances: list[tuple[float, int]] = []
        agreed = counted = 0
        with torch.no_grad(), Randomness(mixed(self._seed, 2)).drawing(), ExitStack() as stack:
            for carrier in self._carriers:
                stack.enter_context(carrier.afresh())
            for place, one in enumerate(self._held_out):
                example = one.on(self._device)
                expected = self._expected(place, example)
                found = self._objective.losses(called(self._model, example), expected, example, exact=True)
                losses.append((float(found.total), found.rows))
                if found.distance is not None:
                    distances.append((float(found.distance), found.rows))
                agreed, counted = (
                    agreed + (found.agreed or 0),
                    counted + (found.rows if found.agreed is not None else 0),
                )
        score = self._scored()
        made = Evaluation(
            step=step,
            loss=mean_of(losses),
            divergence=mean_of(distances) if distances else None,
            agreement=agreed / counted if counted else None,
            score=score,
        )
        odd = [one for one in (made.loss, made.divergence, made.score) if one is not None and not math.isfinite(one)]
        if odd and step == 0:
            raise TuningError(
                where=type(self._model).__name__,
                found=f"a score of {score}"
                if score is not None and odd[-1] is score
                else "outputs that are NaN or Inf",
                why="it could not be told whether training makes it better",
                action="Look at the held-out batches and at the weights; a score is a finite number.",
            )
        if odd:
            return Evaluation(step=step, loss=math.nan)
        return made

    def unrelated(self) -> float | None:
        """How far outputs of the teacher are apart for different inputs.

        Returns:
            The distance of every sample's output from that of the next; None without a teacher, or for single samples.
        """
        parts = []
        with torch.no_grad(), Randomness(mixed(self._seed, 2)).drawing(), ExitStack() as stack:
            for carrier in self._carriers:
                stack.enter_context(carrier.afresh())
            for place, one in enumerate(self._held_out):
                expected = self._expected(place, one.on(self._device))
                if expected is not None and expected.dim() > 1 and len(expected) > 1:
                    rows, others = (each.reshape(-1, each.shape[-1]) for each in (expected, expected.roll(1, dims=0)))
                    parts.append((float(self._objective.distance(rows, others)), len(rows)))
        found = mean_of(parts)
        return found if parts and 0.0 < found < math.inf else None

    def _expected(self, place: int, example: Example) -> Tensor | None:
        """What the teacher puts out for a held-out batch."""
        if self._teacher is None or self._objective.measure is None:
            return None
        if place in self._remembered:
            return self._remembered[place].to(self._device)
        found = compared(called(self._teacher, example))
        held = (found, *self._remembered.values())
        self._remembers &= sum(one.numel() * one.element_size() for one in held) <= REMEMBERED_BYTES
        if self._remembers:
            self._remembered[place] = found.cpu()
        else:
            self._remembered = {}  # all or none: with a state that is carried on, every batch needs those before
        return found

    def _scored(self) -> float | None:
        if self._score is None:
            return None
        with torch.no_grad(), Randomness(mixed(self._seed, 3)).drawing(), ExitStack() as stack:
            for carrier in self._carriers:
                stack.enter_context(carrier.paused())
            try:
                found = self._score(self._model)
                return float(found)  # type: ignore[arg-type] # whatever the user's function gives
            except MPOCompressError:
                raise
            except Exception as error:
                raise TuningError(
                    where="score",
                    found=shown(told_with_its_line(error)),
                    why="a score is one number, larger being better",
                    action="Return a float from the function that judges the model.",
                ) from error
