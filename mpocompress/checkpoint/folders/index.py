"""The index of a checkpoint in shards: which file holds which tensor, read as if an enemy had written it."""

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
_FETCH = "Fetch the whole folder again, or save the model again."


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """What an index says.

    Args:
        path: the index.
        places: tensor name -> file name of its shard, a plain name beside the index.
        document: our JSON text, if it is the index of a compressed checkpoint.
        aliases: JSON text with the tied names of a compressed checkpoint.
    """

    path: Path
    places: Mapping[str, str]
    document: str | None
    aliases: str | None

    @property
    def shards(self) -> tuple[str, ...]:
        """The file names, sorted."""
        return tuple(sorted(set(self.places.values())))


def read_index(path: Path) -> ShardIndex:
    """Read an index and check that every shard it names is a file beside it.

    Args:
        path: a JSON file.

    Returns:
        What it says.

    Raises:
        CheckpointError: it is no index, its names lead elsewhere, or shards are missing.
        FormatError: it is marked as ours but not laid out like it.
    """
    read = read_json(path, largest=MAX_INDEX_BYTES, what="index of shards", action=_FETCH)
    places = read.get(_WEIGHT_MAP)
    if _WEIGHT_MAP not in read:
        raise refusal(path, Form.JSON)
    if not isinstance(places, dict) or not places:
        raise _refusal(path, f"{_WEIGHT_MAP!r} is no object with entries", "it names no tensor")
    for name, shard in places.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise _refusal(
                path,
                f"{shown(name)} is said to be in '{shown(str(shard))}'",
                "a shard is a file in the folder of its index, and nothing else is opened",
            )
    _check_present(path, places)
    metadata = read.get("metadata", {})
    if not isinstance(metadata, dict):
        raise _refusal(path, "'metadata' is no object", "an index holds an object there")
    document, aliases = metadata.get(MARK), metadata.get(ALIASES)
    if not isinstance(document, str | None) or not isinstance(aliases, str | None):
        raise inconsistent(str(path), f"{MARK!r} or {ALIASES!r} in 'metadata' is no text")
    if document is not None:
        check_document(document, str(path))
    return ShardIndex(path=path, places=places, document=document, aliases=aliases)


def check_contents(index: ShardIndex, contents: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Hold an index against what is in the shards.

    Args:
        index: the index.
        contents: file name of a shard -> the names of all tensors in it.

    Returns:
        A note, if shards hold tensors that the index does not name.

    Raises:
        CheckpointError: a shard lacks a tensor, or two shards hold one of the same name.
        FormatError: a compressed checkpoint holds tensors that its index does not name.
    """
    held = {shard: set(names) for shard, names in contents.items()}
    lacking = [(name, shard) for name, shard in index.places.items() if name not in held[shard]]
    if lacking:
        name, shard = lacking[0]
        raise _refusal(
            index.path,
            f"{shown(name)} is not in {shown(shard)}" + _more(len(lacking) - 1),
            "the index and the shards do not belong together",
        )
    counts = Counter(name for names in contents.values() for name in names)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        where = [shard for shard in held if twice[0] in held[shard]]
        raise _refusal(
            index.path,
            f"{shown(twice[0])} is in {' and in '.join(map(shown, where[:2]))}" + _more(len(twice) - 1),
            "it cannot be told which one counts",
        )
    unnamed = [name for name in counts if name not in index.places]
    if unnamed and index.document is not None:
        raise inconsistent(str(index.path), f"{shown(unnamed[0])} is in a shard and not in the index")
    if not unnamed:
        return ()
    noun = "tensor is" if len(unnamed) == 1 else "tensors are"
    return (f"{len(unnamed)} {noun} in the shards and not in the index, and taken along ({shown(unnamed[0])})",)


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not any(char in name for char in "/\\\0")


def _check_present(path: Path, places: Mapping[str, str]) -> None:
    shards = sorted(set(places.values()))
    missing = [name for name in shards if sniff(path.with_name(name)) is Form.MISSING]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise _refusal(
            path,
            f"of the {len(shards)} shards it names {len(missing)} {verb} missing: {listed(missing, _MOST_SHOWN)}",
            "without them the model is not whole",
        )


def _more(count: int) -> str:
    return f", and {count} more like it" if count else ""


def _refusal(path: Path, found: str, why: str) -> CheckpointError:
    return CheckpointError(where=str(path), found=found, why=why, action=_FETCH)
