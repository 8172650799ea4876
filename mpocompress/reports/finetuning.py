"""The fine-tuning section of a report: the settings of the training, its evaluations, and the verdict."""

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from mpocompress.reports.calibration import (
    VERDICTS,
    OutputKind,
    UnrelatedDivergence,
    meaning_of,
    output_change,
)
from mpocompress.reports.json_documents import Count, Fraction, NonNegative, Number, Positive

FINISHED = "finished"
INTERRUPTED = "interrupted"
ENDED_EARLY = "early stopping"
DATA_ENDED = "end of data"
"""Reasons to stop; any other reason is a failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The evaluation of the model after a step, on data that it is not trained on.

    Args:
        step: number of steps done.
        loss: loss on the held-out batches; None if it was not measured.
        divergence: divergence of the outputs from those of the teacher; None without a teacher.
        agreement: fraction of a classifier's answers that are those of the teacher; None for other models.
        score: value of the user's own score function, higher is better; None without one.
        training_loss: mean training loss since the last evaluation; None for the first one.
    """

    step: Count
    loss: Number | None
    divergence: Number | None = None
    agreement: Fraction | None = None
    score: Number | None = None
    training_loss: Number | None = None

    @property
    def selection_metric(self) -> float:
        """What the best weights are selected by, higher is better: the score, or the negated loss without one."""
        return self.score if self.score is not None else -(self.loss or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class FinetuningReport:
    """A fine-tuning run.

    Args:
        tool_version: version of mpocompress that trained the model.
        data: name of the training data.
        teacher: name of the teacher; empty without one.
        loss: name of the loss.
        kind: kind of the outputs; empty if the loss does not depend on it.
        kind_from: description of the source of `kind`; empty if `kind` is.
        trained: which parameters were trained.
        trained_parameters: number of parameters that were trained.
        steps: number of steps done.
        requested_steps: number of steps requested, or possible in the time requested.
        batches_per_step: number of batches in every step, over all processes.
        samples: number of samples trained on, each counted as often as it was used.
        learning_rate: largest learning rate; None if every tensor had its own.
        precision: dtype of the products, `float32` or another.
        seed: seed of the random numbers.
        selection_metric: description of the criterion that selected the best weights.
        held_out_samples: number of samples of the held-out loss; 0 if it was measured on training batches.
        best_step: number of steps after which the selected weights were reached; 0 if none were better than the first.
        evaluations: every evaluation, from step 0 on.
        stop_reason: `finished`, `interrupted`, `early stopping`, `end of data`, or a description of the failure.
        relative_learning_rate: largest learning rate of each tensor as a share of the root mean square of its entries
            at the start; None if all tensors had the same learning rate.
        as_stored: evaluation of the selected weights after rounding to the dtypes of the file; None if that changed
            none.
        unrelated_divergence: divergence between the teacher's outputs for different inputs; None if it is not known.
        notes: further notes, as sentences.
    """

    __module__ = "mpocompress"

    tool_version: str
    data: str
    teacher: str
    loss: str
    kind: Literal[""] | OutputKind
    kind_from: str
    trained: Literal["all", "cores"]
    trained_parameters: Count
    steps: Count
    requested_steps: Count
    batches_per_step: Positive
    samples: Count
    learning_rate: NonNegative | None
    precision: str
    seed: Count
    selection_metric: str
    held_out_samples: Count
    best_step: Count
    evaluations: Annotated[tuple[Evaluation, ...], msgspec.Meta(min_length=1)]
    stop_reason: str
    relative_learning_rate: NonNegative | None = None
    as_stored: Evaluation | None = None
    unrelated_divergence: UnrelatedDivergence | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the data, the number of steps and the change of the selection metric."""
        before, after = _metric(self.before), _metric(self.after)
        name = _metric_name(self.after)
        return f"<FinetuningReport: {self.data}, {self.steps} steps, {name} {before} before, {after} after>"

    @property
    def before(self) -> Evaluation:
        """Evaluation of the model before training."""
        return self.evaluations[0]

    @property
    def after(self) -> Evaluation:
        """Evaluation of the selected weights, as they are stored."""
        return self.as_stored or self._best

    @property
    def _best(self) -> Evaluation:
        return next(evaluation for evaluation in self.evaluations if evaluation.step == self.best_step)

    @property
    def is_finished(self) -> bool:
        """Whether the run reached its last step."""
        return self.stop_reason == FINISHED

    @property
    def is_interrupted(self) -> bool:
        """Whether the run was interrupted and can be resumed."""
        return self.stop_reason == INTERRUPTED

    @property
    def is_broken(self) -> bool:
        """Whether the run failed."""
        return self.stop_reason not in (FINISHED, INTERRUPTED, ENDED_EARLY, DATA_ENDED)

    def inconsistency(self) -> str:
        """Return a description of contradicting figures; empty if there are none."""
        steps = [evaluation.step for evaluation in self.evaluations]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            return "evaluations are not in order from step 0 on"
        if self.best_step not in steps:
            return f"the best step, {self.best_step}, was not evaluated"
        best = self._best.selection_metric
        if any(evaluation.selection_metric > best for evaluation in self.evaluations):
            return f"step {self.best_step} was selected, but another one is better"
        if steps[-1] > self.steps:
            return f"step {steps[-1]} was evaluated, but only {self.steps} were done"
        return ""

    def verdict(self) -> tuple[str, ...]:
        """Return one to three sentences on what the figures mean."""
        failure = (f"Training failed: {self.stop_reason}. A lower learning rate may help.",) if self.is_broken else ()
        if not self.best_step:
            advice = "Resume it." if self.is_interrupted else "Try more steps, other data or a lower learning rate."
            return (
                *failure,
                "Fine-tuning did not improve the model: its weights are unchanged.",
                *(() if failure else (advice,)),
            )
        before, after = self.before, self.after
        finding = f"Fine-tuning: {_metric_name(after)} {_metric(before)} before, {_metric(after)} after."
        change = self.output_change(after)
        if change is None:
            return (*failure, f"{finding} Evaluate the model on your own task.")
        meaning, _ = meaning_of(change)
        batches = "held-out batches" if self.held_out_samples else "the training batches themselves"
        advice = "Evaluate the model on your own task before you use it."
        if change > VERDICTS[1][0]:
            advice = "More steps or more data may reduce the difference; so does keeping more parameters."
        same = f", with the same answer for {after.agreement:.1%}" if after.agreement is not None else ""
        comparison = f"Compared with the original on {batches}, the outputs {meaning}{same}."
        return (*failure, f"{finding} {comparison}", advice)

    def output_change(self, evaluation: Evaluation) -> float | None:
        """Return how much the outputs differ from the teacher's, see `calibration.output_change`; None if not known.

        Args:
            evaluation: one of this run.
        """
        return output_change(
            self.kind,
            divergence=evaluation.divergence,
            unrelated=self.unrelated_divergence,
            agreement=evaluation.agreement,
        )


def _metric_name(evaluation: Evaluation) -> str:
    return "score" if evaluation.score is not None else "loss"


def _metric(evaluation: Evaluation) -> str:
    """Return the score or the loss as text."""
    if evaluation.score is not None:
        return f"{evaluation.score:.4g}"
    return f"{evaluation.loss:.3g}" if evaluation.loss is not None else "unknown"
