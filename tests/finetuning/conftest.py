"""Layers choose between ways to run without a clock, and torch runs on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _on_one_thread() -> Iterator[None]:
    """Threads of torch that wait for each other on a shared machine take ten times as long for such small products."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs does not depend on a measurement, so that results can be compared to the last bit."""
    monkeypatch.setenv("MPOCOMPRESS_EXECUTION", "modelled")
