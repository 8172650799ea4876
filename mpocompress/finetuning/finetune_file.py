"""A compressed file fine-tuned into another one: loaded into the user's model, trained, written in the same form."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from mpocompress.calibration.options import LossFunction
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.output import carried_notes, check_target, container_for, write_target
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.compression.format import core_tensors
from mpocompress.compression.stored_report import stored_report
from mpocompress.errors import MPOCompressError, OutputExistsError, TuningError
from mpocompress.finetuning.distributed import leads
from mpocompress.finetuning.finetune import Keeping, finetuned
from mpocompress.finetuning.options import Precision, Score, Trained
from mpocompress.finetuning.progress import TuningProgress
from mpocompress.finetuning.recipe import Recipe
from mpocompress.modules.load import Loaded, loaded
from mpocompress.modules.provenance import record_of
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import quantise, rounded
from mpocompress.nn import MPOWeight
from mpocompress.reports.calibration import OutputKind
from mpocompress.reports.compression import MatrixReport, Report
from mpocompress.text import shown
from mpocompress.user.code import model_builder
from mpocompress.user.dense_model import copied, fill

StrPath = str | PathLike[str]

UNFINISHED = ".unfinished"
"""What follows the name of the output in that of the file which keeps a run while it lasts."""


def finetune_file(
    source: StrPath,
    target: StrPath,
    *,
    model: str | nn.Module | Callable[[], nn.Module],
    data: object,
    teacher: StrPath | bool = True,
    evaluate: Score | str | None = None,
    loss: LossFunction | str | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float | None = None,
    train: Trained = "all",
    kind: OutputKind | None = None,
    teacher_share: float | None = None,
    held_out: object | None = None,
    carry_state: bool = False,
    batches_per_step: int | None = None,
    precision: Precision = "auto",
    seed: int = 0,
    device: str | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[TuningProgress], None] | None = None,
) -> Report:
    """Train a compressed file towards the outputs of the one it was made from, and write the result.

    The new file has the tensors, the dtypes and the size of the compressed one; its report holds that of the
    compression and, behind it, that of the training. While the run lasts it is kept in `<target>.unfinished`, whenever
    the model is measured and every five minutes: after a crash `resume` goes on from there. Ctrl-C writes the best
    model so far, and `resume` still goes on.

    Args:
        source: a file or folder that `compress` wrote.
        target: what to write; its name decides the form as for `compress`.
        model: the user's model: `file.py:name` or `package.module:name` of it or of what builds it, or the same as an
            object. It is built twice where there is a teacher.
        data: what it is trained on, as for `finetune`.
        teacher: the file with the weights to learn from, usually the one that was compressed; `True` to look for that
            beside the source, `False` to learn from targets alone.
        evaluate: as for `finetune`, like all that follows down to `seed`.
        loss: loss of output and target.
        steps: how many at most.
        minutes: how long at most.
        lr: the largest step size.
        train: all parameters, or cores alone.
        kind: what the model puts out.
        teacher_share: share of the distance to the teacher in the loss.
        held_out: batches to measure on.
        carry_state: let recurrent layers go on from batch to batch.
        batches_per_step: batches of every step.
        precision: of the products.
        seed: what is drawn with.
        device: where to train, such as `cuda`; by default a GPU if there is one, every process of torchrun its own.
        allow_pickle: load a pickled teacher by running it; only for files that you trust.
        overwrite: replace an existing target, and begin anew where a run of that name was stopped.
        resume: go on with the run that was stopped.
        progress: told how far the run is.

    Returns:
        The report in the new file.

    Raises:
        TuningError: as for `finetune`; or there is no teacher, or the model does not tie what the file ties.
        OutputError: the target or the run cannot be written.
        CheckpointError: a file that cannot be read, or no run to resume.
        FormatError: not a compressed file, or one that contradicts itself.
        ReportError: figures in it that do not add up.
        ModelError: the model is another one, or cannot be built.

    Example:
        >>> import mpocompress
        >>> torch.save(nn.Linear(64, 64).state_dict(), "net.pt")
        >>> _ = mpocompress.compress("net.pt", "small-net.pt", truncation=mpocompress.Truncation(max_bond=8))
        >>> batches = [torch.randn(32, 64) * torch.linspace(0.0, 2.0, 64) for _ in range(16)]
        >>> report = finetune_file("small-net.pt", "tuned.pt", model=nn.Linear(64, 64), data=batches, steps=40)
        >>> report.tuning[0].after.loss < report.tuning[0].before.loss
        True
    """
    recipe = Recipe(
        evaluate=evaluate,
        loss=loss,
        steps=steps,
        minutes=minutes,
        lr=lr,
        train=train,
        kind=kind,
        teacher_share=teacher_share,
        held_out=held_out,
        carry_state=carry_state,
        batches_per_step=batches_per_step,
        precision=precision,
        seed=seed,
    )
    named, source, target = target, Path(source), Path(target)
    keeping = Keeping(snapshot=target.with_name(f"{target.name}{UNFINISHED}"), resume=resume)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(source))
        report = stored_report(
            checkpoint, otherwise=f"Compress it first: mpocompress {shown(source.name)} --keep 1/8 -o small.pt"
        )
        container = container_for(named, checkpoint.layout)
        overwrite = overwrite or (resume and _is_of_stopped_run(target, report))
        check_target(target, container=container, overwrite=overwrite, checkpoint=checkpoint)
        if keeping.snapshot is not None and keeping.snapshot.exists() and not (resume or overwrite):
            raise OutputExistsError(
                where=keeping.snapshot.name,
                found="a run that was stopped",
                why="starting anew would lose it",
                action="Resume it (--resume), remove the file, or choose another name.",
            )
        build = _builder(model)
        place = _device(device or _usual_device())
        whole = loaded(checkpoint, build())
        tuned = _Tuned(checkpoint, report, whole)
        original, called, notes = None, "", tuple[str, ...]()
        if teacher is not False:
            path = _beside(source, report) if teacher is True else Path(teacher)
            opened = _opened(path, report, allow_pickle=allow_pickle)
            with opened as other:
                original, called, notes = _taught(other, build(), report)
                fingerprint = {"compressed": checkpoint.sha256(), "original": other.sha256()}
        else:
            fingerprint = {"compressed": checkpoint.sha256()}
        found = finetuned(
            whole.model.to(place),
            data,
            teacher=None if original is None else original.to(place),
            recipe=recipe,
            keeping=dataclasses.replace(keeping, fingerprint=fingerprint),
            progress=progress,
            teacher_name=called,
            notes=notes,
            as_stored=tuned.round,
        )
        carried = [note for note in carried_notes(container, checkpoint) if note not in report.notes]
        made = dataclasses.replace(report, tuning=(*report.tuning, found.report), notes=(*report.notes, *carried))
        made.check()
        if not leads():
            return made
        size = write_target(
            target,
            container=container,
            checkpoint=checkpoint,
            tensors=tuned.tensors(),
            aliases={name: info.alias_of for name, info in checkpoint.tensors.items() if info.alias_of is not None},
            shards=checkpoint.layout.shards if checkpoint.layout is not None else {},
            key="state_dict",
            document=made.to_json(),
            overwrite=overwrite,
        )
    if not found.report.is_interrupted and keeping.snapshot is not None:
        keeping.snapshot.unlink(missing_ok=True)
    return dataclasses.replace(made, totals=dataclasses.replace(made.totals, file_size_bytes_after=size))


class _Tuned:
    """What a compressed file becomes by training.

    Args:
        checkpoint: the file, open.
        report: in it.
        whole: the model with what it holds.

    Raises:
        TuningError: the model has one tensor of the file several times, not tied.
    """

    def __init__(self, checkpoint: Checkpoint, report: Report, whole: Loaded) -> None:
        self._checkpoint, self._report, self._model = checkpoint, report, whole.model
        self._stored = whole.stored
        by_name: dict[str, set[int]] = {}
        for name, tensor in self._plain():
            by_name.setdefault(name, set()).add(id(tensor))
        for matrix, weight in self._weights():
            by_name.setdefault(matrix.name, set()).add(id(weight))
        apart = next((name for name, found in by_name.items() if len(found) > 1), None)
        if apart is not None:
            raise TuningError(
                where=shown(apart),
                found="one tensor in the file, and several in the model that are not tied to each other",
                why="training would make them different, and the file has room for one",
                action="Tie them where the model is built, as they were when it was saved.",
            )

    def round(self) -> bool:
        """Round what was trained to what the file will hold; whether that changed anything.

        Raises:
            TuningError: a number that the dtype in the file cannot hold.
        """
        changed = False
        with torch.no_grad():
            for matrix, weight in self._weights():
                stored = rounded(_mpo(weight), torch_dtype(matrix.dtype)).cores
                for core, value in zip(weight.cores, stored, strict=True):
                    changed |= _put(core, value, matrix.name, matrix.dtype)
            for name, tensor in self._plain():
                dtype = self._checkpoint.tensors[name].dtype
                changed |= _put(tensor, tensor.to(torch_dtype(dtype)), name, dtype.name)
        return changed

    def tensors(self) -> dict[str, Tensor]:
        """Name in the file -> tensor, in its order and in its dtypes, tied ones left out."""
        new: dict[str, Tensor] = {}
        for matrix, weight in self._weights():
            mpo = _mpo(weight)
            new |= core_tensors(matrix.name, quantise(mpo) if matrix.scale_names else mpo)
        new |= dict(self._plain())
        return {info.name: self._stored_tensor(info.name, new.get(info.name)) for info in self._checkpoint.own_tensors}

    def _stored_tensor(self, name: str, new: Tensor | None) -> Tensor:
        if new is None:
            return self._checkpoint.tensor(name)
        return new.detach().cpu().to(torch_dtype(self._checkpoint.tensors[name].dtype)).contiguous()

    def _weights(self) -> Iterator[tuple[MatrixReport, MPOWeight]]:
        for module in self._model.modules():
            record = record_of(module) if isinstance(module, MPOWeight) else None
            if record is not None and isinstance(module, MPOWeight):
                yield record.matrix, module

    def _plain(self) -> Iterator[tuple[str, Tensor]]:
        """First name in the file, and the tensor of the model, of what is stored as it is."""
        own = self._model.state_dict(keep_vars=True)
        for name, stored in self._stored.items():
            info = self._checkpoint.tensors.get(stored)
            if info is not None and isinstance(own.get(name), Tensor):
                yield info.alias_of or stored, own[name]


def _put(tensor: Tensor, value: Tensor, name: str, dtype: str) -> bool:
    """Give a tensor the values that were rounded; whether they are others."""
    value = value.to(tensor.dtype)
    if tensor.is_floating_point() and not value.isfinite().all():
        raise TuningError(
            where=shown(name),
            found=f"trained to numbers that {dtype} cannot hold",
            why="a file never holds NaN or Inf",
            action="Compress with --dtype float32 and train that, or give a smaller step size.",
        )
    if torch.equal(tensor, value):
        return False
    tensor.copy_(value)
    return True


def _mpo(weight: MPOWeight) -> MPO:
    return MPO(cores=tuple(core.detach() for core in weight.cores), sites=weight.sites)


def _builder(model: str | nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """What gives a new model at every call."""
    if isinstance(model, str):
        return model_builder(model)
    if isinstance(model, nn.Module):
        return lambda: copied(model)
    return model


def _usual_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def _device(name: str) -> torch.device:
    """A device that is there."""
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise TuningError(
            where="device",
            found=f"{shown(name)} ({shown(str(error).splitlines()[0])})",
            why="it cannot be trained there",
            action="Give a device of this machine, such as cpu.",
        ) from error
    return found


def _is_of_stopped_run(target: Path, report: Report) -> bool:
    """Whether a target is what a run on the same file left when it was interrupted, so that going on may replace it."""
    if not target.exists():
        return False
    try:
        with open_checkpoint(target) as there:
            found = stored_report(there)
    except MPOCompressError:
        return False
    same = (found.source, found.tuning[:-1]) == (report.source, report.tuning)
    return same and bool(found.tuning) and found.tuning[-1].is_interrupted


def _beside(source: Path, report: Report) -> Path:
    """The file that was compressed, where it is easily found."""
    name = report.source.file
    for folder in (source.absolute().parent, Path.cwd()):
        if name and (folder / name).exists() and (folder / name).resolve() != source.resolve():
            return folder / name
    raise TuningError(
        where=source.name,
        found=f"no {shown(name) or 'original'} beside it, from which it was compressed",
        why="its outputs are what is learnt",
        action="Say where the original is (--teacher FILE), or learn from targets alone (--no-teacher).",
    )


def _opened(path: Path, report: Report, *, allow_pickle: bool) -> Checkpoint:
    """The teacher's file, at the state dict that was compressed if it has one of that name."""
    try:
        return open_checkpoint(path, key=report.source.key or None, allow_pickle=allow_pickle)
    except MPOCompressError:
        if not report.source.key:
            raise
        return open_checkpoint(path, allow_pickle=allow_pickle)


def _taught(checkpoint: Checkpoint, model: nn.Module, report: Report) -> tuple[nn.Module, str, tuple[str, ...]]:
    """The teacher with its weights, what it is called, and what the reader should know of it."""
    name = checkpoint.path.name
    if checkpoint.document is not None:
        return loaded(checkpoint, model).model, name, (f"The teacher, {shown(name)}, is a compressed file itself.",)
    fill(model, checkpoint)
    if report.source.sha256 and checkpoint.sha256() != report.source.sha256:
        return model, name, (f"The teacher, {shown(name)}, has other bytes than the file that was compressed.",)
    return model, name, ()
