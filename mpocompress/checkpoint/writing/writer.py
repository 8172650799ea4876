"""Write a checkpoint, compressed or dense, completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from mpocompress.checkpoint.checkpoint import SAFETENSORS
from mpocompress.checkpoint.contents.extras import holds_anything, restore
from mpocompress.checkpoint.contents.state_dict_search import named_children
from mpocompress.checkpoint.own_format import ALIASES, EXTRAS, MARK, STATE_DICT, check_document
from mpocompress.checkpoint.writing.atomic import replacing
from mpocompress.checkpoint.writing.deterministic import Canonicaliser
from mpocompress.checkpoint.writing.safetensors_stream import write_safetensors
from mpocompress.errors import OutputError, OutputExistsError
from mpocompress.text import shown, shown_size

_OVERHEAD_BYTES = 2**20
_OVERHEAD_BYTES_PER_TENSOR = 512


def left_out(
    container: str, *, extras: Mapping[str, object] | list[object], metadata: Mapping[str, str]
) -> tuple[str, ...]:
    """Return the names of the entries that `write_checkpoint` cannot keep in a container.

    safetensors files hold only tensors and text, and torch files have no text entries in a header.

    Args:
        container: the container of the output.
        extras: as for `write_checkpoint`.
        metadata: as for `write_checkpoint`.

    Example:
        >>> left_out("safetensors", extras={"epoch": 3, "model": {}}, metadata={})
        ('epoch',)
    """
    if container == SAFETENSORS:
        return tuple(str(name) for name, value in named_children(extras).items() if holds_anything(value))
    return tuple(name for name in metadata if name != "format")  # it only names the library that wrote the file


def check_output(path: str | os.PathLike[str], *, overwrite: bool, inputs: Sequence[Path]) -> None:
    """Refuse an output that cannot or must not be written, before any work is done.

    Args:
        path: the output.
        overwrite: whether an existing file may be replaced.
        inputs: files being read; none may be the output, under any name or link.

    Raises:
        OutputExistsError: the file exists and `overwrite` is false.
        OutputError: it is a folder, a device, one of the inputs, or its folder is missing or not writable.
    """
    path = Path(path)
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir():
        raise output_refused(path, "a folder", "the output is one file", "Choose a file in it.")
    if not folder.is_dir():
        raise output_refused(path, f"no folder {folder}", "the file has no folder", "Create the folder first.")
    if path.exists():
        if not path.is_file():
            raise output_refused(
                path, "a device, pipe or socket", "it would be replaced by a file", "Choose a plain file."
            )
        if any(source.exists() and path.samefile(source) for source in inputs):
            raise output_refused(
                path,
                "the output is a file being read, by the same name or by a link",
                "it is mapped into memory, and writing would destroy it",
                "Choose another output.",
            )
        if not overwrite:
            raise OutputExistsError(
                where=str(path),
                found="the file exists",
                why="an existing file is replaced only on request",
                action="Choose another output, or allow it to be overwritten.",
            )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise output_refused(
            path, f"folder {folder} is not writable", "the file cannot be created", "Change its permissions."
        )


def output_refused(path: Path, found: str, why: str, action: str) -> OutputError:
    """Return the error for an output.

    Example:
        >>> print(output_refused(Path("out"), "a folder", "the output is one file", "Choose a file in it."))
        out: a folder; the output is one file. Choose a file in it.
    """
    return OutputError(where=str(path), found=found, why=why, action=action)


def write_checkpoint(
    path: str | os.PathLike[str],
    *,
    tensors: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str],
    container: str,
    key: str,
    extras: Mapping[str, object] | list[object],
    metadata: Mapping[str, str],
    document: str | None,
    overwrite: bool,
    inputs: Sequence[Path],
) -> int:
    """Write a checkpoint: equal arguments give equal bytes, and a failure leaves no file.

    With a document, a torch file has the form `{"mpocompress": document, "state_dict": ..., "extras": ...}`, and a
    safetensors file has the document in its header. Without one the file is an ordinary dense checkpoint: in a torch
    file the state dict is at `key` among the extras.

    In a torch file an alias is a shared tensor. safetensors has no sharing: with a document the alias is recorded in
    the header entry `mpocompress.aliases`; in a dense file it is a copy, so that every loader finds every name.

    Entries that the container cannot keep are dropped; `left_out` names them.

    Args:
        path: the output.
        tensors: name -> dense tensor, in the order of the file; written contiguous, without unused memory.
        aliases: further name -> name in `tensors` that it is tied to; written after the tensors.
        container: `torch-zip` or `safetensors`.
        key: position of the state dict in a dense torch file.
        extras: everything else for a torch file.
        metadata: text entries for a safetensors header; `format` is set to `pt` if missing, because loaders require it.
        document: the JSON text of our format, or None.
        overwrite: whether an existing file may be replaced.
        inputs: files being read; none may be the output.

    Returns:
        Bytes written.

    Raises:
        OutputError: the output is refused (see `check_output`), does not fit on the disk, or cannot be written.
        FormatError: the document is too large.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size_bytes = write_checkpoint(
        ...         f"{folder}/dense.pt", tensors={"fc.weight": torch.ones(2, 3)}, aliases={}, container="torch-zip",
        ...         key="model", extras={"epoch": 3}, metadata={}, document=None, overwrite=False, inputs=[],
        ...     )
        ...     torch.load(f"{folder}/dense.pt", weights_only=True)
        {'epoch': 3, 'model': {'fc.weight': tensor([[1., 1., 1.],
                [1., 1., 1.]])}}
    """
    path = Path(path)
    check_output(path, overwrite=overwrite, inputs=inputs)
    _check_names(path, tensors, aliases, metadata)
    if document is not None:
        check_document(document, str(path))
    as_copies = container == SAFETENSORS and document is None
    check_space(path, _bytes_needed(tensors, aliases if as_copies else {}, document))
    with replacing(path) as stream:
        if container == SAFETENSORS:
            state = {**tensors, **{name: tensors[target] for name, target in aliases.items()}} if as_copies else tensors
            header = {"format": "pt", **metadata}
            if document is not None:
                header[MARK] = document
                if aliases:
                    header[ALIASES] = json.dumps(dict(aliases), sort_keys=True)
            write_safetensors(stream, state, header, str(path))
        else:
            _write_torch(stream, tensors, aliases, key, extras, document, str(path))
        return stream.tell()


def _write_torch(
    stream: BinaryIO,
    tensors: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str],
    key: str,
    extras: Mapping[str, object] | list[object],
    document: str | None,
    where: str,
) -> None:
    canonicaliser = Canonicaliser()
    state = {name: canonicaliser.copy(tensor) for name, tensor in tensors.items()}
    state |= {name: state[target] for name, target in aliases.items()}
    root = (
        {MARK: document, STATE_DICT: state, EXTRAS: extras}
        if document is not None
        else restore(extras, key, state, where)
    )
    # A stream, not a path: torch.save would name the folder inside the archive after the path.
    try:
        torch.save(canonicaliser.copy(root), stream)
    except RuntimeError as error:
        cause = error.__context__
        if isinstance(cause, OSError | KeyboardInterrupt):  # torch raises its own error after one of the stream
            raise cause from None
        raise OutputError(
            where=where,
            found=f"torch.save cannot write it ({shown(str(error))})",
            why="nothing was written",
            action="Convert the tensors to ordinary dense tensors, and save the model again.",
        ) from error


def _check_names(
    path: Path, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str], metadata: Mapping[str, str]
) -> None:
    for name, target in aliases.items():
        if name in tensors or target not in tensors:
            raise output_refused(
                path,
                f"alias {shown(name)} of {shown(target)} does not fit the tensors",
                "an alias is a further name of a tensor that is written",
                "Give the name of a tensor, and no name twice.",
            )
    for name in (MARK, ALIASES):
        if name in metadata:
            raise output_refused(
                path, f"a header entry {name!r}", "it is reserved for the compressed format", "Remove it."
            )


def check_space(path: Path, needed: int) -> None:
    """Refuse an output that does not fit on its disk.

    Args:
        path: the output.
        needed: bytes of its tensors and all other content.

    Raises:
        OutputError: the disk has less free space.
    """
    free = shutil.disk_usage(os.path.realpath(path.parent)).free
    if needed > free:
        raise output_refused(
            path,
            f"about {shown_size(needed)} are needed and {shown_size(free)} are free",
            "the disk would be full",
            "Free some space, or choose an output on another disk.",
        )


def _bytes_needed(tensors: Mapping[str, torch.Tensor], copies: Mapping[str, str], document: str | None) -> int:
    names = [*tensors, *copies.values()]
    needed = sum(tensors[name].numel() * tensors[name].element_size() + _OVERHEAD_BYTES_PER_TENSOR for name in names)
    return needed + len(document or "") + _OVERHEAD_BYTES
