"""`finetune`: the file it writes, the teacher it finds, and runs that are stopped and resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import mpocompress
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import (
    CheckpointError,
    FinetuneError,
    FormatError,
    ModelError,
    MPOCompressError,
    OutputError,
    OutputExistsError,
)
from mpocompress.finetuning.progress import FinetuneProgress
from mpocompress.reports.finetuning import Evaluation
from tests.inspecting import report_in


class Net(nn.Module):
    """An LSTM, a layer used twice, batch norm and dropout."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 64, batch_first=True)
        self.inner = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        if tied:
            self.again.weight = self.inner.weight
        self.norm = nn.BatchNorm1d(64)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(64, 10)

    def forward(self, steps: Tensor) -> Tensor:
        found = self.lstm(steps)[0][:, -1]
        found = self.again(self.drop(torch.tanh(self.inner(found))))
        return self.head(self.norm(found))  # type: ignore[no-any-return]


def batches(count: int = 16, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 7, 24, generator=generator) for _ in range(count)]


def drawn() -> Iterator[Tensor]:
    """Yield other batches in every pass."""
    for _ in range(6):
        yield torch.randn(8, 7, 24)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for each in net.lstm.parameters():
            each.mul_(2.0)
        for batch in 4 * batches():
            net(batch)  # for the statistics of the batch norm
    torch.save({"model": net.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    mpocompress.compress(tmp_path / "model.pt", tmp_path / "small.pt", truncation=mpocompress.Truncation(keep=0.25))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tuned(target: str = "tuned.pt", source: str = "small.pt", **asked: Any) -> mpocompress.Report:
    given = {"model": Net, "data": batches(), "steps": 12, "kind": "regression", "precision": "float32", **asked}
    return mpocompress.finetune(source, target, **given)


def tensors(path: str | Path) -> dict[str, Tensor]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.tensor(info.alias_of or name).clone() for name, info in checkpoint.tensors.items()}


def loss(one: Evaluation) -> float:
    assert one.loss is not None
    return one.loss


def distance(path: str) -> float:
    """Distance of the outputs of a file from those of the original, on other inputs."""
    inputs = torch.randn(64, 7, 24, generator=torch.Generator().manual_seed(9))
    original = Net()
    original.load_state_dict(torch.load("model.pt")["model"])
    with torch.no_grad():
        expected, found = original.eval()(inputs), mpocompress.load(path, Net()).eval()(inputs)
    return float((found - expected).square().mean() / expected.square().mean())


@pytest.mark.slow
def test_the_outputs_approach_those_of_the_original(folder: Path) -> None:
    report = tuned(data=batches(40, 32), steps=160)

    assert distance("tuned.pt") < 0.8 * distance("small.pt")
    (made,) = report.finetuning
    assert loss(made.after) < 0.8 * loss(made.before)
    assert (made.teacher, made.data, made.steps, made.held_out_samples) == ("model.pt", "a list", 160, 128)
    assert report_in("tuned.pt").to_json() == report.to_json()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16", "int8"])
def test_the_file_is_the_compressed_one_with_new_values(folder: Path, dtype: str | None) -> None:
    truncation = mpocompress.Truncation(keep=0.25)
    mpocompress.compress("model.pt", "small.pt", truncation=truncation, dtype=dtype, overwrite=True)

    report = tuned(steps=40)

    with open_checkpoint("small.pt") as before, open_checkpoint("tuned.pt") as after:
        assert list(before.tensors.items()) == list(after.tensors.items())
        assert before.extras == after.extras
        assert after.size_bytes - before.size_bytes < 10_000  # the report of the training
    old, new = tensors("small.pt"), tensors("tuned.pt")
    changed = {name for name, value in old.items() if not torch.equal(value, new[name])}
    assert {name for name in old if "core" in name} <= changed
    assert "norm.running_mean" in changed
    small = report_in("small.pt")
    assert report.aliases == small.aliases == {"again.weight": "inner.weight"}
    assert (report.matrices, report.totals.parameters) == (small.matrices, small.totals.parameters)
    assert (report.finetuning[0].as_stored is None) == (dtype is None)
    assert distance("tuned.pt") < distance("small.pt")


def test_figures_include_the_rounding(folder: Path) -> None:
    truncation = mpocompress.Truncation(keep=0.25)
    mpocompress.compress("model.pt", "small.pt", truncation=truncation, dtype="int8", overwrite=True)
    held_out = batches(2)

    report = tuned(held_out=held_out)

    original = Net().eval()
    original.load_state_dict(torch.load("model.pt")["model"])
    stored = mpocompress.load("tuned.pt", Net()).eval()
    with torch.no_grad():
        pairs = [(original(each), stored(each)) for each in held_out]
        scale = original(batches()[0]).square().mean()
    losses = [float((found - expected).square().mean() / scale) for expected, found in pairs]
    assert report.finetuning[0].after.loss == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_a_folder_becomes_a_folder(folder: Path) -> None:
    (folder / "hub").mkdir()
    state = {name: value.clone() for name, value in torch.load("model.pt")["model"].items() if name != "again.weight"}
    save_file({**state, "again.weight": state["inner.weight"].clone()}, folder / "hub" / "model.safetensors")
    (folder / "hub" / "config.json").write_text("{}")
    mpocompress.compress("hub", "small-hub", truncation=mpocompress.Truncation(keep=0.25))

    tuned("tuned-hub", "small-hub", model=lambda: Net(tied=False))

    assert (folder / "tuned-hub" / "config.json").exists()
    assert report_in("tuned-hub").finetuning[0].teacher == "hub"
    assert tensors("tuned-hub").keys() == tensors("small-hub").keys()


def test_a_trained_file_is_trained_again_and_keeps_both_reports(folder: Path) -> None:
    tuned()

    report = tuned("again.safetensors", "tuned.pt", seed=1)

    assert [each.seed for each in report.finetuning] == [0, 1]
    assert report.finetuning[1].before.loss == pytest.approx(report.finetuning[0].after.loss, rel=1e-4)


def test_a_model_that_does_not_tie_is_refused(folder: Path) -> None:
    with pytest.raises(FinetuneError, match="not tied to each other"):
        tuned(model=lambda: Net(tied=False))

    assert not list(folder.glob("tuned*"))


def test_only_cores_are_trained_on_request(folder: Path) -> None:
    tuned(train="cores")

    old, new = tensors("small.pt"), tensors("tuned.pt")
    assert torch.equal(old["head.weight"], new["head.weight"])
    assert not torch.equal(old["lstm.weight_hh_l0.core.0"], new["lstm.weight_hh_l0.core.0"])


def test_the_teacher_is_searched_or_given(folder: Path) -> None:
    (folder / "model.pt").rename(folder / "moved.pt")

    with pytest.raises(FinetuneError, match=r"no model\.pt in its folder.*Give the original checkpoint as the teacher"):
        tuned()
    with pytest.raises(CheckpointError, match="no such file"):
        tuned(teacher="nowhere.pt")
    report = tuned(teacher="moved.pt")
    assert report.finetuning[0].teacher == "moved.pt"
    assert not report.finetuning[0].notes


def test_another_teacher_is_noted(folder: Path) -> None:
    torch.save(Net().state_dict(), "other.pt")

    report = tuned(teacher="other.pt")
    from_small = tuned("from-small.pt", teacher="small.pt")

    assert any("bytes differ" in note for note in report.finetuning[0].notes)
    assert any("compressed file itself" in note for note in from_small.finetuning[0].notes)


def test_a_file_is_trained_on_targets_alone(folder: Path) -> None:
    (folder / "model.pt").unlink()
    pairs = [(each, each.mean(dim=(1, 2))[:, None].expand(-1, 10)) for each in batches()]

    report = tuned(data=pairs, teacher=False, steps=40)

    assert report.finetuning[0].teacher == ""
    assert loss(report.finetuning[0].after) < 0.8 * loss(report.finetuning[0].before)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"source": "model.pt"}, FormatError, r"not compressed.*Compress it first"),
        ({"source": "nowhere.pt"}, CheckpointError, "no such file"),
        ({"target": "small.pt"}, OutputError, "small.pt"),
        ({"target": "there.pt"}, OutputExistsError, "there.pt"),
        ({"target": "no/such/folder/tuned.pt"}, OutputError, "folder"),
        ({"model": lambda: nn.Linear(24, 10)}, ModelError, "lstm"),
        ({"device": "nowhere"}, FinetuneError, "device is not available"),
        ({"steps": 0}, FinetuneError, "steps"),
        ({"resume": True}, CheckpointError, "no run to resume"),
        ({"data": []}, FinetuneError, "no batch"),
    ],
)
def test_refused_calls_leave_no_files(
    folder: Path, asked: dict[str, Any], error: type[MPOCompressError], said: str
) -> None:
    (folder / "there.pt").write_bytes(b"something")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    with pytest.raises(error, match=said):
        tuned(**asked)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_values_that_the_file_cannot_hold_are_refused(folder: Path) -> None:
    torch.save(nn.Linear(64, 64).state_dict(), "plain.pt")
    truncation = mpocompress.Truncation(keep=0.25)
    mpocompress.compress("plain.pt", "small.pt", truncation=truncation, dtype="float16", overwrite=True)
    calls = iter(range(100))

    with pytest.raises(FinetuneError, match="float16 cannot hold"):
        tuned(
            model=lambda: nn.Linear(64, 64),
            data=[torch.randn(8, 64) for _ in range(4)],
            evaluate=lambda _: next(calls),
            lr=1e5,
            steps=1,
        )

    assert not (folder / "tuned.pt").exists()


