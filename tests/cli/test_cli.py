"""The commands: exit codes, what goes to which stream, and messages that name flags."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mpocompress
from mpocompress.checkpoint.checkpoint import Checkpoint
from mpocompress.cli.main import main
from mpocompress.reports.benchmark import BenchReport
from tests.programs import CLOSED_PIPE, CommandServer, run_python

FULL_DEVICE = "/dev/full"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with checkpoints, which is also the current one."""
    torch.manual_seed(0)
    state = {
        **{f"lstm.{name}": value for name, value in torch.nn.LSTM(64, 64).state_dict().items()},
        "fc.weight": torch.randn(96, 64),
        "fc.bias": torch.zeros(96),
    }
    torch.save({"model": state, "epoch": 3}, tmp_path / "model.pt")
    torch.save({**state, "bad.weight": torch.full((64, 64), math.nan)}, tmp_path / "nan.pt")
    torch.save({"fc.weight": torch.randn(8, 8)}, tmp_path / "tiny.pt")
    (tmp_path / "broken.pt").write_bytes((tmp_path / "model.pt").read_bytes()[:5000])
    (tmp_path / "text.pt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line as the program would; returns its exit code, stdout and stderr."""

    def call(*words: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mpocompress", *words])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


@pytest.mark.parametrize("words", [["compress", "model.pt"], ["model.pt"]])
def test_the_default_command_is_compress(run: Run, words: list[str]) -> None:
    code, out, err = run(*words, "--bond", "4", "-o", "small.pt")

    assert (code, err) == (0, "")
    assert "lstm.weight_ih_l0" in out
    assert "Wrote small.pt." in out


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_a_report_fits_the_terminal_and_its_numbers_add_up(run: Run, columns: int) -> None:
    """A terminal of fewer than 80 columns wraps lines of 80; no number is cut off."""
    code, out, _ = run("model.pt", "--keep", "0.25", "-o", "small.pt", "--force", columns=columns)
    document = json.loads(run("inspect", "small.pt", "--json")[1])

    assert code == 0
    assert max(map(len, out.splitlines())) <= max(80, columns)
    rows = [line for line in out.splitlines() if re.match(r"(lstm|fc)\..* \d+x\d+ ", line)]
    assert len(rows) == len(document["matrices"])
    counted = sum(int(numbers[-1 if columns < 110 else 1].replace(",", "")) for numbers in map(big_numbers, rows))
    assert counted == document["totals"]["eligible_parameters_after"]


def big_numbers(line: str) -> list[str]:
    """The numbers of a row that stand alone and have a thousands separator."""
    return re.findall(r"(?<![\w.,x])\d{1,3}(?:,\d{3})+(?![\w.])", line)


def test_inspect_shows_what_compress_showed(run: Run) -> None:
    shown = run("model.pt", "--bond", "4", "-o", "small.pt")[1]

    assert run("inspect", "small.pt") == (0, shown[: shown.index("\nWrote")], "")


def test_expand_says_what_it_wrote_and_what_it_left_out(run: Run) -> None:
    run("model.pt", "--bond", "4", "-o", "small.pt")

    code, out, err = run("expand", "small.pt", "-o", "dense.safetensors")

    assert code == 0
    assert out == "Wrote dense.safetensors: 39,520 parameters, 3 weights rebuilt.\n"
    assert err == "Note: not stored, because a safetensors file cannot hold them: epoch\n"


def test_plan_and_dry_run_write_nothing(run: Run, folder: Path) -> None:
    before = sorted(folder.iterdir())

    code, out, err = run("plan", "model.pt")
    assert (code, err) == (0, "")
    assert len(re.findall(r"^(bond|keep) ", out, re.MULTILINE)) == 11
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = run("model.pt", "--keep", "1/8", "--dry-run")
    assert code == 0
    assert re.search(r"^keep 1/8 ", out, re.MULTILINE)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("columns", [80, 140])
def test_inspect_shows_what_is_in_an_ordinary_checkpoint(run: Run, columns: int) -> None:
    code, out, err = run("inspect", "model.pt", columns=columns)

    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= columns
    assert "model.pt: a torch file, " in out
    assert ", state dict at model" in out
    assert re.search(r"^eligible  38,912 of 39,520 parameters \(98.5%\) in 3 weights", out, re.MULTILINE)
    assert re.search(r"^kinds     3 by name and shape", out, re.MULTILINE)
    assert re.search(r"^fc.weight +Linear +96x64 +6,144 +name and shape", out, re.MULTILINE)
    rows = [line for line in out.splitlines() if re.match(r"(lstm|fc)\..* \d+x\d+ ", line)]
    assert sum(int(numbers[0].replace(",", "")) for numbers in map(big_numbers, rows)) == 38_912
    assert "lstm.bias_ih_l0 and 2 more: 1-D: a bias, a norm or a statistic" in out


def test_a_plan_can_be_counted_without_reading_a_weight(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(Checkpoint, "tensor", refuse)
    code, out, err = run("plan", "model.pt", "--dry-run")

    assert (code, err) == (0, "")
    assert len(re.findall(r"^(bond|keep) ", out, re.MULTILINE)) == 11
    assert max(map(len, out.splitlines())) <= 80
    assert "No weight was read. Parameters are counted for this site shape: low rank" in out
    assert re.search(r"^keep 1/4 +9,728 ", out, re.MULTILINE)
    assert "site shape: 3 sites" in run("plan", "model.pt", "--dry-run", "--sites", "3")[1]


def test_a_model_of_the_user_is_run_when_asked_and_that_is_said(run: Run) -> None:
    Path("own_model.py").write_text(
        "from torch import nn\n\n\n"
        "def build():\n"
        "    return nn.ModuleDict({'lstm': nn.LSTM(64, 64), 'fc': nn.Linear(64, 96)})\n"
    )
    code, out, _ = run("model.pt", "--bond", "4", "--model", "own_model.py:build", "-o", "small.pt")

    assert code == 0
    assert re.search(r"^kinds +[23] by class in the given model", out, re.MULTILINE)
    assert "Note: own_model.py:build was imported and run." in out
    for words in (["plan", "model.pt"], ["inspect", "model.pt"], ["plan", "model.pt", "--dry-run"]):
        out = run(*words, "--model", "own_model.py:build")[1]
        assert "by class in the given model" in out
        assert "own_model.py:build was imported and run." in out


def test_a_dry_run_counts_the_dtype_of_the_cores(run: Run) -> None:
    torch.save({"fc.weight": torch.randn(64, 64).half()}, "half.pt")

    code, out, _ = run("half.pt", "--bond", "20", "--dtype", "float32", "--dry-run")

    assert code == run("half.pt", "--bond", "20", "--dtype", "float32", "-o", "x.pt")[0] == 3
    assert "sizes are those of cores in float32" in out
    assert re.search(r"^bond 20 +4,096 +1.00x", out, re.MULTILINE)


def test_a_target_that_cannot_be_met_is_exit_1_in_a_dry_run_and_in_earnest(run: Run) -> None:
    code, out, _ = run("model.pt", "--max-params", "300", "--dry-run")
    assert code == 1
    assert "max parameters 300 is not possible: a budget of 300 parameters" in out
    code, _, err = run("model.pt", "--max-params", "300", "-o", "small.pt")
    assert code == 1
    assert "the smallest bonds already need" in err


def test_json_is_one_document_on_stdout_and_nothing_else(run: Run) -> None:
    for words in (
        ["plan", "model.pt"],
        ["plan", "model.pt", "--dry-run"],
        ["model.pt", "--bond", "4", "-o", "small.pt"],
        ["inspect", "small.pt"],
        ["inspect", "model.pt"],
    ):
        code, out, err = run(*words, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["version"] == 1


def test_a_broken_weight_is_left_alone_and_said(run: Run) -> None:
    code, out, _ = run("nan.pt", "--bond", "4", "-o", "small.pt")

    assert code == 3
    assert "Not met: Not compressed because of NaN or Inf: bad.weight (1 in all)." in out
    assert "1 x holds NaN or Inf" in out


def test_a_dry_run_leaves_with_the_code_of_the_real_run(run: Run) -> None:
    for words in (["nan.pt", "--bond", "4"], ["model.pt", "--bond", "1000"], ["model.pt", "--keep", "1"]):
        planned = run(*words, "--dry-run")[0]
        assert planned == run(*words, "-o", "x.pt", "--force")[0]


def test_a_mistyped_command_is_not_taken_for_a_file(run: Run) -> None:
    code, out, err = run("plann", "model.pt")

    assert (code, out) == (2, "")
    assert "No command and no file 'plann'. Did you mean 'plan'?" in err


def test_names_from_a_file_cannot_speak_to_the_terminal(run: Run) -> None:
    name = "x\x1b]0;title\x07.weight"
    torch.save({name: torch.randn(64, 64)}, "evil.pt")

    for words in (
        ["evil.pt", "--bond", "4", "-o", "small.pt"],
        ["plan", "evil.pt"],
        ["inspect", "small.pt"],
        ["inspect", "evil.pt"],
    ):
        code, out, err = run(*words)
        assert code == 0
        assert "\x1b" not in out + err
        assert "\\x1b]0;title" in out
    assert "\x1b" not in run("evil.pt", "--bond", "4", "--include", "x\x1b*z", "-o", "y.pt")[2]


def test_no_target_is_a_usage_error_that_names_the_targets_and_plan(run: Run) -> None:
    code, out, err = run("model.pt", "-o", "small.pt")

    assert (code, out) == (2, "")
    for word in ("--bond N", "--energy E", "--max-error E", "--keep F", "--max-params N", "mpocompress plan model.pt"):
        assert word in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["model.pt", "--bond", "4", "--keep", ".5", "-o", "x.pt"],
            "Give exactly one target, not --bond and --keep.",
        ),
        (["model.pt", "--bond", "4", "--bond", "5", "-o", "x.pt"], "--bond is given 2 times for all layers"),
        (["model.pt", "--bond", "0", "-o", "x.pt"], "'0' is not a bond"),
        (["model.pt", "--bond", "=4", "-o", "x.pt"], "'=4' is not a bond"),
        (["model.pt", "--keep", "1/0", "-o", "x.pt"], "'1/0' is not a number above 0 and at most 1"),
        (["model.pt", "--keep", "nan", "-o", "x.pt"], "'nan' is not a number"),
        (["model.pt", "--energy", "1.5", "-o", "x.pt"], "'1.5' is not a number above 0"),
        (["model.pt", "--max-error", "1", "-o", "x.pt"], "'1' is not a number from 0 to below 1."),
        (["model.pt", "--sites", "6", "--bond", "4", "-o", "x.pt"], "'6' is not auto, lowrank or a number from 2 to 5"),
        (["model.pt", "--as", "gru=*", "--bond", "4", "-o", "x.pt"], "'gru=*' is not KIND=GLOB with a KIND of lstm"),
        (["model.pt", "--bond", "4"], "No output. Give -o FILE, or --dry-run."),
        (["model.pt", "--bogus"], "No such option"),
        (["expand", "small.pt"], "Missing option '-o'"),
        (["bench", "small.pt", "--batch", "1,0"], "'1,0' is not a list of integers of 1 or more, such as 1,32."),
        (["bench", "small.pt", "--length", "9999999999"], "'9999999999' is not a list of integers"),
        (["bench", "small.pt", "--threads", "0"], "0 is not in the range x>=1"),
        (["bench", "small.pt", "--device", "tpu"], "'tpu' is not one of 'cpu', 'cuda'"),
        (["bench", "small.pt", "--input", "net.py:batch"], "--input needs --model: give both."),
        (["bench", "small.pt", "--model", "net.py:a", "--layer", "b"], "--model measures the whole model, --layer"),
    ],
)
def test_a_wrong_command_line_is_exit_2_and_says_what_is_wrong(run: Run, words: list[str], message: str) -> None:
    code, out, err = run(*words)

    assert (code, out) == (2, "")
    assert message in err
    assert not Path("x.pt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.pt", "--bond", "4", "-o", "x.pt"], "Error: none.pt: no such file"),
        (["broken.pt", "--bond", "4", "-o", "x.pt"], "Error: broken.pt: "),
        (["text.pt", "--bond", "4", "-o", "x.pt"], "Error: text.pt: a file of unknown form"),
        (["tiny.pt", "--bond", "4", "-o", "x.pt"], "none of them a weight that can be compressed; 1 x a side of 8"),
        (["model.pt", "--bond", "4", "-o", "model.pt", "--force"], "writing would destroy it"),
        (["model.pt", "--bond", "4", "-o", "text.pt"], "--force replaces it."),
        (["model.pt", "--bond", "4", "-o", "no/x.pt"], "no folder"),
        (["model.pt", "--bond", "zz*=4", "-o", "x.pt"], "matches no layer that can be compressed"),
        (["model.pt", "--bond", "4", "--include", "zz*", "-o", "x.pt"], "Patterns are the values of --include"),
        (["inspect", "none.pt"], "none.pt: no such file"),
        (["inspect", "model.pt", "--include", "zz*"], "Patterns are the values of --include"),
        (["inspect", "model.pt", "--model", "none.py:build"], "Give the model with --model."),
        (["plan", "model.pt", "--dry-run", "--model", "none.py"], "no name after a colon"),
        (["expand", "model.pt", "-o", "x.pt"], "the checkpoint is not compressed"),
        (["bench", "none.pt"], "none.pt: no such file"),
        (["bench", "broken.pt"], "Error: broken.pt: "),
        (["bench", "small.safetensors", "--layer", "zz"], "and --layer."),
        (["bench", "small.safetensors", "--model", "os:zz"], "Give the model with --model."),
        (
            ["bench", "small.safetensors", "--model", "torch.nn:ReLU", "--input", "os:zz"],
            "returns inputs with --input net.py:batch.",
        ),
        (["bench", "model.pt"], "model.pt: the checkpoint is not compressed; it has no compression report"),
    ],
)
def test_what_is_refused_is_exit_1_in_words_and_leaves_nothing(run: Run, words: list[str], message: str) -> None:
    mpocompress.compress("model.pt", "small.safetensors", truncation=mpocompress.Truncation(max_bond=4))
    code, out, err = run(*words)

    assert (code, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert not Path("x.pt").exists()


QUICK = ("--repeats", "1", "--batch", "1", "--length", "2")
BUNDLED = Path(__file__).resolve().parents[2] / "examples" / "fashion" / "fashion.pt"


@pytest.mark.slow
def test_a_benchmark_fits_the_terminal_and_has_a_row_for_every_contender(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["bench", "small.pt", "--repeats", "1", "--batch", "1,2", "--length", "2,1"]
    measure, reports = mpocompress.bench, list[BenchReport]()

    def measure_once(source: str, **options: Any) -> BenchReport:
        if not reports:
            reports.append(measure(source, **options))
        return reports[0]

    monkeypatch.setattr(mpocompress, "bench", measure_once)
    run(str(BUNDLED), "--bond", "16", "-o", "small.pt")

    for columns in (40, 80, 140):
        code, out, err = run(*words, columns=columns)

        assert (code, err) == (0, "")
        assert max(map(len, out.splitlines())) <= max(80, columns)
        assert out.startswith("small.pt on ")
        assert re.search(r"^lstm: LSTM, 13.9x fewer parameters$", out, re.MULTILINE)
        assert re.search(r"^  weight_joint_l0 1024x284, low rank, bond 16$", out, re.MULTILINE)
        assert re.findall(r"^batch (\d, length \d)", out, re.MULTILINE) == [
            f"{batch}, length {length}" for batch in (1, 2) for length in (2, 1)
        ]
        for row in ("dense, ", "dynamic int8 ", "auto ", "factorised ", "materialised "):
            assert len(re.findall(rf"^{row}.* \d+\.\d+x +[\d.]+ [kM]B +\d\.\de-?\+?\d+", out, re.MULTILINE)) == 4
        assert re.search(
            r"^Verdict: auto is [\d.e-]+( to [\d.e-]+)? times as fast as the fastest dense", out, re.MULTILINE
        )


@pytest.mark.slow
def test_a_benchmark_says_what_could_not_run_and_what_runs_alike(run: Run) -> None:
    state = {f"rnn.{name}": value for name, value in torch.nn.LSTM(64, 96, proj_size=64).state_dict().items()}
    torch.save(state | {f"fc.{n}.weight": torch.randn(64, 64) for n in range(3)}, "odd.pt")
    run("odd.pt", "--bond", "4", "--sites", "lowrank", "-o", "small.pt")

    code, out, _ = run("bench", "small.pt", *QUICK)

    assert code == 0
    assert "  dynamic int8: not available, torch does not quantise an LSTM with a projection" in out
    assert re.search(r"^fc.0: Linear, .* \(the same for fc.1, fc.2\)$", out, re.MULTILINE)
    assert re.search(r"^batch 1 +median", out, re.MULTILINE)
    assert "rnn" not in run("bench", "small.pt", "--layer", "fc*", *QUICK)[1]


@pytest.mark.slow
def test_a_benchmark_as_json_is_one_document(run: Run) -> None:
    run("model.pt", "--bond", "4", "-o", "small.pt")
    code, out, err = run("bench", "small.pt", "--json", "--threads", "2", "--layer", "fc", *QUICK)

    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["format"], document["version"], document["machine"]["threads"]) == ("mpocompress-bench", 1, 2)
    assert [one["layers"] for one in document["results"]] == [["fc"]]


def test_bonds_for_single_layers(run: Run) -> None:
    code, out, _ = run("model.pt", "--bond", "8", "--bond", "fc=3", "-o", "small.pt", "--json")
    document = json.loads(out)

    assert code == 0
    assert {matrix["name"]: matrix["bonds"] for matrix in document["matrices"]} == {
        "lstm.weight_joint_l0": [8],
        "fc.weight": [3],
    }
    assert document["target"]["bond_by_layer"] == {"fc": 3}


@pytest.mark.slow
def test_the_module_runs_as_a_program(folder: Path) -> None:
    outcome = run_python(["-m", "mpocompress", "plan", "model.pt"], folder=folder)

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("38,912 of 39,520 parameters (98.5%) in 2 matrices can be compressed.")


needs_full_device = pytest.mark.skipif(not Path(FULL_DEVICE).exists(), reason=f"no {FULL_DEVICE}")


@pytest.mark.parametrize("stdout", [CLOSED_PIPE, pytest.param(FULL_DEVICE, marks=needs_full_device)])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["nan.pt", "--bond", "4", "-o", "out.pt"], 3),
        (["expand", "small.pt", "-o", "out.safetensors"], 0),
        (["plan", "model.pt", "--dry-run", "--json"], None),
        (["inspect", "small.pt"], None),
    ],
)
def test_a_report_that_cannot_be_printed_does_not_undo_the_work(
    folder: Path, run: Run, commands: CommandServer, command: list[str], code: int | None, stdout: str
) -> None:
    run("model.pt", "--bond", "4", "-o", "small.pt")

    outcome = commands.run(*command, folder=folder, stdout=stdout, full_exit=True)

    full = stdout == FULL_DEVICE
    if code is None:
        error = "Error: the result cannot be printed (No space left on device); nothing was written.\n" if full else ""
        assert (outcome.code, outcome.err) == (1 if full else 0, error)
        return
    output = command[command.index("-o") + 1]
    note = "Note: not stored, because a safetensors file cannot hold them: epoch\n" if command[0] == "expand" else ""
    error = f"{output} was written, but its report cannot be printed (No space left on device).\n" if full else ""
    assert (outcome.code, outcome.err) == (code, note + error)
    assert Path(output).stat().st_size > 1000


