"""Files made to mislead, crash or take over: refused in words or read as what they are; nothing in them runs.

Every one goes through the command line, in a process whose memory and time end.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.hostile import compressed, legacy, pickles, safetensors_files, zips
from tests.hostile.conftest import Run
from tests.hostile.registry import Case
from tests.programs import Outcome

GROUPS = {
    "pickle": pickles.cases,
    "zip": zips.cases,
    "legacy": legacy.cases,
    "safetensors": safetensors_files.cases,
    "names": safetensors_files.names,
    "compressed": compressed.cases,
}
FOUR_PARTS = re.compile(r"Error: \S.*: \S.*; \S.*\. \S.*\.$")


def printed(outcome: Outcome) -> str:
    """What a command said, on both streams, in one line."""
    return " ".join((outcome.out + outcome.err).split())


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{group}: {case.title}") for group, cases in GROUPS.items() for case in cases.all],
)
def test_it_does_no_harm(case: Case, work: Path, run: Run, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    words = case.words(case.make(work, canary))
    before = sorted(work.iterdir())

    outcome = run(*words)

    assert "Traceback" not in outcome.err
    assert outcome.code == case.code, outcome.err
    assert re.search(case.says, printed(outcome)), outcome.err
    assert "MemoryError" not in outcome.err
    assert not canary.exists()
    assert all(line.isprintable() for line in (outcome.out + outcome.err).splitlines())
    if case.code == 1:
        assert FOUR_PARTS.match(outcome.err), outcome.err
        assert "out of memory" not in outcome.err
        assert sorted(work.iterdir()) == before
    else:
        assert (work / "out.pt").exists()


@pytest.mark.parametrize("title", compressed.EDITS)
def test_inspect_refuses_a_document_that_contradicts_itself_and_shows_any_other(
    title: str, work: Path, run: Run
) -> None:
    edit, message = compressed.EDITS[title]
    compressed.edited(work, edit)

    outcome = run("inspect", "model.pt")

    if title in compressed.SHOWN_BY_INSPECT:
        assert (outcome.code, outcome.err) == (0, "")
        assert "fc.weight" in outcome.out
    else:
        assert (outcome.code, outcome.out) == (1, "")
        assert FOUR_PARTS.match(outcome.err), outcome.err
        assert re.search(message, printed(outcome)), outcome.err
    assert all(line.isprintable() for line in (outcome.out + outcome.err).splitlines())
