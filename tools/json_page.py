"""Write the tables of fields in `docs/reference/json.md`, or check that they are up to date.

Run as `python -m tools.json_page` (or `make reference`). The tables follow from the dataclasses in
`mpocompress/reports/`; `--check` writes nothing and exits with 1 if a table differs from them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpocompress.reports.json_schema import schema
from tools.pages import write_or_check
from tools.schemas import DOCUMENTS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "json.md"
START = re.compile(r"<!-- fields of the (\w+): written by `make reference` -->\n")
END = "<!-- end of fields -->"


def page() -> str:
    """Return the page with its tables as they should be."""
    first, *rest = START.split(PAGE.read_text(encoding="utf-8"))
    written: set[str] = set()
    parts = [first]
    for name, text in zip(rest[::2], rest[1::2], strict=True):
        tables = "\n".join(_sections(schema(DOCUMENTS[name]), written))
        start = f"<!-- fields of the {name}: written by `make reference` -->"
        parts.append(f"{start}\n\n{tables}\n{END}{text.partition(END)[2]}")
    return "".join(parts)


def _sections(declared: dict[str, Any], written: set[str]) -> Iterator[str]:
    """Yield a section for every object of a document that is not on the page yet, in the order of first use."""
    queue = [declared]
    while queue:
        described = queue.pop(0)
        if described["title"] in written:
            continue
        written.add(described["title"])
        rows = [
            f"| `{name}` | {type_text(field)} | {_cell(field['description'])} |"
            for name, field in described["properties"].items()
        ]
        table = ["| field | type | description |", "|---|---|---|", *rows]
        yield "\n".join([f"### {described['title']}", "", described["description"], "", *table, ""])
        references = re.findall(r'"#/\$defs/(\w+)"', json.dumps(described["properties"]))
        queue += [declared["$defs"][name] for name in dict.fromkeys(references)]


def type_text(field: Mapping[str, Any]) -> str:
    """Return a description of the type of a field.

    Args:
        field: its JSON Schema.

    Example:
        >>> type_text({"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]})
        'list of integers, or null'
    """
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        texts = dict.fromkeys(type_text(option) for option in field["anyOf"])
        hidden = {"null", "integer"} if "number" in texts else {"null"}
        return " or ".join(text for text in texts if text not in hidden) + (", or null" if "null" in texts else "")
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])} {_plural(type_text(field['prefixItems'][0]))}"
    if field["type"] == "array":
        return f"list of {_plural(type_text(field['items']))}"
    if field["type"] == "object":
        return f"object of {_plural(type_text(field['additionalProperties']))}"
    return str(field["type"])


def _plural(text: str) -> str:
    return text if text.startswith(("[", "`")) else f"{text}s"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(arguments: list[str]) -> int:
    """Write or check the page; return the exit code."""
    return write_or_check(PAGE, page(), arguments, program="tools.json_page", description=__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
