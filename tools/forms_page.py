"""Write `docs/reference/forms.md` from the forms the tests build, or check that it is up to date.

Run as `python -m tools.forms_page` (or `make reference`); `--check` writes nothing and exits with 1 if the page
differs from the forms in the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from tests.forms.registry import Form, Group
from tools.pages import write_or_check

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "forms.md"

INTRODUCTION = """\
<!-- Written by `make reference` from tests/forms: change the forms there, not this page. -->

# Forms of checkpoints

The tests save one model in each of these forms. If a form is read, the tensors are identical bit by bit. If a form is
refused, the error names the form and states what to do. The container is the name of the form in a report
(`source.container`).

The form of a file is recognised by its content; its name does not matter. No code from a file is imported or run.
"""


def render(groups: Iterable[Group]) -> str:
    """Return the page for groups of forms: a table each."""
    return "\n".join([INTRODUCTION, *(_section(group) for group in groups)])


def _section(group: Group) -> str:
    rows = ["| form | result | container | note |", "|---|---|---|---|", *map(_row, group.forms)]
    return f"## {group.name}\n\n" + "\n".join(rows) + "\n"


def _row(form: Form) -> str:
    fate = "read" if form.container else f"refused: “{form.refused}”"
    asked = f"with the key `{form.key}`" if form.key else ""
    notes = "; ".join(text for text in (asked, form.note) if text)
    container = f"`{form.container}`" if form.container else ""
    return f"| {form.title} | {fate} | {container} | {notes} |"


def main(groups: Iterable[Group], page: Path, arguments: list[str]) -> int:
    """Write or check the page; return the exit code."""
    return write_or_check(page, render(groups), arguments, program="tools.forms_page", description=__doc__)


if __name__ == "__main__":
    from tests.forms.every import GROUPS

    sys.exit(main(GROUPS, PAGE, sys.argv[1:]))
