"""A run of fine-tuning on disk, so that it can go on where it was: tensors in safetensors, all else as JSON in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mpocompress._version import __version__
from mpocompress.checkpoint.writing.atomic import replacing
from mpocompress.errors import CheckpointError, FinetuneError, FormatError
from mpocompress.finetuning.data import Position
from mpocompress.finetuning.precision import MatmulDtypes
from mpocompress.finetuning.run_state import RunState
from mpocompress.reports.documents import build, read_document, typed
from mpocompress.reports.finetuning import Evaluation
from mpocompress.text import listed, shown

FORMAT, VERSION = "mpocompress-run", 1
_DAMAGED = "The file is damaged or was edited: start again, without resuming."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """A run between two steps.

    Args:
        settings: settings of the run, which a resumed run must share.
        dtypes: dtypes of the matrix products.
        state: the state, apart from tensors.
        moved: numbers of the parameters that were changed so far; only these have a state of the optimizer.
        is_reshuffled: whether a later pass over the data had other batches at the places of the held-out ones.
        tensors: name -> values; the names start with `model.`, `best.`, `optimizer.` or `state.`.
    """

    settings: Mapping[str, str]
    dtypes: MatmulDtypes
    state: RunState
    moved: tuple[int, ...]
    is_reshuffled: bool = False
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def part(self, head: str) -> dict[str, Tensor]:
        """The tensors whose names begin in one way, by the rest of their names.

        Args:
            head: the beginning.

        Returns:
            Name -> values.
        """
        return {name.removeprefix(head): one for name, one in self.tensors.items() if name.startswith(head)}


def write_snapshot(snapshot: Snapshot, path: str | PathLike[str]) -> None:
    """Write a run, in place of an earlier one, all or nothing.

    Args:
        snapshot: the run.
        path: where to.

    Raises:
        OutputError: it cannot be written.
    """
    document = {
        "format": FORMAT,
        "version": VERSION,
        "tool_version": __version__,
        "settings": dict(snapshot.settings),
        "dtypes": asdict(snapshot.dtypes),
        "state": asdict(snapshot.state),
        "moved": snapshot.moved,
        "is_reshuffled": snapshot.is_reshuffled,
    }
    tensors = {
        name: one.detach().cpu().clone(memory_format=torch.contiguous_format) for name, one in snapshot.tensors.items()
    }
    with replacing(Path(path)) as stream:
        stream.write(save(tensors, metadata={FORMAT: json.dumps(document, allow_nan=False)}))


def read_snapshot(path: str | PathLike[str], settings: Mapping[str, str]) -> Snapshot:
    """Read a run back.

    Args:
        path: the file.
        settings: what is asked for now.

    Returns:
        The run.

    Raises:
        CheckpointError: the file cannot be read.
        FormatError: it holds no run, or a damaged one.
        FinetuneError: a run of other settings.
    """
    source = Path(path)
    try:
        with safe_open(source, framework="pt") as held:
            text = (held.metadata() or {}).get(FORMAT)
            if text is None:
                raise FormatError(
                    where=source.name,
                    found="a safetensors file without a run",
                    why="it is not known what its tensors are",
                    action="Give the file that was written while training.",
                )
            document = read_document(text, name=FORMAT, version=VERSION, where=source.name)
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            where=source.name,
            found="no such file" if isinstance(error, FileNotFoundError) else shown(str(error)),
            why="there is no run to go on with",
            action="Start the run without resuming; what it needs to go on is written beside the output.",
        ) from error
    try:
        found = _snapshot(document, tensors)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            where=source.name, found=f"no usable {error}", why="the run is not whole", action=_DAMAGED
        ) from error
    others = [name for name in {**settings, **found.settings} if settings.get(name) != found.settings.get(name)]
    if others:
        first = others[0]
        raise FinetuneError(
            where=source.name,
            found=f"a run with another {listed(others, 5)} ({first}: {shown(found.settings.get(first, 'none'))} there, "
            f"{shown(settings.get(first, 'none'))} now)",
            why="what goes on would be neither run",
            action="Resume with the same settings, or start again without resuming.",
        )
    return found


def _snapshot(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Snapshot:
    state = document["state"]
    found = Snapshot(
        settings=typed(document["settings"], "Mapping[str, str]", "settings"),
        dtypes=build(MatmulDtypes, document["dtypes"]),
        state=build(
            RunState,
            state,
            position=build(Position, state["position"]),
            evaluations=tuple(build(Evaluation, one) for one in state["evaluations"]),
        ),
        moved=typed(document["moved"], "tuple[int, ...]", "moved"),
        is_reshuffled=typed(document["is_reshuffled"], "bool", "is_reshuffled"),
        tensors=tensors,
    )
    found.state.check()
    others = [one for name, one in tensors.items() if not name.startswith(("model.", "best."))]
    if not all(map(_is_finite, others)):
        raise ValueError("values that are NaN or Inf")
    return found


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def checked_values(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """Refuse values that are not those of the model.

    Args:
        found: what was read.
        wanted: name -> a tensor of the same shape and dtype.
        where: the file, for the message.

    Raises:
        FormatError: a name, shape or dtype differs, or a value is not finite where none of the model's is (a mask may
            hold minus infinity).
    """
    odd = next(
        (
            name
            for name in {**wanted, **found}
            if name not in found
            or name not in wanted
            or (found[name].shape, found[name].dtype) != (wanted[name].shape, wanted[name].dtype)
        ),
        None,
    )
    if odd is not None:
        raise FormatError(
            where=Path(where).name,
            found=f"{shown(odd)}, on one side only or of another shape or dtype",
            why="the run is of another model",
            action="Resume with the same model, or start again without resuming.",
        )
    damaged = next((name for name, one in found.items() if _is_finite(wanted[name]) and not _is_finite(one)), None)
    if damaged is not None:
        raise FormatError(
            where=Path(where).name,
            found=f"{shown(damaged)}, with values that are NaN or Inf",
            why="the run is not whole",
            action=_DAMAGED,
        )
