"""What is minimised: the distance to the outputs of a teacher, a loss on targets, or a part of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from mpocompress.calibration.divergence import SMALLEST_PROBABILITY, Measure, measure_for, primary
from mpocompress.calibration.options import LossFunction
from mpocompress.errors import CalibrationError, MPOCompressError, TuningError
from mpocompress.finetuning.data import Example
from mpocompress.reports.calibration import OutputKind
from mpocompress.text import shown
from mpocompress.user.batches import fed
from mpocompress.user.code import told_with_its_line
from mpocompress.user.randomness import Randomness

IGNORED = -100
"""A target that stands for none, as in `torch.nn.functional.cross_entropy`."""
DEFAULT_SHARE = 0.5
"""Share of the distance to the teacher in the loss, where there are targets too."""
CONFIDENT = 0.999


_SAY_LOSS = "Give a loss: a function of the model's output and a target that returns a scalar."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Losses:
    """The loss of one batch.

    Args:
        total: what is minimised.
        distance: to the teacher's outputs; None without a teacher.
        agreed: of a classifier, how many rows have their largest output where the teacher has; None of others.
        rows: how many rows of outputs there are.
    """

    total: Tensor
    distance: Tensor | None
    agreed: int | None
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Objective:
    """What is minimised.

    Args:
        measure: how outputs are compared; None where that does not matter.
        share: share of the distance to the teacher; the rest is the loss on targets.
        loss: the user's loss; None for the one that suits the kind of outputs.
        own: whether the model computes the loss itself.
        scale: what squared distances are divided by: the mean square of the teacher's outputs.
    """

    measure: Measure | None
    share: float
    loss: LossFunction | None
    own: bool = False
    scale: float = 1.0

    def words(self) -> str:
        """What is minimised, in words."""
        parts = []
        if self.share and self.measure is not None:
            parts.append(f"{self.measure.words.partition(',')[0]} to the outputs of the teacher")
        if self.share < 1.0:
            parts.append(self._task_words())
        if len(parts) == 1:
            return parts[0]
        return f"{self.share:g} x ({parts[0]}) + {1 - self.share:g} x ({parts[1]})"

    def _task_words(self) -> str:
        if self.loss is not None:
            return "the given loss on targets"
        if self.own:
            return "the loss that the model computes"
        names = {"classification": "cross entropy", "embedding": "1 - cosine", "regression": "squared error"}
        return f"{names[self.measure.kind] if self.measure is not None else 'loss'} on targets"

    def losses(self, output: object, expected: Tensor | None, example: Example, *, exact: bool = False) -> Losses:
        """The loss of a batch.

        Args:
            output: what the model puts out, open to gradients.
            expected: what the teacher puts out, as `compared` gives it; None without one.
            example: the batch.
            exact: whether agreement is counted too.

        Returns:
            The loss.

        Raises:
            TuningError: outputs that cannot be compared, or a target that has no loss by itself.
        """
        if self.measure is None and expected is None:
            total = self._on_target(output, None, example).float()  # which alone has to understand the output
            return Losses(total=total, distance=None, agreed=None, rows=example.samples)
        found = _rows_of(compared(output), example)
        kept = _kept_rows(found, example)
        distance, agreed, rows = None, None, int(kept.sum()) if kept is not None else found[..., 0].numel()
        if expected is not None and self.measure is not None:
            expected = _rows_of(expected, example)
            if expected.shape != found.shape:
                raise TuningError(
                    where="outputs",
                    found=f"shape {tuple(found.shape)}, where the teacher puts out {tuple(expected.shape)}",
                    why="they are compared with each other",
                    action="Give a teacher of the same outputs, or train on targets alone.",
                )
            theirs, ours = (_flat(one, kept) for one in (expected, found))
            distance = self.distance(theirs, ours)
            if exact and self.measure.kind == "classification":
                agreed = int((theirs.argmax(dim=-1) == ours.argmax(dim=-1)).sum())
        total = torch.zeros((), device=found.device)
        if distance is not None:
            total = total + self.share * distance
        if self.share < 1.0:
            total = total + (1.0 - self.share) * self._on_target(output, found, example).float()
        return Losses(total=total, distance=distance, agreed=agreed, rows=rows)

    def distance(
        self,
        expected: Tensor,  # shape: (rows, outputs)
        found: Tensor,  # shape: (rows, outputs)
    ) -> Tensor:
        """How far outputs are from those of the teacher, the mean over all rows.

        Args:
            expected: outputs of the teacher.
            found: outputs of the model.

        Returns:
            A scalar: the KL divergence in nats, 1 - cosine, or the squared error over the mean square of the teacher's.

        Source:
            Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, at
            temperature 1.
        """
        if self.measure is None:
            raise TuningError(where="outputs", found="of no known kind", why="they are compared", action=_SAY_LOSS)
        expected, found = expected.float(), found.float()
        if self.measure.kind == "classification":
            log_p, log_q = self._logs(expected), self._logs(found)
            kept = log_p != -torch.inf  # an answer that is ruled out adds nothing
            terms = torch.where(
                kept, log_p.exp() * (log_p.masked_fill(~kept, 0.0) - log_q.masked_fill(~kept, 0.0)), 0.0
            )
            return terms.sum(dim=1).mean()
        if self.measure.kind == "embedding":
            apart = functional.normalize(expected, dim=1) - functional.normalize(found, dim=1)
            return apart.square().sum(dim=1).mean() / 2  # that is 1 - cosine, without its rounding near 0
        return (found - expected).square().mean() / self.scale

    def _logs(self, rows: Tensor) -> Tensor:
        if self.measure is not None and self.measure.probabilities:
            return rows.clamp_min(SMALLEST_PROBABILITY).log()
        return rows.log_softmax(dim=1)

    def _on_target(self, output: object, found: Tensor | None, example: Example) -> Tensor:
        """The loss on a target."""
        if self.own:
            own = own_loss(output)
            if own is None:
                raise TuningError(
                    where="the model",
                    found="an output without a loss, after others that had one",
                    why="it is what is minimised",
                    action="Give what the model computes it from with every batch.",
                )
            return own
        if example.target is None:
            raise TuningError(
                where="training data",
                found="a batch without a target, after others that had one",
                why="the loss is computed on targets",
                action="Give a target with every batch, or with none.",
            )
        if self.loss is not None:
            return _given(self.loss, output, example.target)
        target = example.target
        if not isinstance(target, Tensor) or found is None:
            raise _no_target(found, target)
        return self._plain_loss(found, target.to(found.device))

    def _plain_loss(self, found: Tensor, target: Tensor) -> Tensor:
        """The loss that suits the kind of outputs."""
        kind = self.measure.kind if self.measure is not None else ""
        numbers = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
        if kind == "classification" and numbers and target.shape == found.shape[:-1]:
            logs = self._logs(found.float().reshape(-1, found.shape[-1]))
            return functional.nll_loss(logs, target.reshape(-1).long(), ignore_index=IGNORED)
        if target.is_floating_point():
            target = target[..., None] if target.shape == found.shape[:-1] and found.shape[-1] == 1 else target
            if target.shape == found.shape:
                wanted, ours = (one.float().reshape(-1, one.shape[-1]) for one in (target, found))
                if kind == "classification":
                    return -(wanted * self._logs(ours)).sum(dim=1).mean()
                if kind == "embedding":
                    return 1.0 - functional.cosine_similarity(wanted, ours).mean()
                return (ours - wanted).square().mean() / self.scale
        raise _no_target(found, target)


def objective_for(
    student: nn.Module,
    teacher: nn.Module | None,
    example: Example,
    *,
    loss: LossFunction | None,
    share: float | None,
    kind: OutputKind | None,
) -> Objective:
    """Tell from a first batch what is to be minimised.

    Args:
        student: the model, in evaluation mode.
        teacher: what it learns from; None to learn from targets alone.
        example: a batch, on the device of the models.
        loss: the user's loss.
        share: share of the distance to the teacher; None for all without targets, otherwise half.
        kind: what the models put out; None to tell it from the outputs.

    Returns:
        The objective.

    Raises:
        TuningError: there is neither a teacher nor a target, or the models do not take the batch.
    """
    with torch.no_grad(), Randomness(0).drawing():
        output = called(student, example)
        judged = output if teacher is None else called(teacher, example)
    has_own = loss is None and example.target is None and own_loss(output) is not None
    has_target = example.target is not None or has_own
    if loss is not None and example.target is None:
        raise TuningError(
            where="training data",
            found="batches without a target",
            why="the loss is computed on one",
            action="Give pairs of inputs and a target, or no loss.",
        )
    if teacher is None and not has_target:
        raise TuningError(
            where="what is learnt from",
            found="neither a teacher nor targets",
            why="there is nothing to bring the outputs nearer to",
            action="Give the original model as the teacher, or pairs of inputs and a target.",
        )
    if share is None:
        share = 0.0 if teacher is None else DEFAULT_SHARE if has_target else 1.0
    if not 0.0 <= share <= 1.0 or (share > 0.0 and teacher is None) or (share < 1.0 and not has_target):
        raise TuningError(
            where="share of the distance to the teacher",
            found=f"{share:g}"
            + ("" if teacher is not None else " without a teacher")
            + ("" if has_target else " without targets"),
            why="the loss is made of the distance to a teacher, and of a loss on targets",
            action="Give a number from 0 to 1, and what both parts need.",
        )
    found = Objective(measure=None, share=share, loss=loss, own=has_own)
    if teacher is None and (loss is not None or has_own):
        return found
    with _as_tuning_error():
        expected, named = primary(judged)
    rows = _rows_of(expected, example)
    if not bool(rows.isfinite().any(dim=-1).all()) or bool(rows.isnan().any()):
        raise TuningError(
            where=type(teacher or student).__name__,
            found="NaN or Inf in what it puts out for the first batch",
            why="there is nothing to learn from that",
            action="Look at this batch and at the weights.",
        )
    with _as_tuning_error():
        measure = measure_for([_flat(rows, _kept_rows(rows, example))], named=named, kind=kind)
    scale = float(rows.float().square().mean()) if measure.kind == "regression" and teacher is not None else 1.0
    return replace(found, measure=measure, scale=scale or 1.0)


def called(model: nn.Module, example: Example) -> object:
    """Call a model with a batch.

    Args:
        model: the model.
        example: the batch, on its device.

    Returns:
        What it returns.

    Raises:
        TuningError: the model raises.
    """
    try:
        return fed(model, example.inputs)
    except (MPOCompressError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise TuningError(
            where=type(model).__name__,
            found=told_with_its_line(error),
            why="the model does not take the batches",
            action="Give batches that it is called with: a tensor, a tuple of arguments, or a dict of named ones; or "
            "pairs of that and a target. Two arguments without a target are written as a dict, or as ((a, b), None).",
        ) from error


def compared(output: object) -> Tensor:
    """What of an output is compared with that of another model.

    Args:
        output: what a model returned.

    Returns:
        The tensor that is called `logits`, otherwise the first one of floating point numbers.

    Raises:
        TuningError: there is none.
    """
    with _as_tuning_error():
        return primary(output)[0]


@contextmanager
def _as_tuning_error() -> Iterator[None]:
    try:
        yield
    except CalibrationError as error:
        raise TuningError(where=error.where, found=error.found, why=error.why, action=error.action) from error


def own_loss(output: object) -> Tensor | None:
    """The loss that a model computed itself: a scalar under `loss` in a mapping, as models of transformers do.

    Args:
        output: what the model put out.

    Returns:
        The loss; None where there is none.
    """
    found = output.get("loss") if isinstance(output, Mapping) else None
    return found if isinstance(found, Tensor) and found.numel() == 1 else None


def _given(loss: LossFunction, output: object, target: object) -> Tensor:
    try:
        found: object = loss(output, target)
    except Exception as error:
        raise TuningError(
            where="loss",
            found=told_with_its_line(error),
            why="the loss could not be computed",
            action="Mend that: a loss is a function of the model's output and a target.",
        ) from error
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise TuningError(
            where="loss",
            found=f"a {type(found).__name__}"
            + (f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""),
            why="one number is minimised",
            action=_SAY_LOSS,
        )
    return found.reshape(())


def _rows_of(output: Tensor, example: Example) -> Tensor:
    """An output whose last dim are the numbers of one row; of one with a single number a sample, each is a row."""
    return output[:, None] if output.dim() == 1 and len(output) == example.samples else output


def _kept_rows(rows: Tensor, example: Example) -> Tensor | None:
    """Which rows of outputs count: not those of padding, nor those whose target stands for none; None for all."""
    shape, kept = rows.shape[:-1], None
    inputs, target = example.inputs, example.target
    if isinstance(inputs, Mapping):
        mask, target = inputs.get("attention_mask"), inputs.get("labels", target)
        if isinstance(mask, Tensor) and mask.shape == shape:
            kept = mask.bool()
    if isinstance(target, Tensor) and target.dtype == torch.int64 and target.shape == shape:
        there = target != IGNORED
        kept = there if kept is None else kept & there
    return None if kept is None or bool(kept.all()) or not bool(kept.any()) else kept.to(rows.device)


def _flat(rows: Tensor, kept: Tensor | None) -> Tensor:
    return rows.reshape(-1, rows.shape[-1]) if kept is None else rows[kept]


def _no_target(found: Tensor | None, target: object) -> TuningError:
    described = f"{tuple(target.shape)} {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
    outputs = tuple(found.shape) if found is not None else "no known kind"
    action = _SAY_LOSS
    is_classes = isinstance(target, Tensor) and target.dtype == torch.int64
    if is_classes and found is not None and isinstance(target, Tensor) and target.shape == found.shape[:-1]:
        action = f"If the outputs are the scores of a classifier, say so: kind classification. Otherwise: {action}"
    return TuningError(
        where="training data",
        found=f"a target of {shown(described)} for outputs of {outputs}",
        why="no loss follows from that: numbers of classes for scores, or values of the same shape",
        action=action,
    )


def mean_of(parts: Sequence[tuple[float, int]]) -> float:
    """A mean of parts of different sizes.

    Args:
        parts: value and weight.

    Example:
        >>> mean_of([(1.0, 1), (4.0, 2)])
        3.0
    """
    weight = sum(count for _, count in parts)
    return sum(value * count for value, count in parts) / weight if weight else 0.0
