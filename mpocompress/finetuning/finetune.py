"""Fine-tuning of a compressed checkpoint file: loaded into the user's model, trained, and written in the same form."""

from __future__ import annotations

import dataclasses
import os
from contextlib import ExitStack
from pathlib import Path

import torch

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.output import Output
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.compression.read_report import read_report
from mpocompress.errors import FinetuneError, MPOCompressError, OutputExistsError
from mpocompress.finetuning.finetune_module import train_model
from mpocompress.finetuning.options import FinetuneOptions
from mpocompress.finetuning.process_rank import is_rank_zero
from mpocompress.finetuning.resume import SnapshotOptions
from mpocompress.finetuning.teacher_file import Teacher, find_original, load_teacher
from mpocompress.finetuning.trained_file import TrainedFile
from mpocompress.modules.load import load_into
from mpocompress.reports.compression import Report
from mpocompress.text import StrPath, shown
from mpocompress.user.model import model_factory
from mpocompress.user.options import with_keywords

UNFINISHED = ".unfinished"
"""Suffix that the name of the output gets for the snapshot file."""


@with_keywords(FinetuneOptions)
def finetune(source: StrPath, target: StrPath, options: FinetuneOptions) -> Report:
    """Train a compressed file towards the outputs of the checkpoint it was made from, and write the result.

    The new file has the tensors, the dtypes and the size of the compressed one. Its report contains that of the
    compression, followed by that of the training. While the run lasts it is stored in `<target>.unfinished`, after
    every evaluation and every five minutes: after a crash, `resume` continues it from there. Ctrl-C writes the best
    model so far, and `resume` still continues the run. How a model is trained is described at `finetune_module`.

    Args:
        source: a file or folder that `compress` wrote.
        target: the output; its name decides the form as for `compress`.
        options: the options.

    Returns:
        The report in the new file.

    Raises:
        FinetuneError: as for `finetune_module`; or there is no teacher, or the model does not tie what the file ties.
        OutputError: the target or the snapshot cannot be written.
        CheckpointError: a file cannot be read, or there is no run to resume.
        FormatError: the source is not a compressed file, or is damaged.
        ReportError: the figures in its report do not add up.
        ModelError: the model does not fit the file, or cannot be built.

    Example:
        >>> import mpocompress
        >>> from torch import nn
        >>> torch.save(nn.Linear(64, 64).state_dict(), "net.pt")
        >>> _ = mpocompress.compress("net.pt", "small-net.pt", truncation=mpocompress.Truncation(max_bond=8))
        >>> batches = [torch.randn(32, 64) * torch.linspace(0.0, 2.0, 64) for _ in range(16)]
        >>> report = finetune("small-net.pt", "tuned.pt", model=nn.Linear(64, 64), data=batches, steps=40)
        >>> report.finetuning[0].after.loss < report.finetuning[0].before.loss
        True
    """
    source_path, path = Path(source), Path(target)
    snapshot = path.with_name(f"{path.name}{UNFINISHED}")
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source_path))
        advice = f"Compress it first: mpocompress {shown(source_path.name)} --keep 1/8 -o small.pt"
        report = read_report(checkpoint, otherwise=advice)
        output = _checked_output(target, snapshot, checkpoint, report, options)
        build = model_factory(options.model)
        device = _usable_device(options.device)
        model = load_into(checkpoint, build())
        trained = TrainedFile(checkpoint, model)
        teacher = Teacher()
        if options.teacher is not False:
            original = find_original(source_path, report) if options.teacher is True else Path(options.teacher)
            teacher = load_teacher(original, build(), report, allow_pickle=options.allow_pickle)
        inputs = {"compressed": checkpoint.sha256(), **dict(teacher.inputs)}
        result = train_model(
            model.model.to(device),
            None if teacher.model is None else teacher.model.to(device),
            options.data,
            options,
            snapshot=SnapshotOptions(path=snapshot, resume=options.resume, inputs=inputs),
            teacher_name=teacher.name,
            notes=teacher.notes,
            round_weights=trained.round_weights,
        )
        notes = [note for note in output.carried_notes(checkpoint) if note not in report.notes]
        report = dataclasses.replace(
            report, finetuning=(*report.finetuning, result.report), notes=(*report.notes, *notes)
        )
        report.check()
        if not is_rank_zero():
            return report
        size_bytes = output.write(
            checkpoint,
            tensors=trained.tensors(),
            aliases=checkpoint.aliases,
            shards=checkpoint.layout.shards if checkpoint.layout is not None else {},
            key="state_dict",
            document=report.to_json(),
        )
    if not result.report.is_interrupted:
        snapshot.unlink(missing_ok=True)
    return dataclasses.replace(report, totals=dataclasses.replace(report.totals, file_size_bytes_after=size_bytes))


def _checked_output(
    target: StrPath, snapshot: Path, checkpoint: Checkpoint, report: Report, options: FinetuneOptions
) -> Output:
    """Return the output; refuse one that cannot or must not be written."""
    overwrite = options.overwrite or (options.resume and _is_of_interrupted_run(Path(target), report))
    output = Output.named(target, overwrite=overwrite, layout=checkpoint.layout)
    output.check(checkpoint)
    if snapshot.exists() and not (options.resume or overwrite):
        raise OutputExistsError(
            where=snapshot.name,
            found="a run that was stopped",
            why="a new run would overwrite it",
            action="Resume it, remove the file, or choose another name.",
        )
    return output


def _is_of_interrupted_run(path: Path, report: Report) -> bool:
    """Return whether a file was written by an interrupted run on the same source, which a resumed run may replace."""
    if not path.exists():
        return False
    try:
        with open_checkpoint(path) as checkpoint:
            other = read_report(checkpoint)
    except MPOCompressError:
        return False
    is_same = (other.source, other.finetuning[:-1]) == (report.source, report.finetuning)
    return is_same and bool(other.finetuning) and other.finetuning[-1].is_interrupted


def _usable_device(name: str | torch.device | None) -> torch.device:
    """Return the device to train on: by default a GPU if there is one, under torchrun one for every process.

    Raises:
        FinetuneError: the device is not available.
    """
    if name is None:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise FinetuneError(
            where="device",
            found=f"{shown(str(name))} ({shown(str(error).splitlines()[0])})",
            why="the device is not available",
            action="Give a device of this machine, such as cpu.",
        ) from error
    return device
