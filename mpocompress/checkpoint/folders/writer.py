"""Write a folder: companion files, weights in one file or in shards, and the index last; completely or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from mpocompress.checkpoint.checkpoint import SAFETENSORS
from mpocompress.checkpoint.folders.index import MAX_INDEX_BYTES
from mpocompress.checkpoint.folders.overwrite_checks import check_apart, check_folder
from mpocompress.checkpoint.layout import CONFIG, Layout, file_name, index_name
from mpocompress.checkpoint.own_format import ALIASES, FILES, MARK, SHARD, check_document
from mpocompress.checkpoint.writing.atomic import replacing, replacing_folder
from mpocompress.checkpoint.writing.writer import write_checkpoint
from mpocompress.errors import OutputError
from mpocompress.text import shown_size

_LENGTH_BYTES = 8


def write_folder(
    path: Path,
    *,
    tensors: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str],
    shards: Mapping[str, str],
    layout: Layout,
    metadata: Mapping[str, str],
    document: str | None,
    overwrite: bool,
    inputs: Sequence[Path],
) -> int:
    """Write a folder of safetensors: equal arguments give equal bytes, and a failure leaves nothing.

    With a document the weights are called `model.mpo.safetensors`, or `model-00001-of-00003.mpo.safetensors` and so on,
    so that loaders without support for cores find no weights. Without one they have the names that loaders look for.

    Args:
        path: the output, created or replaced.
        tensors: name -> dense tensor; requested one shard at a time.
        aliases: further name -> name in `tensors` that it is tied to.
        shards: name -> its shard, under any name; empty for one file.
        layout: the folder that was read: name of the weights and companion files.
        metadata: text entries for the headers.
        document: the JSON text of our format, or None for an ordinary dense model.
        overwrite: whether a folder that mpocompress wrote may be replaced.
        inputs: files being read.

    Returns:
        Bytes of the weights, their index and the configuration.

    Raises:
        OutputError: the output is refused, does not fit on the disk, or cannot be written.
        FormatError: the document is too large.
    """
    check_apart(path, folder=layout.folder, inputs=inputs)
    check_folder(path, overwrite=overwrite)
    if document is not None:
        check_document(document, str(path))
    parts = _parts(tensors, shards)
    stem, compressed = layout.stem, document is not None
    names = [file_name(stem, compressed=compressed, shard=n + 1, of=len(parts)) for n in range(len(parts))]
    index = index_name(stem, compressed=compressed)
    written = [*names, index] if len(names) > 1 else names
    files = {FILES: json.dumps(sorted({*written, *layout.companions}))}
    try:
        with replacing_folder(path) as folder:
            for name in layout.companions:
                with (layout.folder / name).open("rb") as source, replacing(folder / name) as stream:
                    shutil.copyfileobj(source, stream)
            if len(names) == 1:
                _write_file(folder / names[0], tensors, aliases, {**metadata, **files}, document)
            else:
                named = {folder / name: _Part(tensors, part) for name, part in zip(names, parts, strict=True)}
                _write_shards(folder / index, named, aliases, metadata, files, document)
            return sum((folder / name).stat().st_size for name in (*written, *_config(layout)))
    except OutputError as error:  # it names the temporary folder
        where = path if error.where == str(path) else path / Path(error.where).name
        raise OutputError(where=str(where), found=error.found, why=error.why, action=error.action) from error


class _Part(Mapping[str, torch.Tensor]):
    """Some of the tensors, each requested when it is needed."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Mapping[str, None]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _parts(tensors: Mapping[str, torch.Tensor], shards: Mapping[str, str]) -> list[dict[str, None]]:
    """The names in each shard, in the order of the shards, without empty shards."""
    first = min(shards.values(), default="")
    parts: dict[str, dict[str, None]] = {}
    for name in tensors:
        parts.setdefault(shards.get(name, first), {})[name] = None
    return [parts[shard] for shard in sorted(parts)] or [{}]


def _write_shards(
    index: Path,
    parts: Mapping[Path, Mapping[str, torch.Tensor]],
    aliases: Mapping[str, str],
    metadata: Mapping[str, str],
    files: Mapping[str, str],
    document: str | None,
) -> None:
    """Write every shard, and the index last; without a document, aliases are written as copies."""
    header = metadata if document is None else {**metadata, SHARD: index.name}
    weight_map: dict[str, str] = {}
    for path, part in parts.items():
        copies = {name: target for name, target in aliases.items() if target in part} if document is None else {}
        _write_file(path, part, copies, header, None)
        weight_map |= dict.fromkeys((*part, *copies), path.name)
    entries: dict[str, object] = {"total_size": sum(map(_tensor_bytes, parts)), **files}
    if document is not None:
        entries[MARK] = document
        if aliases:
            entries[ALIASES] = json.dumps(dict(aliases), sort_keys=True)
    _write_index(index, {"metadata": entries, "weight_map": weight_map})


def _write_file(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    aliases: Mapping[str, str],
    metadata: Mapping[str, str],
    document: str | None,
) -> None:
    write_checkpoint(
        path,
        tensors=tensors,
        aliases=aliases,
        container=SAFETENSORS,
        key="",
        extras={},
        metadata=metadata,
        document=document,
        overwrite=False,
        inputs=(),
    )


def _write_index(path: Path, content: Mapping[str, object]) -> None:
    text = json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"
    if len(text) > MAX_INDEX_BYTES:
        raise OutputError(
            where=str(path),
            found=f"an index of {shown_size(len(text))}",
            why=f"an index above {shown_size(MAX_INDEX_BYTES)} could not be read back",
            action="Write one .safetensors file.",
        )
    with replacing(path) as stream:
        stream.write(text)


def _tensor_bytes(path: Path) -> int:
    """Bytes of a safetensors file without its header."""
    with path.open("rb") as stream:
        return path.stat().st_size - _LENGTH_BYTES - int.from_bytes(stream.read(_LENGTH_BYTES), "little")


def _config(layout: Layout) -> tuple[str, ...]:
    return (CONFIG,) if CONFIG in layout.companions else ()
