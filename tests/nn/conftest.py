"""Layers choose between ways to run without a clock, after all of them gave the same result."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mpocompress.nn import execution, gates, inference_loop, linear, step_products
from tests.nn.builders import assert_close, tensors, wide


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ignore a warning that torch gives once in a process: it has no fast kernel for projections."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"))


class NothingRemembered(dict[Hashable, Any]):
    """A table of measured choices without effect: every choice is made again."""

    def __contains__(self, key: object) -> bool:
        return False


def compare_and_pick(candidates: Mapping[str, execution.Candidate]) -> str:
    """Run all candidates on the same input and check that their results agree; return one that the sizes decide."""
    results = [list(tensors(candidate.run())) for candidate in candidates.values() if candidate.run is not None]
    for result in results[1:]:
        assert_close(result, wide(results[0]), result[0].dtype, roundings=2, equal_nan=True)
    number = zlib.crc32(repr([candidate.modelled_s for candidate in candidates.values()]).encode())
    return list(candidates)[number % len(candidates)]


@pytest.fixture(autouse=True)
def _chosen_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the candidates of a layer where the fastest would be measured, at every choice."""
    monkeypatch.delenv("MPOCOMPRESS_EXECUTION", raising=False)
    monkeypatch.setattr(execution, "_fastest", compare_and_pick)
    monkeypatch.setattr(execution, "_measured", NothingRemembered())
    monkeypatch.setattr(execution, "HOPELESS", float("inf"))


@pytest.fixture(params=["small states", "large states"])
def sized(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run states of any size as those of this size, which have other kernels and other lengths of a stretch."""
    if request.param == "large states":
        monkeypatch.setattr(gates, "NUMPY_ENTRIES", -1)
        monkeypatch.setattr(step_products, "STACKED_ENTRIES", 0)
        monkeypatch.setattr(step_products, "SCALED_ENTRIES", 0)
        monkeypatch.setattr(inference_loop, "STRETCH_ENTRIES", 100)
        monkeypatch.setattr(linear, "CHUNK_ENTRIES", 100)
    return str(request.param)
