"""Names of the parts of a compressed file; the document itself is not parsed here."""

from __future__ import annotations

from mpocompress.errors import CheckpointError, FormatError
from mpocompress.text import shown, shown_size

MARK = "mpocompress"
STATE_DICT = "state_dict"
EXTRAS = "extras"
ALIASES = "mpocompress.aliases"
SHARD = "mpocompress.shard"  # in the header of a shard: the name of its index
FILES = "mpocompress.files"  # in a folder written by mpocompress: the names of all its files
MAX_DOCUMENT_BYTES = 64 * 2**20


def check_document(document: str, where: str) -> None:
    """Refuse a document that is larger than the format allows.

    Args:
        document: the JSON text.
        where: the file, for the message.

    Raises:
        FormatError: it has more than `MAX_DOCUMENT_BYTES` as UTF-8.
    """
    size_bytes = (
        len(document.encode("utf-8", "surrogatepass")) if len(document) <= MAX_DOCUMENT_BYTES else len(document)
    )
    if size_bytes > MAX_DOCUMENT_BYTES:
        raise inconsistent(where, f"a document of {shown_size(size_bytes)}, above {shown_size(MAX_DOCUMENT_BYTES)}")


def own_key(where: str, key: str | None) -> str:
    """Return the position of the state dict in a compressed file: always `state_dict`.

    Args:
        where: the file, for the message.
        key: the key that the user gave, or None.

    Raises:
        CheckpointError: `key` is another one.

    Example:
        >>> own_key("small.pt", None)
        'state_dict'
    """
    if key not in (None, "", STATE_DICT):  # "" is the top, where a shard has its tensors
        raise CheckpointError(
            where=where,
            found=f"key {shown(key)!r} for a compressed file",
            why="a compressed file has one state dict only",
            action="Omit the key.",
        )
    return STATE_DICT


def inconsistent(where: str, found: str) -> FormatError:
    """Return the error for a file that is marked as ours but is inconsistent.

    Args:
        where: the file.
        found: the inconsistency.

    Example:
        >>> print(inconsistent("small.pt", "no tensors"))
        small.pt: no tensors; a compressed file has a different layout. Compress the original checkpoint again.
    """
    return FormatError(
        where=where,
        found=found,
        why="a compressed file has a different layout",
        action="Compress the original checkpoint again.",
    )
