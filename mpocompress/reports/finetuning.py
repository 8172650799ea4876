"""What fine-tuning did to a compressed model, as plain numbers, and what they mean in words."""

from __future__ import annotations

from dataclasses import dataclass

from mpocompress.reports.calibration import VERDICTS

FINISHED = "finished"
"""Why a run ended that went on to its last step."""
INTERRUPTED = "interrupted"
ENDED_EARLY = "no better for a while"
DATA_ENDED = "the data ended"
"""Why others did. Whatever else is said there went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The model at one step, measured on what it is not trained on.

    Args:
        step: steps done.
        loss: the loss on held-out batches; None where it was not measured.
        divergence: of its outputs from those of the teacher there; None without a teacher.
        agreement: of a classifier, the fraction of answers that are the teacher's; None of others.
        score: what the user's own function says, larger being better; None without one.
        training_loss: mean loss of the steps since the last evaluation; None at the first one.
    """

    step: int
    loss: float | None
    divergence: float | None = None
    agreement: float | None = None
    score: float | None = None
    training_loss: float | None = None

    @property
    def merit(self) -> float:
        """What the best model is told by, larger being better: the score, or minus the loss."""
        return self.score if self.score is not None else -(self.loss or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningReport:
    """What fine-tuning did.

    Args:
        tool_version: version of mpocompress that trained.
        data: name of what it was trained on.
        teacher: name of the model that was learnt from; empty without one.
        loss: what was minimised, in words.
        kind: what the model puts out: `classification`, `embedding` or `regression`; empty where it did not matter.
        said: from where the kind is known, in words.
        trained: `all` parameters, or `cores`.
        trained_parameters: how many.
        steps: steps done.
        asked_steps: steps that were asked for, or that the asked time gave.
        batches_per_step: batches of every step, over all processes.
        samples: samples trained on, counted as often as they were seen.
        learning_rate: the largest step size; None where every tensor had one that suits its size.
        relative_step: that of a tensor as a share of the root mean square of its entries at the start; None where one
            was given for all.
        precision: `float32`, or that of the products where they were made in another one.
        seed: what was drawn with.
        measured_on: what the best was told by, in words.
        held_out: samples that the held-out loss was measured on; 0 where it was measured on what was trained on.
        best_step: the step whose weights were kept; 0 if none was better than the start.
        evaluations: the model at the start, and as it went on.
        stopped: `finished`, or why it ended earlier, in words.
        as_stored: the best weights again, rounded to what the file holds; None where that changed none.
        unrelated: divergence between the teacher's outputs for different inputs; None where it is not known.
        notes: what else the reader should know, a sentence each.
    """

    tool_version: str
    data: str
    teacher: str
    loss: str
    kind: str
    said: str
    trained: str
    trained_parameters: int
    steps: int
    asked_steps: int
    batches_per_step: int
    samples: int
    learning_rate: float | None
    precision: str
    seed: int
    measured_on: str
    held_out: int
    best_step: int
    evaluations: tuple[Evaluation, ...]
    stopped: str
    relative_step: float | None = None
    as_stored: Evaluation | None = None
    unrelated: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> Evaluation:
        """The model as it came."""
        return self.evaluations[0]

    @property
    def after(self) -> Evaluation:
        """The model as it was kept, and as a file holds it."""
        return self.as_stored or self._best

    @property
    def _best(self) -> Evaluation:
        return next(one for one in self.evaluations if one.step == self.best_step)

    @property
    def is_finished(self) -> bool:
        """Whether it went on to the end."""
        return self.stopped == FINISHED

    @property
    def is_interrupted(self) -> bool:
        """Whether it was stopped from outside, and could go on."""
        return self.stopped == INTERRUPTED

    @property
    def is_broken(self) -> bool:
        """Whether it could not go on."""
        return self.stopped not in (FINISHED, INTERRUPTED, ENDED_EARLY, DATA_ENDED)

    def flaw(self) -> str:
        """What is wrong with the figures, in words; empty where nothing is."""
        steps = [one.step for one in self.evaluations]
        if not steps or steps[0] != 0 or steps != sorted(set(steps)):
            return "evaluations are not in order from step 0 on"
        if self.best_step not in steps:
            return f"the best step, {self.best_step}, was not evaluated"
        if any(one.merit > self._best.merit for one in self.evaluations):
            return f"step {self.best_step} was kept, and another is better"
        if steps[-1] > self.steps or min(self.samples, self.trained_parameters, self.held_out) < 0:
            return "counts that do not belong together"
        return ""

    def verdict(self) -> tuple[str, ...]:
        """What the figures mean, in words.

        Returns:
            A sentence or two.
        """
        before, after = self.before, self.after
        broke = (f"Training broke off: {self.stopped}. A smaller step size may help.",) if self.is_broken else ()
        if not self.best_step:
            advice = "Resume it." if self.is_interrupted else "Give more steps or other data, or a smaller step size."
            return (
                *broke,
                "Fine-tuning made nothing better: the weights are those from before.",
                *(() if broke else (advice,)),
            )
        name = "score" if after.score is not None else "loss"
        said = f"Fine-tuning: {name} {_told(before)} before, {_told(after)} after."
        extent = self.extent(after)
        if extent is None:
            return (*broke, f"{said} Check it on your own task.")
        meaning, _ = next((words for limit, *words in VERDICTS if extent <= limit), VERDICTS[-1][1:])
        where = "held-out batches" if self.held_out else "the training batches themselves"
        advice = "Check it on your own task all the same."
        if extent > VERDICTS[1][0]:
            advice = "More steps or more data may bring it nearer; so does keeping more."
        same = f", with the same answer for {after.agreement:.1%}" if after.agreement is not None else ""
        return (*broke, f"{said} On {where} the outputs {meaning} against the original{same}.", advice)

    def extent(self, one: Evaluation) -> float | None:
        """How far outputs are from the teacher's, as in `CalibrationReport.extent`; None where it is not known."""
        if one.divergence is None:
            return None
        if self.kind == "classification":
            return max(one.divergence, 1.0 - one.agreement if one.agreement is not None else 0.0)
        return one.divergence / self.unrelated if self.unrelated else None


def _told(one: Evaluation) -> str:
    """What the best is told by."""
    if one.score is not None:
        return f"{one.score:.4g}"
    return f"{one.loss:.3g}" if one.loss is not None else "unknown"
