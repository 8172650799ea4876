"""Write the JSON Schemas in `mpocompress/reports/schema/`, or check that they are up to date.

Run as `python -m tools.schemas` (or `make reference`). The schemas follow from the dataclasses in
`mpocompress/reports/`; `--check` writes nothing and exits with 1 if a file differs from them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mpocompress.reports.benchmark import BenchReport
from mpocompress.reports.compression import Report
from mpocompress.reports.json_documents import Document
from mpocompress.reports.json_schema import schema
from mpocompress.reports.overview import Overview
from mpocompress.reports.plan import PlanReport
from tools.pages import write_or_check

FOLDER = Path(__file__).resolve().parents[1] / "mpocompress" / "reports" / "schema"
DOCUMENTS: dict[str, type[Document]] = {
    "report": Report,
    "plan": PlanReport,
    "overview": Overview,
    "bench": BenchReport,
}
"""Name of the file, without the version -> class of the document."""


def files() -> dict[Path, str]:
    """Return the text of every schema file."""
    return {
        FOLDER / f"{name}-{kind.VERSION}.json": json.dumps(schema(kind), indent=2) + "\n"
        for name, kind in DOCUMENTS.items()
    }


def main(arguments: list[str]) -> int:
    """Write or check the schemas; return the exit code."""
    return max(
        write_or_check(path, text, arguments, program="tools.schemas", description=__doc__)
        for path, text in files().items()
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
