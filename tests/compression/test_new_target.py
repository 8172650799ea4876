"""A target is added by one class: the API, the engine, plans, reports and tables then know it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mpocompress.cli.render.formatting import achieved, requested
from mpocompress.compression.compress import compress
from mpocompress.compression.inspection import inspect
from mpocompress.compression.plan import plan
from mpocompress.errors import TargetError
from mpocompress.planning.targets import TARGETS, Budget, Matrices, Truncation, TruncationTarget
from tests.draw import decaying


@pytest.fixture
def save() -> Iterator[type[TruncationTarget]]:
    """A target for the number of parameters to save; it is known as long as the test runs."""

    class Save(TruncationTarget):
        kind = name = "save"
        title = "parameters to save"
        flag = "--save"
        metavar = "N"
        help = "Number of parameters to save."
        allowed = "an integer of 1 or more"
        is_whole = True
        is_budget = True

        @classmethod
        def accepts(cls, value: object) -> bool:
            return isinstance(value, int) and value >= 1

        def budget(self, *, eligible: int, other: int) -> Budget | None:
            return Budget(parameters=eligible - int(self.value or 0), outside=0)

        def achieved(self, matrices: Matrices, parameters: int | None) -> float | None:
            return sum(matrix.dense_parameters - matrix.parameters for matrix in matrices)

        def unmet(self, achieved: float | None, matrices: Matrices) -> tuple[str, ...]:
            return () if (achieved or 0) >= (self.value or 0) else ("Too few parameters are saved.",)

    yield Save
    del TARGETS[Save.kind]


def truncation(**values: Any) -> Truncation:
    return Truncation(**values)


def test_a_new_target_needs_one_class(tmp_path: Path, save: type[TruncationTarget]) -> None:
    torch.save({f"{name}.weight": decaying(96, 80, 0, 0.8).float() for name in "ab"}, tmp_path / "m.pt")
    target = truncation(save=8000)

    (choice,) = plan(tmp_path / "m.pt", truncations=[target], jobs=1).choices
    report = compress(tmp_path / "m.pt", tmp_path / "small.pt", truncation=target, jobs=1)

    assert repr(target) == "Truncation(save=8000)"
    assert report.target is not None
    assert (report.target.kind, report.target.requested, report.unmet) == ("save", 8000, ())
    saved = report.totals.dense_parameters - report.totals.parameters
    assert 8000 <= saved == report.target.achieved == choice.target.achieved
    assert saved < 8000 + 2 * (96 + 80)  # one more bond in each matrix would not fit
    assert inspect(tmp_path / "small.pt") == report
    assert requested(report.target) == "parameters to save 8,000"
    assert achieved(report.target) == f"{saved:,}"
    assert save.parse("8000") == 8000


def test_the_range_of_a_new_target_is_checked(save: type[TruncationTarget]) -> None:
    with pytest.raises(TargetError, match=r"^save: got 0; it must be an integer of 1 or more\. Pass such a value\.$"):
        truncation(save=0)
    with pytest.raises(TargetError, match=r"2 targets \(keep, save\).*Pass one of: .*max_params, save\."):
        truncation(keep=0.5, save=3)
    with pytest.raises(ValueError, match="an integer of 1 or more"):
        save.parse("1/2")


def test_a_target_is_gone_with_its_class() -> None:
    with pytest.raises(TypeError, match=r"Truncation\(\) got an unexpected keyword argument 'save'"):
        truncation(save=3)
