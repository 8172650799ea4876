"""Snapshots of a fine-tuning run, from which it is resumed: tensors, and a JSON document, in a safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mpocompress.checkpoint.writing.atomic import replacing
from mpocompress.errors import CheckpointError, FinetuneError, FormatError
from mpocompress.finetuning.precision import MatmulDtypes
from mpocompress.finetuning.run_state import RunState
from mpocompress.reports.json_documents import Count, Document
from mpocompress.text import listed, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader(Document):
    """The document in a snapshot file.

    Args:
        tool_version: version of mpocompress that wrote it.
        settings: settings of the run, which a resumed run must share.
        dtypes: dtypes of the matrix products.
        state: the state, apart from tensors.
        moved: numbers of the parameters that were changed so far; only these have a state of the optimizer.
        is_reshuffled: whether a later pass over the data had other batches at the places of the held-out ones.
    """

    FORMAT: ClassVar[str] = "mpocompress-run"
    IF_DAMAGED: ClassVar[str] = "The file is damaged or was edited: start again without resuming."

    tool_version: str
    settings: Mapping[str, str]
    dtypes: MatmulDtypes
    state: RunState
    moved: tuple[Count, ...]
    is_reshuffled: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """A run between two steps.

    Args:
        header: everything but the tensors.
        tensors: name -> values; the names start with `model.`, `best.`, `optimizer.` or `state.`.
    """

    header: RunHeader
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, head: str) -> dict[str, Tensor]:
        """Return the tensors whose names have a prefix, by the rest of their names.

        Args:
            head: the prefix.
        """
        return {name.removeprefix(head): tensor for name, tensor in self.tensors.items() if name.startswith(head)}


def write_snapshot(snapshot: Snapshot, path: str | PathLike[str]) -> None:
    """Write a snapshot to a file; an earlier one is replaced all or nothing.

    Args:
        snapshot: the snapshot.
        path: the file.

    Raises:
        OutputError: the file cannot be written.
    """
    header = snapshot.header
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in snapshot.tensors.items()
    }
    content = save(tensors, metadata={header.FORMAT: header.to_json()})
    with replacing(Path(path)) as stream:
        stream.write(content)


def read_snapshot(path: str | PathLike[str], settings: Mapping[str, str]) -> Snapshot:
    """Read a snapshot from a file.

    Args:
        path: the file.
        settings: settings of the run that is to be resumed.

    Raises:
        CheckpointError: the file cannot be read.
        FormatError: the file holds no snapshot, or a damaged one.
        FinetuneError: the run had other settings.
    """
    source = Path(path)
    try:
        with safe_open(source, framework="pt") as file:
            text = (file.metadata() or {}).get(RunHeader.FORMAT)
            if text is None:
                raise FormatError(
                    where=source.name,
                    found="a safetensors file without a run",
                    why="the meaning of its tensors is unknown",
                    action="Pass the file that was written during training.",
                )
            header = RunHeader.from_json(text, where=source.name)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            where=source.name,
            found="no such file" if isinstance(error, FileNotFoundError) else shown(str(error)),
            why="there is no run to resume",
            action="Start the run without resuming; its snapshot is written beside the output.",
        ) from error
    _check(header, tensors, source.name)
    names = {**settings, **header.settings}
    different = [name for name in names if settings.get(name) != header.settings.get(name)]
    if different:
        first = different[0]
        there, now = header.settings.get(first, "none"), settings.get(first, "none")
        raise FinetuneError(
            where=source.name,
            found=f"a run with another {listed(different)} ({first}: {shown(there)} in the snapshot, {shown(now)} now)",
            why="a resumed run must have the same settings",
            action="Resume with the same settings, or start again without resuming.",
        )
    return Snapshot(header=header, tensors=tensors)


def _check(header: RunHeader, tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that the state has an evaluation to return to, and that the state of the optimizer is finite."""
    state = header.state
    if state.last_cut >= len(state.evaluations):
        raise FormatError(
            where=where,
            found=f"state.last_cut: evaluation {state.last_cut} of {len(state.evaluations)}",
            why="the learning rate was cut after one of the evaluations",
            action=RunHeader.IF_DAMAGED,
        )
    others = (tensor for name, tensor in tensors.items() if not name.startswith(("model.", "best.")))
    if not all(map(_is_finite, others)):
        raise FormatError(
            where=where,
            found="a state of the optimizer or of a layer with NaN or Inf",
            why="the run cannot be continued from it",
            action=RunHeader.IF_DAMAGED,
        )


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def checked_values(values: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Check that the tensors of a snapshot belong to the model.

    Args:
        values: tensors of the snapshot.
        expected: name -> a tensor of the same shape and dtype.
        where: the file, for the error.

    Raises:
        FormatError: a name, shape or dtype differs, or a tensor is not finite although that of the model is (a mask may
            have minus infinity).
    """
    for name in {**expected, **values}:
        value, model = values.get(name), expected.get(name)
        if value is None or model is None or (value.shape, value.dtype) != (model.shape, model.dtype):
            raise FormatError(
                where=Path(where).name,
                found=f"{shown(name)}, which is missing on one side, or has another shape or dtype",
                why="the run belongs to another model",
                action="Resume with the same model, or start again without resuming.",
            )
    for name, value in values.items():
        if _is_finite(expected[name]) and not _is_finite(value):
            raise FormatError(
                where=Path(where).name,
                found=f"{shown(name)}, with values that are NaN or Inf",
                why="the run cannot be continued from it",
                action=RunHeader.IF_DAMAGED,
            )
