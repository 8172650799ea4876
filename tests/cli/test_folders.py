"""The commands on folders of models."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mpocompress.cli.main import main
from tests.checkpoint.folders import make_folder, split, tree, weights

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line beside a folder `model` of three shards; returns its exit code, stdout and stderr."""
    make_folder(tmp_path / "model", split(weights(), 3))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mpocompress", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def test_a_folder_goes_through_every_command(run: Run, tmp_path: Path) -> None:
    assert run("plan", "model")[0] == 0
    code, shown, err = run("model", "--bond", "4", "-o", "small")
    assert (code, err) == (0, "")
    assert "Wrote small." in shown
    assert run("inspect", "small") == (0, shown[: shown.index("\nWrote")], "")
    code, out, err = run("expand", "small", "-o", "dense")
    assert (code, err) == (0, "Note: copied unchanged: config.json\n")
    assert out == "Wrote dense: 39,521 parameters, 3 weights rebuilt.\n"
    assert set(tree(tmp_path / "dense")) == set(tree(tmp_path / "model"))


def test_an_index_and_the_current_folder_are_inputs_too(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("model/model.safetensors.index.json", "--bond", "4", "-o", "a")[0] == 0
    monkeypatch.chdir(tmp_path / "model")
    code, out, _ = run(".", "--bond", "4", "-o", "../b", "--json")
    assert code == 0
    assert json.loads(out)["source"]["file"] == "model"
    assert set(tree(tmp_path / "a")) == set(tree(tmp_path / "b"))


def test_force_replaces_what_was_written_here_only(run: Run, tmp_path: Path) -> None:
    run("model", "--bond", "4", "-o", "small")
    code, _, err = run("model", "--bond", "2", "-o", "small")
    assert (code, err[-40:]) == (1, "to be overwritten. --force replaces it.\n")
    assert run("model", "--bond", "2", "-o", "small", "--force")[0] == 0
    before = tree(tmp_path)
    code, _, err = run("expand", "small", "-o", "model", "--force")
    assert code == 1
    assert (
        "a folder that was not written by mpocompress; replacing the folder would delete files that it did not write"
        in err
    )
    assert tree(tmp_path) == before
