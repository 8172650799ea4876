"""Write or check the generated pages of the documentation."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def is_current(page: Path, wanted: str) -> bool:
    """Return whether the page exists and holds exactly the wanted text."""
    return page.is_file() and page.read_text(encoding="utf-8") == wanted


def write_or_check(page: Path, wanted: str, arguments: list[str], *, program: str, description: str | None) -> int:
    """Write a page, or with `--check` among the arguments compare it only; return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    if not parser.parse_args(arguments).check:
        page.write_text(wanted, encoding="utf-8")
        return 0
    if is_current(page, wanted):
        return 0
    print(f"{page}: out of date; run `make reference`.", file=sys.stderr)
    return 1
