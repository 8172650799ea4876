"""The figures of a run as its report."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mpocompress._version import __version__
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.finetuning.data import Feed
from mpocompress.finetuning.objective import Objective
from mpocompress.finetuning.precision import Way
from mpocompress.finetuning.settings import Settings, Trace
from mpocompress.reports.finetuning import DATA_ENDED, Evaluation, TuningReport
from mpocompress.text import shown


def half_notes(parameters: Iterable[nn.Parameter]) -> tuple[str, ...]:
    """What is to be said of weights that are trained in 16 bits.

    Args:
        parameters: what is trained.

    Returns:
        A sentence, or none.
    """
    low = sorted({dtype_of(one.dtype).name for one in parameters} & {"float16", "bfloat16"})
    if not low:
        return ()
    return (f"Weights were trained in {' and '.join(low)}, where small steps are lost; float32 is finer.",)


def reported(
    trace: Trace,
    *,
    as_stored: Evaluation | None,
    data: str,
    teacher: str,
    objective: Objective,
    feed: Feed,
    settings: Settings,
    way: Way,
    trained: int,
    unrelated: float | None,
    score: str,
    notes: tuple[str, ...],
) -> TuningReport:
    """The figures of a run.

    Args:
        trace: what it left.
        as_stored: the best weights, rounded as in a file; None where that changed none.
        data: name of what was trained on.
        teacher: name of what was learnt from.
        objective: what was minimised.
        feed: what was trained on.
        settings: how.
        way: how the models ran.
        trained: how many parameters were trained.
        unrelated: distance of the teacher's outputs for different inputs.
        score: name of the user's measure; empty without one.
        notes: what else the reader should know.

    Returns:
        The report.
    """
    said = list(notes)
    if not feed.is_held_out:
        said.append("There was one batch only, so the loss was measured on what was trained on.")
    if feed.is_reshuffled:
        said.append(
            "Later passes gave other batches than the first, so what is held out may have been trained on as well; "
            "then its loss is too good. Give batches to measure on, to be sure."
        )
    if trace.stopped == DATA_ENDED:
        said.append("The data could be gone through once only, and ended before the steps did.")
    if trace.cuts:
        times = "once" if trace.cuts == 1 else "twice"
        said.append(f"Nothing got better for a while, {times}: it went back to the best weights, with smaller steps.")
    measure = objective.measure
    return TuningReport(
        tool_version=__version__,
        data=data,
        teacher=teacher,
        loss=objective.words(),
        kind=measure.kind if measure is not None else "",
        said=measure.said if measure is not None else "",
        trained=settings.train,
        trained_parameters=trained,
        steps=trace.steps,
        asked_steps=trace.expected_steps,
        batches_per_step=settings.batches_per_step,
        samples=trace.samples,
        learning_rate=settings.lr,
        relative_step=trace.relative_step,
        precision=way.words(),
        seed=settings.seed,
        measured_on=f"the score of {shown(score)}" if score else "the loss on held-out batches",
        held_out=sum(one.samples for one in feed.held_out) if feed.is_held_out else 0,
        best_step=trace.best_step,
        evaluations=trace.evaluations,
        as_stored=as_stored,
        stopped=trace.stopped,
        unrelated=unrelated,
        notes=tuple(said),
    )
