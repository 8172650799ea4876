"""Write the picture and the table of packages in `docs/explanation/architecture.md`, or check that they are up to date.

Run as `python -m tools.architecture_page` (or `make reference`). The rows come from the import contract in
`pyproject.toml` and the descriptions from the first lines of the package docstrings; `--check` writes nothing and exits
with 1 if the picture or the table differs from them.
"""

from __future__ import annotations

import ast
import html
import sys
import tomllib
from pathlib import Path

from tools.pages import write_or_check

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
PICTURE = PAGE.with_suffix(".svg")

START = "<!-- packages: written by `make reference` -->"
END = "<!-- end of packages -->"

WIDTH, ROW, GAP = 760, 46, 14


def rows() -> list[list[str]]:
    """Return the rows of the import contract between packages, top first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["mpocompress"])
    return [row.split(" | ") for row in layers]


def summary(name: str) -> str:
    """Return the first line of the docstring of a package or of a file at the top level."""
    package = ROOT / "mpocompress" / name / "__init__.py"
    source = package if package.is_file() else ROOT / "mpocompress" / f"{name}.py"
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def picture() -> str:
    """Return the rows as an SVG picture; imports point down."""
    table = rows()
    height = len(table) * (ROW + GAP) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>The packages of mpocompress: each imports only from rows below its own</title>",
        "<style>",
        "text { font: 15px system-ui, sans-serif; text-anchor: middle; fill: #17212b }",
        ".package, .import { fill: #ffffff; stroke: #5b7083 }",
        "</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, names in enumerate(table):
        top = GAP + number * (ROW + GAP)
        if number:
            lines.append(f'<path class="import" d="M{WIDTH / 2} {top - GAP + 1} V{top - 5} m-5 -1 l5 5 l5 -5 z"/>')
        lines.append(f'<rect x="{GAP}" y="{top}" width="{WIDTH - 2 * GAP}" height="{ROW}" rx="6" fill="#eef2f6"/>')
        width = (WIDTH - 2 * GAP - (len(names) + 1) * 6) / len(names)
        for place, name in enumerate(names):
            left = GAP + 6 + place * (width + 6)
            box = f'x="{left:.1f}" y="{top + 6}" width="{width:.1f}" height="{ROW - 12}" rx="4"'
            lines.append(f'<rect class="package" {box}/>')
            lines.append(f'<text x="{left + width / 2:.1f}" y="{top + ROW // 2 + 5}">{html.escape(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])


def page() -> str:
    """Return the architecture page with its table of packages as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    lines = [f"| `{name}` | {summary(name)} |" for row in rows() for name in row]
    table = ["| package | contents |", "|---|---|", *lines]
    return "\n".join([before + START, "", *table, "", END + after])


def main(arguments: list[str]) -> int:
    """Write or check the picture and the page; return the exit code."""
    wanted = ((PICTURE, picture()), (PAGE, page()))
    program = "tools.architecture_page"
    return max(write_or_check(file, text, arguments, program=program, description=__doc__) for file, text in wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
