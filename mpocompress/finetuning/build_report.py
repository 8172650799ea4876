"""The report of a run."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mpocompress._version import __version__
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.finetuning.resume import name_of
from mpocompress.finetuning.setup import RunSetup
from mpocompress.finetuning.trainer import RunResult
from mpocompress.reports.finetuning import DATA_ENDED, FinetuningReport
from mpocompress.text import shown


def finetuning_report(
    setup: RunSetup, result: RunResult, *, notes: tuple[str, ...], is_rounded: bool
) -> FinetuningReport:
    """Return the report of a run.

    Args:
        setup: what the run worked with; its model has the best weights.
        result: the outcome of the run.
        notes: further notes for the reader.
        is_rounded: whether the best weights were rounded to the dtypes of a file, so that they are evaluated again.
    """
    state, options, measure = result.state, setup.options, setup.objective.measure
    is_held_out, is_rank_zero = setup.data.is_held_out, setup.team.is_rank_zero
    score = name_of(options.evaluate)
    rounded = setup.evaluator.evaluate(state.best_step).evaluation if is_rounded and is_rank_zero else None
    return FinetuningReport(
        tool_version=__version__,
        data=setup.settings["data"],
        teacher=setup.settings["teacher"],
        loss=str(setup.objective),
        kind=measure.kind if measure is not None else "",
        kind_from=measure.kind_from if measure is not None else "",
        trained=options.train,
        trained_parameters=sum(parameter.numel() for parameter in setup.parameters.values()),
        steps=state.step,
        requested_steps=result.requested_steps,
        batches_per_step=setup.batches_per_step,
        samples=state.samples,
        learning_rate=options.lr,
        relative_learning_rate=state.relative_learning_rate if options.lr is None else None,
        precision=str(setup.dtypes),
        seed=options.seed,
        selection_metric=f"the score of {shown(score)}" if score else "the loss on held-out batches",
        held_out_samples=sum(batch.samples for batch in setup.data.held_out) if is_held_out else 0,
        best_step=state.best_step,
        evaluations=state.evaluations,
        as_stored=rounded,
        stop_reason=result.stopped,
        unrelated_divergence=setup.evaluator.unrelated() if is_rank_zero else None,
        notes=(*notes, *_half_notes(setup.parameters.values()), *_run_notes(setup, result)),
    )


def _run_notes(setup: RunSetup, result: RunResult) -> list[str]:
    notes = []
    if not setup.data.is_held_out:
        notes.append("There was only one batch, so the loss was measured on the data that were trained on.")
    if setup.data.is_reshuffled:
        notes.append(
            "Later passes had other batches than the first one, so held-out batches may have been trained on, which "
            "makes their loss too low. Give held-out batches to be sure."
        )
    if result.stopped == DATA_ENDED:
        notes.append("The data can be passed over only once, and ended before the last step.")
    if result.state.cuts:
        times = "once" if result.state.cuts == 1 else "twice"
        notes.append(f"The run stalled {times} and returned to the best weights, with a smaller learning rate.")
    return notes


def _half_notes(parameters: Iterable[nn.Parameter]) -> tuple[str, ...]:
    """Return a note about weights that are trained in 16 bits."""
    dtypes = sorted({dtype_of(each.dtype).name for each in parameters} & {"float16", "bfloat16"})
    if not dtypes:
        return ()
    return (f"Weights were trained in {' and '.join(dtypes)}, which loses small steps; float32 is more precise.",)
