"""Outputs that must not be written, or cannot be: nothing is destroyed, and nothing half written is left."""

from __future__ import annotations

import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from mpocompress import Truncation, compress, expand
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.cli.main import main
from mpocompress.errors import CheckpointError, OutputError
from tests.hostile.conftest import Run
from tests.hostile.files import saved, weights

FOUR = Truncation(max_bond=4)

Usage = namedtuple("Usage", ["total", "used", "free"])


def hard_link(source: Path, target: Path) -> None:
    target.hardlink_to(source)


def symbolic_link(source: Path, target: Path) -> None:
    target.symlink_to(source)


def through_a_folder(source: Path, target: Path) -> None:
    """The name of the input, by way of a folder that is a link to its own."""
    (source.parent / "loop").symlink_to(source.parent)
    target.symlink_to(source.parent / "loop" / source.name)


def itself(source: Path, target: Path) -> None:
    source.rename(target)
    source.symlink_to(target)


@pytest.mark.parametrize("link", [hard_link, symbolic_link, through_a_folder, itself])
@pytest.mark.parametrize("command", ["compress", "expand"])
def test_the_input_is_never_the_output(link: Callable[[Path, Path], None], command: str, work: Path, run: Run) -> None:
    source = saved(work, weights())
    if command == "expand":
        compress(source, work / "small.pt", truncation=FOUR, jobs=1)
        source = work / "small.pt"
    link(source, work / "out.pt")
    before = source.read_bytes()
    words = ["--bond", "4"] if command == "compress" else []

    outcome = run(command, source.name, *words, "-o", "out.pt", "--force")

    assert outcome.code == 1
    assert "the output is a file being read, by the same name or by a link" in outcome.err
    assert source.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_takes_no_files_is_said_before_any_work(work: Path, run: Run) -> None:
    saved(work, weights())
    (work / "closed").mkdir(mode=0o500)

    outcome = run("compress", "model.pt", "--bond", "4", "-o", "closed/out.pt")

    assert outcome.code == 1
    assert "is not writable" in outcome.err


def test_a_device_is_no_output(work: Path, run: Run) -> None:
    saved(work, weights())
    os.mkfifo(work / "out.pt")

    outcome = run("compress", "model.pt", "--bond", "4", "-o", "out.pt", "--force")

    assert outcome.code == 1
    assert "a device, pipe or socket" in outcome.err


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path, weights())
    compress(source, tmp_path / "small.pt", truncation=FOUR, jobs=1)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 1))

    with pytest.raises(OutputError, match=r"are needed and 1 bytes are free; the disk would be full\. Free some space"):
        compress(source, tmp_path / "out.pt", truncation=FOUR, jobs=1)
    with pytest.raises(OutputError, match=r"bytes needed for the dense weights, .* 1 bytes free\. Free some"):
        expand(tmp_path / "small.pt", tmp_path / "out.pt")
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_that_fills_up_while_writing_leaves_nothing(work: Path, run: Run) -> None:
    """The process may write files of 1,000 bytes at most, which fails as a full disk does."""
    saved(work, weights())
    before = sorted(work.iterdir())

    for name in ("out.pt", "out.safetensors"):
        outcome = run("compress", "model.pt", "--bond", "4", "-o", name, "--jobs", "1", largest_file_bytes=1000)

        assert outcome.code == 1
        assert "(File too large)" in outcome.err
        assert "nothing was written" in outcome.err
        assert sorted(work.iterdir()) == before


MOMENTS: dict[str, tuple[object, str]] = {
    "reading a tensor": (Checkpoint, "tensor"),
    "flushing the file": (os, "fsync"),
    "renaming it": (Path, "replace"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])
@pytest.mark.parametrize("there", [True, False], ids=["replacing", "new"])
def test_ctrl_c_leaves_what_was_there(
    moment: str,
    name: str,
    there: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The signal itself, in the middle of the work."""
    source = saved(tmp_path, weights())
    if there:
        (tmp_path / name).write_bytes(b"before")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(*MOMENTS[moment], lambda *_, **__: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(
        "sys.argv", ["mpocompress", str(source), "--bond", "4", "-o", str(tmp_path / name), "--force", "--jobs", "1"]
    )

    with pytest.raises(SystemExit) as left:
        main()

    assert left.value.code == 130
    assert capsys.readouterr().err.strip() == "Stopped; nothing was written."
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_damaged_tensor_leaves_no_output(tmp_path: Path) -> None:
    source = saved(tmp_path, weights())
    tensor: Tensor = weights()["fc.weight"]
    data = bytearray(source.read_bytes())
    place = data.find(tensor.numpy().tobytes())
    data[place + 8] ^= 1
    source.write_bytes(data)

    with pytest.raises(CheckpointError, match="does not match its checksum"):
        compress(source, tmp_path / "out.pt", truncation=FOUR, jobs=1)
    assert not (tmp_path / "out.pt").exists()
