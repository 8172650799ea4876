"""JSON documents from dataclasses and back: the right format and version, and every field of its type."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mpocompress.errors import FormatError

LARGEST = 1e150
"""Numbers in a document are smaller; larger ones could not be squared."""


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, of those in it too, as JSON takes them; nothing is copied.

    `dataclasses.asdict` copies every number and name, which takes longer than to write them.

    Args:
        value: an instance.

    Returns:
        Name -> value.

    Example:
        >>> from mpocompress.mpo.sites import low_rank
        >>> fields_of(low_rank(4, 6))
        {'row_dims': (4, 1), 'col_dims': (1, 6), 'anti_aligned': False}
    """
    return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [fields_of(one) for one in value]
    return fields_of(value) if dataclasses.is_dataclass(value) else value


def read_document(text: str, *, name: str, version: int, where: str) -> dict[str, Any]:
    """The JSON object of a document, of a format and version that can be read.

    Args:
        text: the document.
        name: what its `format` must be.
        version: what its `version` must be.
        where: the file it came from, for messages.

    Returns:
        The object.

    Raises:
        FormatError: not JSON, of another format, or of another version.

    Example:
        >>> read_document('{"format": "x", "version": 1}', name="x", version=1, where="x.json")["version"]
        1
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            where=where,
            found="a document that is not JSON",
            why=str(error),
            action="Compress the original checkpoint again.",
        ) from error
    if not isinstance(document, dict) or document.get("format") != name:
        raise FormatError(
            where=where,
            found="a document of another format",
            why=f"this one should say format {name!r}",
            action="Give a file that mpocompress wrote.",
        )
    found = document.get("version")
    if found != version:
        raise FormatError(
            where=where,
            found=f"format version {found}",
            why=f"this release reads version {version}",
            action="Upgrade mpocompress: pip install -U mpocompress.",
        )
    return document


def build(kind: type[Any], entry: Mapping[str, Any], **made: Any) -> Any:
    """A dataclass from a JSON object: lists become tuples, unknown fields are left out, missing ones get their default.

    Args:
        kind: the dataclass; its annotations are among those that `_TYPES` knows.
        entry: the object.
        made: fields that are no plain values, made already.

    Returns:
        An instance.

    Raises:
        KeyError: a field that is missing and has no default.
        TypeError: not an object.
        ValueError: a value of another type than its field, or a number out of range.
    """
    if not isinstance(entry, Mapping):
        raise TypeError(f"{kind.__name__.lower()}: {entry!r:.60} is no object")
    there = [one for one in dataclasses.fields(kind) if one.name in entry or one.default is dataclasses.MISSING]
    plain = [one for one in there if one.name not in made]
    return kind(**{one.name: typed(entry[one.name], str(one.type), one.name) for one in plain}, **made)


def typed(value: Any, annotation: str, name: str) -> Any:
    """A value from a JSON object, checked: a list becomes a tuple.

    Args:
        value: the value.
        annotation: what it must be, as written in an annotation.
        name: its name, for the message.

    Returns:
        The value.

    Raises:
        ValueError: a value of another type, or a number out of range.

    Example:
        >>> typed([1, 2], "tuple[int, ...]", "bonds")
        (1, 2)
    """
    value = tuple(value) if isinstance(value, list) else value
    if not _TYPES[annotation](value):
        raise ValueError(f"{name}: {value!r:.60} is not {annotation}")
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return (_is_int(value) or isinstance(value, float)) and abs(value) < LARGEST  # type: ignore[arg-type]


def _all(check: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, tuple) and all(map(check, value))


def _mapping(check: Callable[[object], bool], value: object) -> bool:
    return isinstance(value, dict) and all(map(check, value.values()))


def _is_str(value: object) -> bool:
    return isinstance(value, str)


_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "str": _is_str,
    "bool": lambda value: isinstance(value, bool),
    "int": _is_int,
    "int | None": lambda value: value is None or _is_int(value),
    "float": _is_number,
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[int, int]": lambda value: _all(_is_int, value) and len(value) == 2,
    "tuple[int, ...]": partial(_all, _is_int),
    "tuple[float, ...]": partial(_all, _is_number),
    "tuple[str, ...]": partial(_all, _is_str),
    "Mapping[str, int]": partial(_mapping, _is_int),
    "Mapping[str, str]": partial(_mapping, _is_str),
}
"""What a value read from JSON must be, by the annotation of its field."""