def test_messages_that_cannot_be_printed_do_not_undo_the_work_either(
    folder: Path, run: Run, commands: CommandServer
) -> None:
    run("model.pt", "--bond", "4", "-o", "small.pt")
    words = ["expand", "small.pt", "-o", "out.safetensors"]

    outcome = commands.run(*words, folder=folder, stdout=CLOSED_PIPE, stderr=CLOSED_PIPE, full_exit=True)

    assert outcome.code == 0
    assert Path("out.safetensors").exists()


def test_a_note_cannot_speak_to_the_terminal(run: Run) -> None:
    name = "x\x1b[31m\nError: none"
    torch.save({"model": {"fc.weight": torch.randn(64, 64)}, name: 3}, "evil.pt")
    run("evil.pt", "--bond", "4", "-o", "small.pt")

    note = "Note: not stored, because a safetensors file cannot hold them: x\\x1b[31m\\nError: none\n"
    assert run("expand", "small.pt", "-o", "dense.safetensors")[2] == note
    document = json.loads(run("evil.pt", "--bond", "4", "-o", "small.safetensors", "--json")[1])
    assert document["notes"] == [note.removeprefix("Note: ").strip()]


INTERRUPTED = """
import os, signal
from mpocompress.checkpoint.writing import writer
from mpocompress.compression import compress, expand

def stop(*arguments, **named):
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()

if {step!r} == "writing":
    writer._write_torch = stop
else:
    compress.compress_matrices = expand.dense_tensors = stop
"""


@pytest.mark.parametrize("step", ["working", "writing"])
@pytest.mark.parametrize("command", [["model.pt", "--bond", "4"], ["expand", "small.pt"]])
def test_ctrl_c_leaves_one_line_and_no_file(
    folder: Path, run: Run, commands: CommandServer, step: str, command: list[str]
) -> None:
    run("model.pt", "--bond", "4", "-o", "small.pt")
    before = sorted(path.name for path in folder.iterdir())

    outcome = commands.run(*command, "-o", "out.pt", folder=folder, before=INTERRUPTED.format(step=step))

    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines()[-1:] == ["Stopped; nothing was written."]
    assert "Traceback" not in outcome.err
    assert sorted(path.name for path in folder.iterdir()) == before
