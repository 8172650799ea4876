"""The training loss: the divergence from a teacher's outputs, a loss on targets, or a weighted sum of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mpocompress.calibration.divergence import Measure, measure_for
from mpocompress.calibration.options import LossFunction
from mpocompress.calibration.outputs import counted_rows, flat_rows, output_rows, primary
from mpocompress.errors import FinetuneError
from mpocompress.finetuning.forward import as_finetune_error, compared_output, run_model
from mpocompress.finetuning.precision import autocast
from mpocompress.finetuning.target_loss import default_loss, model_loss, user_loss
from mpocompress.reports.calibration import OutputKind
from mpocompress.user.batches import Batch
from mpocompress.user.randomness import Randomness

SHARE_WITH_TARGETS = 0.5
"""Share of the divergence from the teacher in the loss if there are targets too."""
PROBE_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchLoss:
    """The loss of one batch.

    Args:
        total: the training loss.
        rows: number of rows of outputs that count.
        distance: part of the loss that is the divergence from the teacher, in float32; None without a teacher.
        compared: rows of the teacher's and of the model's outputs that count, (rows, outputs); None without a teacher.
    """

    total: Tensor
    rows: int
    distance: Tensor | None = None
    compared: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """The training loss.

    Args:
        measure: how outputs are compared; None if only the user's or the model's own loss reads them.
        share: share of the divergence from the teacher; the rest is the loss on targets.
        loss: the user's loss; None for the one that suits the outputs.
        is_own: whether the model computes the loss on targets itself.
        scale: the mean square that squared errors are relative to: that of the teacher's first outputs.
    """

    measure: Measure | None
    share: float
    loss: LossFunction | None
    is_own: bool = False
    scale: float = 1.0

    def __str__(self) -> str:
        parts = []
        if self.share and self.measure is not None:
            parts.append(f"{self.measure.name.partition(',')[0]} to the outputs of the teacher")
        if self.share < 1.0:
            parts.append(self._target_part())
        if len(parts) == 1:
            return parts[0]
        return f"{self.share:g} x ({parts[0]}) + {1 - self.share:g} x ({parts[1]})"

    def _target_part(self) -> str:
        if self.loss is not None:
            return "the given loss on targets"
        if self.is_own:
            return "the loss that the model computes"
        names = {"classification": "cross entropy", "embedding": "1 - cosine", "regression": "squared error"}
        return f"{names[self.measure.kind] if self.measure is not None else 'loss'} on targets"

    def of_output(self, output: object, expected: Tensor | None, batch: Batch) -> BatchLoss:
        """Return the loss of a batch, differentiable.

        Args:
            output: output of the model.
            expected: compared output of the teacher; None without one.
            batch: the batch, on the device of the output.

        Raises:
            FinetuneError: the outputs cannot be compared, or the target does not fit them.
        """
        if self.measure is None and expected is None:
            # The user's loss alone reads the output, which may be of any type.
            return BatchLoss(total=self._on_target(output, None, batch).float(), rows=batch.samples)
        rows = output_rows(compared_output(output), batch.samples)
        mask = counted_rows(rows, batch)
        count = int(mask.sum()) if mask is not None else rows[..., 0].numel()
        compared = None
        if expected is not None and self.measure is not None:
            expected = output_rows(expected, batch.samples)
            if expected.shape != rows.shape:
                raise FinetuneError(
                    where="outputs",
                    found=f"shape {tuple(rows.shape)}, but {tuple(expected.shape)} from the teacher",
                    why="they are compared with each other",
                    action="Give a teacher with the same outputs, or train only on targets.",
                )
            compared = flat_rows(expected, mask), flat_rows(rows, mask)
        distance, total = None, torch.zeros((), device=rows.device)
        if compared is not None and self.measure is not None:
            distance = self.measure.loss(*compared, scale=self.scale)
            total = total + self.share * distance
        if self.share < 1.0:
            total = total + (1.0 - self.share) * self._on_target(output, rows, batch).float()
        return BatchLoss(total=total, rows=count, distance=distance, compared=compared)

    def of_batch(
        self, model: nn.Module, expected: Tensor | None, batch: Batch, device: torch.device, dtype: str
    ) -> Tensor:
        """Call the model with a batch and return its loss, a differentiable scalar.

        Args:
            model: the model.
            expected: compared output of the teacher; None if it has no part in the loss.
            batch: the batch, on any device.
            device: device of the model.
            dtype: dtype of the matrix products; see `MatmulDtypes`.

        Raises:
            FinetuneError: the model does not accept the batch, or the outputs cannot be compared.
        """
        there = batch.to(device)
        with autocast(device, dtype):
            output = run_model(model, there)
        return self.of_output(output, expected, there).total

    def _on_target(self, output: object, rows: Tensor | None, batch: Batch) -> Tensor:
        """Return the loss on the target of a batch."""
        if self.is_own:
            own = model_loss(output)
            if own is None:
                raise FinetuneError(
                    where="the model",
                    found="an output without a loss after outputs with one",
                    why="the loss that the model computes is minimised",
                    action="Give the labels that the model computes it from with every batch.",
                )
            return own
        if batch.target is None:
            raise FinetuneError(
                where="training data",
                found="a batch without a target after batches with one",
                why="the loss is computed on targets",
                action="Give a target with every batch, or with none.",
            )
        if self.loss is not None:
            return user_loss(self.loss, output, batch.target)
        return default_loss(self.measure, rows, batch.target, scale=self.scale)


def choose_objective(
    model: nn.Module,
    teacher: nn.Module | None,
    batch: Batch,
    *,
    loss: LossFunction | None,
    share: float | None,
    kind: OutputKind | None,
) -> Objective:
    """Return the training loss that suits the models and a first batch.

    Args:
        model: the model to train, in evaluation mode.
        teacher: the teacher; None to train on targets alone.
        batch: a batch, on the device of the models.
        loss: the user's loss.
        share: share of the divergence from the teacher; None for 1 without targets and 0.5 with targets.
        kind: kind of the outputs; None to infer it.

    Raises:
        FinetuneError: there is neither a teacher nor a target, or the models do not accept the batch.
    """
    with torch.no_grad(), Randomness(PROBE_SEED).drawing():
        output = run_model(model, batch)
        reference = output if teacher is None else run_model(teacher, batch)
    is_own = loss is None and batch.target is None and model_loss(output) is not None
    share = _checked_share(
        share,
        has_teacher=teacher is not None,
        has_target=batch.target is not None or is_own,
        needs_target=loss is not None,
    )
    objective = Objective(measure=None, share=share, loss=loss, is_own=is_own)
    if teacher is None and (loss is not None or is_own):
        return objective
    with as_finetune_error():
        tensor, name = primary(reference)
    rows = output_rows(tensor, batch.samples)
    if not bool(rows.isfinite().any(dim=-1).all()) or bool(rows.isnan().any()):
        raise FinetuneError(
            where=type(teacher or model).__name__,
            found="NaN or Inf in its output for the first batch",
            why="a model cannot be trained towards such outputs",
            action="Check this batch and the weights.",
        )
    with as_finetune_error():
        measure = measure_for([flat_rows(rows, counted_rows(rows, batch))], named=name, kind=kind)
    scale = float(rows.float().square().mean()) if measure.kind == "regression" and teacher is not None else 1.0
    return replace(objective, measure=measure, scale=scale or 1.0)


def _checked_share(share: float | None, *, has_teacher: bool, has_target: bool, needs_target: bool) -> float:
    """Return the share of the divergence from the teacher, after a check that what the loss needs is there."""
    if needs_target and not has_target:
        raise FinetuneError(
            where="training data",
            found="batches without a target",
            why="the given loss is computed on targets",
            action="Give pairs of inputs and a target, or no loss.",
        )
    if not has_teacher and not has_target:
        raise FinetuneError(
            where="training loss",
            found="neither a teacher nor targets",
            why="the outputs are trained towards one of them",
            action="Give the original model as the teacher, or pairs of inputs and a target.",
        )
    if share is None:
        share = 0.0 if not has_teacher else SHARE_WITH_TARGETS if has_target else 1.0
    if not 0.0 <= share <= 1.0 or (share > 0.0 and not has_teacher) or (share < 1.0 and not has_target):
        missing = ("" if has_teacher else " without a teacher") + ("" if has_target else " without targets")
        raise FinetuneError(
            where="teacher_share",
            found=f"{share:g}{missing}",
            why="the loss is the sum of the divergence from the teacher and the loss on targets, in these shares",
            action="Give a number from 0 to 1, and the teacher and targets that it needs.",
        )
    return share
