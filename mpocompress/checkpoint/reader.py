"""Opening a checkpoint of any form that is read: one function a form."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mpocompress.checkpoint.folders.reader import open_folder, open_index
from mpocompress.checkpoint.folders.shards import OpenFile
from mpocompress.checkpoint.forms.bare_pickle import open_pickle
from mpocompress.checkpoint.forms.legacy_stream import open_legacy
from mpocompress.checkpoint.forms.running import CONTAINERS, open_by_running
from mpocompress.checkpoint.forms.safetensors_file import open_safetensors
from mpocompress.checkpoint.forms.torch_export import open_torch_export
from mpocompress.checkpoint.forms.torch_zip import open_torch_zip, open_torchscript
from mpocompress.checkpoint.own_format import SHARD
from mpocompress.checkpoint.protocol import Checkpoint
from mpocompress.checkpoint.sniff import Form, refusal, sniff
from mpocompress.errors import CheckpointError

_OPENERS: dict[Form, Callable[[Path, str | None], Checkpoint]] = {
    Form.TORCH_ZIP: open_torch_zip,
    Form.TORCHSCRIPT: open_torchscript,
    Form.TORCH_EXPORT: open_torch_export,
    Form.LEGACY_TORCH: open_legacy,
    Form.PICKLE: open_pickle,
    Form.SAFETENSORS: open_safetensors,
}
_FOLDER_OPENERS: dict[Form, Callable[[Path, str | None, OpenFile], Checkpoint]] = {
    Form.FOLDER: open_folder,
    Form.JSON: open_index,
}


def open_checkpoint(path: str | os.PathLike[str], *, key: str | None = None, allow_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint by its content, whatever its name; no tensor data is read and nothing in it is run.

    Args:
        path: the file; or a folder, or an index of shards.
        key: which dict of a training checkpoint is the state dict, dotted when deeper; None to find it.
        allow_pickle: load a pickle the ordinary way, which RUNS the code it names. Only for files that you trust and
            that cannot be read otherwise; nothing changes for forms that hold no code.

    Returns:
        The open checkpoint, to be used as a context manager.

    Raises:
        CheckpointError: the file is missing, damaged, of a form that is not read, or without a clear state dict; the
            message says what it is and what to do.
        FormatError: it is marked as a compressed file but not laid out like one.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3, "model": {"fc.weight": torch.ones(2, 3)}}, f"{folder}/run.pt")
        ...     with open_checkpoint(f"{folder}/run.pt") as checkpoint:
        ...         print(checkpoint.key, checkpoint.tensors["fc.weight"].shape, checkpoint.extras)
        model (2, 3) {'epoch': 3, 'model': {}}
    """
    path = Path(path)
    form = sniff(path)
    if allow_pickle and form in CONTAINERS:
        return open_by_running(path, key, form)
    if form in _FOLDER_OPENERS:
        return _FOLDER_OPENERS[form](path, key, _open_file)
    opened = _open_file(path, key)
    if SHARD in opened.metadata:
        opened.__exit__(None, None, None)
        raise CheckpointError(
            where=str(path),
            found="one shard of a compressed folder",
            why="what its cores mean stands in the index of the folder",
            action="Name the folder.",
        )
    return opened


def _open_file(path: Path, key: str | None) -> Checkpoint:
    form = sniff(path)
    if form not in _OPENERS:
        raise refusal(path, form)
    return _OPENERS[form](path, key)
