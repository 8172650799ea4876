"""Open a checkpoint of any form: one function per form."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.checkpoint.deferred import Deferred
from mpocompress.checkpoint.folders.reader import open_folder, open_index
from mpocompress.checkpoint.folders.shards import OpenFile
from mpocompress.checkpoint.forms.bare_pickle import open_pickle
from mpocompress.checkpoint.forms.legacy_stream import open_legacy
from mpocompress.checkpoint.forms.safetensors_file import open_safetensors
from mpocompress.checkpoint.forms.torch_export import open_torch_export
from mpocompress.checkpoint.forms.torch_zip import open_torch_zip, open_torchscript
from mpocompress.checkpoint.own_format import SHARD
from mpocompress.checkpoint.sniff import Form, refusal, sniff
from mpocompress.errors import CheckpointError

if TYPE_CHECKING:
    from mpocompress.checkpoint.forms import unsafe_pickle
else:
    unsafe_pickle = Deferred("mpocompress.checkpoint.forms.unsafe_pickle")

_RUNNABLE = (Form.TORCH_ZIP, Form.LEGACY_TORCH, Form.PICKLE)
"""The forms that can hold code to run."""
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
    """Open a checkpoint; its form is recognised by its content. No tensor is read and no code from it is run.

    Args:
        path: a file, a folder, or an index of shards.
        key: which dict of a training checkpoint is the state dict, dotted if nested deeper; None to find it.
        allow_pickle: load a pickle with torch.load or pickle.load, which RUNS the code it names. Only for files that
            you trust and that cannot be read otherwise; no effect on forms that hold no code.

    Returns:
        The open checkpoint, to be used as a context manager.

    Raises:
        CheckpointError: the file is missing, damaged, of an unsupported form, or without an unambiguous state dict; the
            message names the form and what to do.
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
    if allow_pickle and form in _RUNNABLE:
        return unsafe_pickle.open_by_running(path, key, form)
    if form in _FOLDER_OPENERS:
        return _FOLDER_OPENERS[form](path, key, _open_file)
    opened = _open_file(path, key)
    if SHARD in opened.metadata:
        opened.__exit__(None, None, None)
        raise CheckpointError(
            where=str(path),
            found="one shard of a compressed folder",
            why="the description of its cores is in the index of the folder",
            action="Give the folder.",
        )
    return opened


def _open_file(path: Path, key: str | None) -> Checkpoint:
    form = sniff(path)
    if form not in _OPENERS:
        raise refusal(path, form)
    return _OPENERS[form](path, key)
