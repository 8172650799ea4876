"""The profiles of Hypothesis, chosen with `HYPOTHESIS_PROFILE`, and fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.programs import CommandServer, command_server

settings.register_profile(
    "default",
    derandomize=True,  # the same examples on every run
    deadline=None,  # the machine is shared, and no test times anything
    max_examples=15,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=50)
settings.register_profile(
    "search", settings.get_profile("default"), derandomize=False, max_examples=1000, print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def commands() -> Iterator[CommandServer]:
    """Return what runs `mpocompress` commands in processes of their own, without importing torch again for each."""
    with command_server() as server:
        yield server
