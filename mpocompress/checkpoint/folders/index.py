"""The index of a checkpoint in shards: the file that holds each tensor. An index is untrusted input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpocompress.checkpoint.folders.json_file import read_json
from mpocompress.checkpoint.own_format import ALIASES, MARK, check_document, inconsistent
from mpocompress.checkpoint.sniff import Form, refusal, sniff
from mpocompress.errors import CheckpointError
from mpocompress.text import listed, shown

MAX_INDEX_BYTES = 64 * 2**20  # JSON takes some ten times its size in memory
_WEIGHT_MAP = "weight_map"
_MOST_SHOWN = 5
_DOWNLOAD = "Download the whole folder again, or save the model again."


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """Content of an index.

    Args:
        path: the index.
        shard_of: tensor name -> file name of its shard, a plain name in the folder of the index.
        document: our JSON text, if it is the index of a compressed checkpoint.
        aliases: JSON text with the tied names of a compressed checkpoint.
    """

    path: Path
    shard_of: Mapping[str, str]
    document: str | None
    aliases: str | None

    @property
    def shards(self) -> tuple[str, ...]:
        """The file names, sorted."""
        return tuple(sorted(set(self.shard_of.values())))


def read_index(path: Path) -> ShardIndex:
    """Read an index and check that every shard it names is a file in its folder.

    Raises:
        CheckpointError: the file is not an index, its names lead elsewhere, or shards are missing.
        FormatError: it is marked as ours but not laid out like it.
    """
    content = read_json(path, largest=MAX_INDEX_BYTES, kind="index of shards", action=_DOWNLOAD)
    shard_of = content.get(_WEIGHT_MAP)
    if _WEIGHT_MAP not in content:
        raise refusal(path, Form.JSON)
    if not isinstance(shard_of, dict) or not shard_of:
        raise _refusal(path, f"{_WEIGHT_MAP!r} is not an object with entries", "it names no tensor")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise _refusal(
                path,
                f"the shard of {shown(name)} is '{shown(str(shard))}'",
                "only files in the folder of the index are opened",
            )
    _check_present(path, shard_of)
    metadata = content.get("metadata", {})
    if not isinstance(metadata, dict):
        raise _refusal(path, "'metadata' is not an object", "the metadata of an index is an object")
    document, aliases = metadata.get(MARK), metadata.get(ALIASES)
    if not isinstance(document, str | None) or not isinstance(aliases, str | None):
        raise inconsistent(str(path), f"{MARK!r} or {ALIASES!r} in 'metadata' is not text")
    if document is not None:
        check_document(document, str(path))
    return ShardIndex(path=path, shard_of=shard_of, document=document, aliases=aliases)


def check_contents(index: ShardIndex, contents: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Compare an index with the content of its shards.

    Args:
        index: the index.
        contents: file name of a shard -> names of all tensors in it.

    Returns:
        A note if shards hold tensors that the index does not name.

    Raises:
        CheckpointError: a shard lacks a tensor, or two shards hold one of the same name.
        FormatError: a compressed checkpoint holds tensors that its index does not name.
    """
    names_in = {shard: set(names) for shard, names in contents.items()}
    missing = [(name, shard) for name, shard in index.shard_of.items() if name not in names_in[shard]]
    if missing:
        name, shard = missing[0]
        raise _refusal(
            index.path,
            f"{shown(name)} is not in {shown(shard)}" + _more(len(missing) - 1),
            "the index and the shards do not belong together",
        )
    counts = Counter(name for names in contents.values() for name in names)
    duplicates = [name for name, count in counts.items() if count > 1]
    if duplicates:
        shards = [shard for shard in names_in if duplicates[0] in names_in[shard]]
        raise _refusal(
            index.path,
            f"{shown(duplicates[0])} is in {' and in '.join(map(shown, shards[:2]))}" + _more(len(duplicates) - 1),
            "the checkpoint is ambiguous",
        )
    unnamed = [name for name in counts if name not in index.shard_of]
    if unnamed and index.document is not None:
        raise inconsistent(str(index.path), f"{shown(unnamed[0])} is in a shard and not in the index")
    if not unnamed:
        return ()
    noun = "tensor is" if len(unnamed) == 1 else "tensors are"
    return (f"{len(unnamed)} {noun} in the shards but not in the index, and included ({shown(unnamed[0])})",)


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not any(char in name for char in "/\\\0")


def _check_present(path: Path, shard_of: Mapping[str, str]) -> None:
    shards = sorted(set(shard_of.values()))
    missing = [name for name in shards if sniff(path.with_name(name)) is Form.MISSING]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise _refusal(
            path,
            f"of the {len(shards)} shards it names {len(missing)} {verb} missing: {listed(missing, _MOST_SHOWN)}",
            "the model is incomplete without them",
        )


def _more(count: int) -> str:
    return f", and {count} more like it" if count else ""


def _refusal(path: Path, found: str, why: str) -> CheckpointError:
    return CheckpointError(where=str(path), found=found, why=why, action=_DOWNLOAD)
