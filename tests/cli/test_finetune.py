"""`mpocompress finetune`: exit codes, what goes to which stream, and being stopped."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import mpocompress
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.cli.main import main
from tests.inspecting import report_in

Run = Callable[..., tuple[int, str, str]]

NET = """
import signal

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(24, 64, batch_first=True)
        self.head = nn.Linear(64, 64)

    def forward(self, steps):
        return self.head(self.lstm(steps)[0][:, -1])


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40, 64)
        self.lstm = nn.LSTM(64, 64, batch_first=True)
        self.head = nn.Linear(64, 40)

    def forward(self, tokens):
        return self.head(self.lstm(self.embedding(tokens))[0])


def train():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 5, 24, generator=generator) for _ in range(16)]


def pairs():
    return [(one, torch.zeros(8, 64)) for one in train()]


passes = []


def stopped():
    passes.append(1)
    for place, one in enumerate(train()):
        if place == 2 and len(passes) == 2:
            signal.raise_signal(signal.SIGINT)
        yield one


def broken():
    yield from train()[:9]
    raise ValueError("the disk is gone")


def spoilt():
    found = train()
    found[9][0] = torch.nan
    return found


def worse(model):
    worse.calls = getattr(worse, "calls", 0) - 1
    return worse.calls


def loss(output, target):
    return (output - target).abs().mean()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(NET)
    state = {
        **{f"lstm.{name}": 2.0 * value for name, value in nn.LSTM(24, 64).state_dict().items()},
        **{f"head.{name}": value for name, value in nn.Linear(64, 64).state_dict().items()},
    }
    torch.save({"model": state, "epoch": 3}, tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    mpocompress.compress("model.pt", "small.pt", truncation=mpocompress.Truncation(keep=0.25))
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command as the program would; returns its exit code, stdout and stderr."""

    def call(*words: str, data: str = "train") -> tuple[int, str, str]:
        given = ("--model", "net.py:Net", "--data", f"net.py:{data}", "--precision", "float32")
        monkeypatch.setattr(sys, "argv", ["mpocompress", "finetune", *words, *given])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


def tensors(path: str) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.tensor(name).clone() for name in checkpoint.tensors}


def test_a_run_is_told_while_it_lasts_and_at_its_end(run: Run) -> None:
    code, out, err = run("small.pt", "-o", "tuned.pt", "--steps", "20")

    assert code == 0
    assert re.search(r"^teacher +model\.pt", out, flags=re.MULTILINE)
    assert "Verdict: Fine-tuning: loss" in out
    assert "Wrote tuned.pt." in out
    assert max(map(len, out.splitlines())) <= 80
    assert all(
        re.match(r"step \d+/20: loss [\d.e-]+, held out [\d.e-]+, \d+:\d\d left$", line) for line in err.splitlines()
    )
    assert err.splitlines()[-1].startswith("step 20/20")


def test_inspect_shows_both_reports(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("small.pt", "-o", "tuned.pt", "--steps", "4")
    monkeypatch.setattr(sys, "argv", ["mpocompress", "inspect", "tuned.pt"])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out

    assert "lstm.weight_hh_l0" in out
    assert "Fine-tuning\n" in out
    assert "net.py:train" in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_json_document_follows_its_schema(run: Run) -> None:
    code, out, _ = run("small.pt", "-o", "tuned.pt", "--steps", "4", "--json", data="pairs")

    document = json.loads(out)
    schema = json.loads(files("mpocompress").joinpath("reports", "schema", "report-1.json").read_text())
    jsonschema.validate(document, schema)
    (finetuning,) = document["finetuning"]
    assert code == 0
    assert set(finetuning) == set(schema["$defs"]["FinetuningReport"]["properties"])
    assert set(finetuning["evaluations"][0]) == set(schema["$defs"]["Evaluation"]["properties"])
    assert "0.5 x" in finetuning["loss"]


def test_ctrl_c_writes_the_best_and_resume_ends_like_a_run_without_it(run: Run) -> None:
    run("small.pt", "-o", "whole.pt", "--steps", "20")

    code, out, err = run("small.pt", "-o", "tuned.pt", "--steps", "20", data="stopped")
    assert code == 130
    assert "interrupted" in out
    assert "To continue, give the same command with --resume." in out
    assert "Traceback" not in err
    net = Path("net.py")
    net.write_text(net.read_text().replace("signal.raise_signal(signal.SIGINT)", "pass"))
    code, out, _ = run("small.pt", "-o", "tuned.pt", "--steps", "20", "--resume", data="stopped")

    assert code == 0
    assert not Path("tuned.pt.unfinished").exists()
    found, expected = tensors("tuned.pt"), tensors("whole.pt")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("words", "data", "said"),
    [
        (("--eval", "net.py:worse"), "train", "did not improve the model"),
        ((), "spoilt", r"Training failed: the loss was NaN at step \d"),
    ],
)
def test_what_was_not_reached_leaves_with_code_3(run: Run, words: tuple[str, ...], data: str, said: str) -> None:
    code, out, _ = run("small.pt", "-o", "tuned.pt", "--steps", "20", *words, data=data)

    assert code == 3
    assert re.search(said, " ".join(out.split()))
    assert all(value.isfinite().all() for value in tensors("tuned.pt").values() if value.is_floating_point())


@pytest.mark.parametrize(
    ("words", "data", "code", "said"),
    [
        (("small.pt",), "train", 2, "No output. Give -o FILE."),
        (("small.pt", "-o", "t.pt", "--self-generate", "8"), "train", 2, "Give either --data"),
        (("small.pt", "-o", "t.pt", "--teacher", "model.pt", "--no-teacher"), "train", 2, "contradict"),
        (("small.pt", "-o", "t.pt", "--resume", "--force"), "train", 2, "one of them"),
        (("small.pt", "-o", "t.pt", "--steps", "0"), "train", 2, "--steps"),
        (("small.pt", "-o", "t.pt", "--train", "biases"), "train", 2, "--train"),
        (("text.pt", "-o", "t.pt"), "train", 1, "text.pt"),
        (("model.pt", "-o", "t.pt"), "train", 1, "Compress it first"),
        (("small.pt", "-o", "small.pt"), "train", 1, "small.pt"),
        (("small.pt", "-o", "model.pt"), "train", 1, "--force replaces it"),
        (("small.pt", "-o", "t.pt"), "nothing", 1, "no 'nothing' in net.py"),
        (("small.pt", "-o", "t.pt", "--steps", "99"), "broken", 1, "the disk is gone"),
        (("small.pt", "-o", "t.pt", "--no-teacher"), "train", 1, "neither a teacher nor targets"),
        (("small.pt", "-o", "t.pt", "--loss", "net.py:loss"), "train", 1, "without a target"),
        (("small.pt", "-o", "t.pt", "--device", "cuda:77"), "train", 1, "the device is not available"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(
    run: Run, words: tuple[str, ...], data: str, code: int, said: str
) -> None:
    found, out, err = run(*words, data=data)

    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert not Path("t.pt").exists()


def test_a_language_model_writes_its_own_texts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(40, 64)
            self.lstm = nn.LSTM(64, 64, batch_first=True)
            self.head = nn.Linear(64, 40)

    torch.save(Reader().state_dict(), "reader.pt")
    mpocompress.compress("reader.pt", "small-reader.pt", truncation=mpocompress.Truncation(keep=0.5))
    words = ["small-reader.pt", "--model", "net.py:Reader", "--self-generate", "9x4", "--steps", "4", "-o", "t.pt"]
    monkeypatch.setattr(sys, "argv", ["mpocompress", "finetune", *words])

    with pytest.raises(SystemExit) as left:
        main()

    (tuning,) = report_in("t.pt").finetuning
    assert left.value.code == 0
    assert tuning.data == "4 x 32 texts of 9 tokens, generated by the teacher"
    assert tuning.kind == "classification"
