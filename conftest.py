"""The examples of the documentation and of the docstrings, collected as tests.

Every page and every module has a folder of its own to work in, which holds the bundled checkpoint as `model.pt`.
"""

from __future__ import annotations

import doctest

from sybil import Sybil
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.sybil import SybilCollection

from tools.console_blocks import enter_workspace, evaluate, leave_workspace

DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

pages = Sybil(
    name="page",
    parsers=[
        CodeBlockParser("console", evaluate),
        PythonCodeBlockParser(doctest_optionflags=DOCTEST_FLAGS),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=enter_workspace,
    teardown=leave_workspace,
)
docstrings = Sybil(
    name="docstring",
    parsers=[DocTestParser(DOCTEST_FLAGS)],
    patterns=["mpocompress/*.py", "mpocompress/**/*.py"],
    setup=enter_workspace,
    teardown=leave_workspace,
)

pytest_collect_file = SybilCollection([pages, docstrings]).pytest()
