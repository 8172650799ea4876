"""State of a run between two steps, apart from its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mpocompress.finetuning.data import Position
from mpocompress.finetuning.schedule import PATIENCE
from mpocompress.reports.finetuning import Evaluation
from mpocompress.reports.json_documents import Count, NonNegative, Number


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """State of a run.

    Args:
        expected_steps: number of steps that the run will probably have.
        step: steps done.
        samples: samples trained on, counted as often as they were used.
        elapsed_s: seconds spent when the state was saved.
        position: position in the training data.
        relative_learning_rate: largest learning rate of a tensor relative to the size of its entries.
        evaluations: all evaluations.
        loss_sum: sum of the training losses since the last evaluation.
        loss_count: number of these losses.
        cuts: how often the learning rate was cut.
        last_cut: number of the evaluation after which it was last cut; 0 at first.
    """

    expected_steps: Count
    step: Count = 0
    samples: Count = 0
    elapsed_s: NonNegative = 0.0
    position: Position = field(default_factory=Position)
    relative_learning_rate: NonNegative = 0.0
    evaluations: tuple[Evaluation, ...] = ()
    loss_sum: Number = 0.0
    loss_count: Count = 0
    cuts: Count = 0
    last_cut: Count = 0

    @property
    def best_step(self) -> int:
        """Step of the best evaluation."""
        return max(self.evaluations, key=lambda evaluation: evaluation.selection_metric).step

    def is_better(self, evaluation: Evaluation) -> bool:
        """Return whether an evaluation is better than all so far."""
        return all(evaluation.selection_metric > earlier.selection_metric for earlier in self.evaluations)

    def after_step(self, *, samples: int, position: Position, loss: float) -> RunState:
        """Return the state after a step.

        Args:
            samples: samples of the step.
            position: position in the training data.
            loss: training loss.
        """
        return replace(
            self,
            step=self.step + 1,
            samples=self.samples + samples,
            position=position,
            loss_sum=self.loss_sum + loss,
            loss_count=self.loss_count + 1,
        )

    def after_evaluation(self, evaluation: Evaluation) -> RunState:
        """Return the state after an evaluation, which gets the mean training loss since the one before."""
        mean = self.loss_sum / self.loss_count if self.loss_count else None
        evaluations = (*self.evaluations, replace(evaluation, training_loss=mean))
        return replace(self, evaluations=evaluations, loss_sum=0.0, loss_count=0)

    def after_cut(self) -> RunState:
        """Return the state after a return to the best weights with a smaller learning rate."""
        return replace(self, cuts=self.cuts + 1, last_cut=len(self.evaluations) - 1)

    @property
    def is_stalled(self) -> bool:
        """Whether the last evaluations since a cut found neither a better score nor a smaller loss."""
        before, recent = self.evaluations[: self.last_cut + 1], self.evaluations[self.last_cut + 1 :]
        if len(recent) < PATIENCE:
            return False
        before, recent = (*before, *recent[:-PATIENCE]), recent[-PATIENCE:]
        losses = [[each.loss for each in part if each.loss is not None] for part in (recent, before)]
        has_smaller_loss = all(losses) and min(losses[0]) < min(losses[1])
        best, earlier = (max(each.selection_metric for each in part) for part in (recent, before))
        return not has_smaller_loss and best <= earlier