def stop_at(step: int, how: Callable[[], object]) -> Callable[[FinetuneProgress], None]:
    def watch(found: FinetuneProgress) -> None:
        if found.step == step:
            how()

    return watch


def crash() -> None:
    raise RuntimeError("power lost")


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5, 9])
@pytest.mark.parametrize("data", [batches(5, 8), drawn], ids=["a list", "drawn"])
def test_a_run_resumed_after_ctrl_c_gives_the_same_result(folder: Path, step: int, data: object) -> None:
    tuned("whole.pt", data=data)

    report = tuned(data=data, progress=stop_at(step, lambda: signal.raise_signal(signal.SIGINT)))
    assert (report.finetuning[0].stop_reason, report.finetuning[0].steps) == ("interrupted", step + 1)
    assert report_in("tuned.pt").finetuning[0].is_interrupted
    assert (folder / "tuned.pt.unfinished").exists()
    resumed = tuned(data=data, resume=True)

    assert not (folder / "tuned.pt.unfinished").exists()
    whole = report_in("whole.pt")
    assert resumed.finetuning == whole.finetuning
    found, expected = tensors("tuned.pt"), tensors("whole.pt")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 7, 12])
def test_a_run_resumed_after_a_crash_gives_the_same_result(folder: Path, step: int) -> None:
    tuned("whole.pt")

    with pytest.raises(RuntimeError, match="power lost"):
        tuned(progress=stop_at(step, crash))
    assert not (folder / "tuned.pt").exists()
    tuned(resume=True)

    found, expected = tensors("tuned.pt"), tensors("whole.pt")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not (folder / "tuned.pt.unfinished").exists()


