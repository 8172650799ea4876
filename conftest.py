"""Settings of all tests, and the examples of the documentation and of the docstrings, collected as tests.

Every page and every module has a folder of its own to work in, which holds the bundled checkpoint as `model.pt`.
"""

from __future__ import annotations

import doctest
import gc
import os
import signal

import pytest
from sybil import Sybil
from sybil.integration.pytest import SybilItem
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.sybil import SybilCollection

from tools.console_blocks import enter_workspace, evaluate, leave_workspace

# One thread in every process, child processes included: threads that wait for each other on busy cores take many times
# as long for matrices as small as those of the tests. Read by the libraries when they are loaded.
os.environ["OMP_NUM_THREADS"] = "1"

# Some tests send SIGINT, which is ignored by default in the background of a script.
signal.signal(signal.SIGINT, signal.default_int_handler)

DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

pages = Sybil(
    name="page",
    parsers=[
        CodeBlockParser("console", evaluate),
        PythonCodeBlockParser(doctest_optionflags=DOCTEST_FLAGS),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=enter_workspace,
    teardown=leave_workspace,
)
docstrings = Sybil(
    name="docstring",
    parsers=[DocTestParser(DOCTEST_FLAGS)],
    path="mpocompress",
    patterns=["*.py"],  # at any depth
    setup=enter_workspace,
    teardown=leave_workspace,
)

pytest_collect_file = SybilCollection([pages, docstrings]).pytest()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow: the pages of the documentation, and tests that run command lines in processes of their own."""
    for item in items:
        on_a_page = isinstance(item, SybilItem) and item.path.suffix == ".md"
        if on_a_page or "commands" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Exclude what is loaded by now from garbage collection, which is most objects and takes most of its time."""
    gc.collect()
    gc.freeze()
