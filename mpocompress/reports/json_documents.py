"""JSON documents declared as dataclasses: encoding, and strict decoding of untrusted text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NoReturn, Self, TypeVar

import msgspec

from mpocompress.errors import FormatError, ReportError
from mpocompress.text import shown

LARGEST = 1e150
"""Limit of the numbers in a document; the square of a larger one would overflow."""

Number = Annotated[float, msgspec.Meta(ge=-LARGEST, le=LARGEST)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=LARGEST)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}(?!\n)$")]


def choice(*values: str) -> msgspec.Meta:
    """Return the declaration of a text that is one of several.

    Args:
        values: the allowed texts, of letters, digits, spaces and underscores.

    Example:
        >>> msgspec.convert("b", Annotated[str, choice("a", "b")])
        'b'
    """
    # `$` alone matches before a trailing newline, too
    return msgspec.Meta(pattern=rf"^({'|'.join(values)})(?!\n)$", extra_json_schema={"enum": list(values)})


_CHOICE = re.compile(r"Expected `str` matching regex '\^\((.+)\)\(\?!\\\\n\)\$'")
"""The error about a text that is not among those of `choice`."""


class Document:
    """Base of the dataclasses that are whole documents; their JSON begins with `format` and `version`.

    A document is pickled as its JSON text, so that a pickle names no class but that of the document.
    """

    __slots__ = ()

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1
    IF_DAMAGED: ClassVar[str] = "The file is damaged or was edited: repeat the command that wrote it."
    """Last sentence of the error about a damaged document."""

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the document as JSON text.

        Args:
            indent: spaces to indent by; None for one line.
        """
        return encode(self, indent=indent)

    @classmethod
    def from_json(cls, text: str, *, where: str = "document") -> Self:
        """Return the document in a JSON text; unknown fields are ignored.

        Args:
            text: the text, from an untrusted source.
            where: the file it is from, for the error.

        Raises:
            FormatError: the text is not a document of this format and version; the message has the path of the field.
            ReportError: its figures contradict each other.
        """
        document = decode(cls, text, where=where)
        try:
            document.check()
        except ReportError as error:
            raise ReportError(
                where=f"{where}, {error.where}", found=error.found, why=error.why, action=cls.IF_DAMAGED
            ) from error
        return document

    def check(self) -> None:
        """Check that the figures do not contradict each other.

        Raises:
            ReportError: they do.
        """

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the class and the JSON text."""
        return type(self).from_json, (self.to_json(),)

    def __copy__(self) -> Self:
        """Return the document itself: it cannot be changed."""
        return self

    def __deepcopy__(self, memo: object) -> Self:
        """Return the document itself: it cannot be changed."""
        return self


D = TypeVar("D", bound=Document)


def encode(document: Document, *, indent: int | None = None) -> str:
    """Return a document as JSON text; equal documents give equal text.

    Args:
        document: the document.
        indent: spaces to indent by; None for one line.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    header = {"format": document.FORMAT, "version": document.VERSION}
    fields = msgspec.to_builtins(document, enc_hook=_builtin)
    return json.dumps(header | fields, indent=indent, allow_nan=False)


def decode(kind: type[D], text: str, *, where: str) -> D:
    """Return the document in a JSON text; fields that are not declared are ignored.

    Args:
        kind: class of the document.
        text: the text, from an untrusted source.
        where: the file it is from, for the error.

    Raises:
        FormatError: the text is not JSON, or a document of another format or version, or has a field that is missing,
            of another type, or out of range. The message has the path of the field.
    """
    try:
        fields = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            where=where, found="a document that is not valid JSON", why=shown(str(error)), action=kind.IF_DAMAGED
        ) from error
    if not isinstance(fields, dict) or fields.get("format") != kind.FORMAT:
        raise FormatError(
            where=where,
            found="a document of another format",
            why=f"the format must be {kind.FORMAT!r}",
            action="Pass a file that mpocompress wrote.",
        )
    version = fields.get("version")
    if version != kind.VERSION or type(version) is not int:
        raise FormatError(
            where=where,
            found=f"format version {shown(str(version))}",
            why=f"this release reads version {kind.VERSION}",
            action="Upgrade mpocompress: pip install -U mpocompress.",
        )
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, UnicodeEncodeError, RecursionError) as error:
        problem, _, path = str(error).rpartition(" - at `$")
        path = path.rstrip("`").lstrip(".") if problem else ""
        problem = _CHOICE.sub(lambda match: f"Expected one of {match[1].replace('|', ', ')}", problem or str(error))
        raise FormatError(
            where=where,
            found=(f"{shown(path)}: " if path else "") + shown(problem[:1].lower() + problem[1:]),
            why=f"the document does not follow format {kind.FORMAT!r}",
            action=kind.IF_DAMAGED,
        ) from error


def contradiction(where: str, found: str, why: str) -> ReportError:
    """Return the error about figures of a report that contradict each other.

    Args:
        where: the part of the report.
        found: the figures.
        why: what they must fulfil.
    """
    return ReportError(where=where, found=found, why=why, action="Report this as a bug, with the command and the file.")


def _builtin(value: object) -> object:
    """Return a mapping as a dict, and a value of a subclass (such as `torch.__version__`) as one of its base class."""
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a document cannot hold {value!r}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict; refuse duplicate keys."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"duplicate key {name!r}")
        fields[name] = value
    return fields


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