def test_a_stopped_run_is_not_overwritten_by_accident(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="power lost"):
        tuned(progress=stop_at(5, crash))

    with pytest.raises(OutputExistsError, match=r"a run that was stopped.*Resume it"):
        tuned()
    with pytest.raises(FinetuneError, match="another seed"):
        tuned(seed=5, resume=True)
    assert (folder / "tuned.pt.unfinished").exists()
    assert tuned(overwrite=True).finetuning[0].is_finished


def test_resuming_never_replaces_another_output(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="power lost"):
        tuned(progress=stop_at(5, crash))
    (folder / "tuned.pt").write_bytes((folder / "model.pt").read_bytes())

    with pytest.raises(OutputExistsError):
        tuned(resume=True)


def test_a_resumed_run_needs_the_same_files(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="power lost"):
        tuned(progress=stop_at(5, crash))
    mpocompress.compress("model.pt", "small.pt", truncation=mpocompress.Truncation(keep=0.2), overwrite=True)

    with pytest.raises(FinetuneError, match="another compressed"):
        tuned(resume=True)


def test_a_loss_of_nan_keeps_the_last_good_weights(folder: Path) -> None:
    spoilt = batches(12)
    spoilt[9][0, 0, 0] = torch.nan

    report = tuned(data=spoilt, steps=30)

    assert report.finetuning[0].is_broken
    assert "NaN at step" in report.finetuning[0].stop_reason
    assert "Training failed" in " ".join(report.verdict())
    assert all(value.isfinite().all() for value in tensors("tuned.pt").values() if value.is_floating_point())
    assert distance("tuned.pt") < distance("small.pt")
