"""Names, shapes and dtypes of a file are shown without loading torch, whatever the form of the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import mpocompress
from mpocompress import Truncation
from tests.checkpoint.folders import make_folder, split, weights
from tests.forms.every import FORMS
from tests.forms.registry import Form
from tests.programs import run_python

pytestmark = pytest.mark.slow

CHILD = """
import contextlib, io, json, sys
from mpocompress.cli.main import main

results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["mpocompress", *arguments]
    code = 0
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            main()
        except SystemExit as exit:
            code = exit.code
    results.append((code, output.getvalue(), sorted({"torch", "tensorly", "scipy"} & set(sys.modules))))
print(json.dumps(results))
"""


def run_child(commands: Sequence[Sequence[str]]) -> list[tuple[int, str, list[str]]]:
    """Exit code, output and loaded libraries of commands that are run one after the other in one process."""
    outcome = run_python(["-c", CHILD, json.dumps(commands)])
    assert (outcome.code, outcome.err) == (0, "")
    results: list[tuple[int, str, list[str]]] = [tuple(result) for result in json.loads(outcome.out)]
    return results


def first_of_each_container() -> list[Form]:
    forms: dict[str, Form] = {}
    for form in FORMS:
        if form.container and form.key is None:
            forms.setdefault(form.container, form)
    return list(forms.values())


def test_an_ordinary_checkpoint_is_shown_without_the_heavy_libraries(tmp_path: Path) -> None:
    forms = first_of_each_container()
    assert len(forms) == 6
    paths = []
    for form in forms:
        (tmp_path / form.container).mkdir()
        paths.append(form.made(tmp_path / form.container))
    paths += [
        make_folder(tmp_path / f"{ending}{shards}", split(weights(), shards), ending=ending)
        for ending in ("safetensors", "bin")
        for shards in (1, 3)
    ]
    commands = [command for path in paths for command in (["inspect", str(path)], ["plan", "--dry-run", str(path)])]

    results = run_child(commands)

    for command, (code, output, loaded) in zip(commands, results, strict=True):
        assert (code, loaded) == (0, []), command
        assert "parameters" in output, command


@pytest.mark.parametrize("target", ["small.pt", "small.safetensors", "small"])
def test_a_report_is_shown_without_the_heavy_libraries(target: str, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "model", split(weights(), 2))
    mpocompress.compress(source, tmp_path / target, truncation=Truncation(max_bond=4))

    ((code, output, loaded),) = run_child([["inspect", str(tmp_path / target)]])

    assert (code, loaded) == (0, [])
    assert "lstm.weight" in output


def test_tensorly_is_loaded_only_by_a_decomposition() -> None:
    modules = ("compression.compress", "compression.plan", "modules.compress", "modules.load", "nn")
    script = f"import sys, mpocompress.{', mpocompress.'.join(modules)}; sys.exit('tensorly' in sys.modules)"
    outcome = run_python(["-c", script])
    assert (outcome.code, outcome.err) == (0, "")
