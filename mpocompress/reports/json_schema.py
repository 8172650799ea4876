"""JSON Schemas of the documents, from the dataclasses that declare them.

Types and bounds come from the annotations of the fields, descriptions from the `Args:` section of the docstring.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from mpocompress.reports.json_documents import Document


def schema(kind: type[Document]) -> dict[str, Any]:
    """Return the JSON Schema of the documents that `encode` writes.

    Args:
        kind: class of the document.
    """
    (root,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    definitions = {name: _described(cls, components[name]) for name, cls in sorted(_classes(kind).items())}
    document = definitions.pop(root["$ref"].rpartition("/")[2])
    header = {
        "format": {"description": "name of the format", "const": kind.FORMAT},
        "version": {"description": "version of the format", "const": kind.VERSION},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **document,
        "properties": header | document["properties"],
        "required": [*header, *document["required"]],
        "$defs": definitions,
    }


def field_descriptions(kind: type[Any]) -> dict[str, str]:
    """Return the descriptions in the `Args:` section of a docstring, by name, each on one line.

    Args:
        kind: a class.

    Example:
        >>> from mpocompress.reports.plan import PlanReport
        >>> field_descriptions(PlanReport)["choices"]
        'the result of each target'
    """
    section = re.search(r"^Args:\n((?: +.*\n?|\n)+)", inspect.cleandoc(kind.__doc__ or ""), re.MULTILINE)
    entries = re.split(r"^ {4}(\w+): ", section[1] if section else "", flags=re.MULTILINE)[1:]
    return {
        name: re.sub(r"\bNone\b", "null", " ".join(text.split()).rstrip("."))
        for name, text in zip(entries[::2], entries[1::2], strict=True)
    }


def _classes(kind: type[Any]) -> dict[str, type[Any]]:
    """Return a dataclass and the dataclasses in its fields, by name."""
    classes: dict[str, type[Any]] = {}
    queue: list[Any] = [msgspec.inspect.type_info(kind)]
    while queue:
        info = queue.pop()
        if isinstance(info, msgspec.inspect.DataclassType):
            if info.cls.__name__ in classes:
                continue
            classes[info.cls.__name__] = info.cls
            queue += [field.type for field in info.fields]
        else:
            queue += _inner(info)
    return classes


def _inner(info: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    """Yield the types in a type."""
    for name in ("type", "item_type", "key_type", "value_type"):
        if isinstance(inner := getattr(info, name, None), msgspec.inspect.Type):
            yield inner
    for name in ("item_types", "types"):
        yield from getattr(info, name, ())


def _described(kind: type[Any], component: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a dataclass with the descriptions of its docstring; every field is required."""
    descriptions = field_descriptions(kind)
    properties = {
        field.name: {"description": descriptions[field.name], **component["properties"][field.name]}
        for field in dataclasses.fields(kind)
    }
    for declared in properties.values():
        declared.pop("default", None)
        if "enum" in declared:
            declared.pop("pattern", None)
    return {
        "title": kind.__name__,
        "description": inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " "),
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }
