"""A resumed run gives the result of a run without a stop, bit for bit; and runs that are not resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mpocompress.errors import CheckpointError, FinetuneError, FormatError, MPOCompressError
from mpocompress.finetuning.progress import FinetuneProgress
from tests.finetuning.runs import (
    CrashError,
    Odd,
    Texts,
    at,
    batches,
    crash,
    interrupt,
    pair,
    plain,
    random_rows,
    random_texts,
    same,
    texts,
    tuned,
    values,
)


class Masked(nn.Module):
    """Has minus infinity in a buffer, like attention masks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 10)
        self.register_buffer("mask", torch.tensor([0.0] * 8 + [-torch.inf] * 2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x) + self.mask
        return y


def dropping() -> nn.Module:
    return Texts(dropout=0.3)


@dataclass(frozen=True, kw_only=True)
class Case:
    make: Callable[[], nn.Module]
    data: Callable[[], object]
    options: dict[str, Any]


STEPS = 42
"""A run of this length has evaluations between its steps."""
CASES = {
    "list": Case(make=plain, data=batches, options={}),
    "odd": Case(make=Odd, data=lambda: random_rows, options={"lr": 0.01}),
    "two": Case(make=Odd, data=batches, options={"batches_per_step": 2, "kind": "regression"}),
    "carried": Case(make=dropping, data=texts, options={"carry_state": True, "kind": "classification"}),
    "drawn": Case(make=dropping, data=lambda: random_texts, options={"train": "cores", "kind": "classification"}),
    "once": Case(make=plain, data=lambda: iter(batches(60)), options={}),
    "masked": Case(make=Masked, data=batches, options={"kind": "classification", "lr": 0.002}),
}
WHOLE: dict[str, Any] = {}


def run(name: str, **more: Any) -> tuple[dict[str, Tensor], Any]:
    case = CASES[name]
    student, teacher = pair(case.make)
    result = tuned(student, case.data(), teacher=teacher, steps=STEPS, **case.options, **more)
    return values(student), result.report


def whole(name: str) -> tuple[dict[str, Tensor], Any]:
    if name not in WHOLE:
        WHOLE[name] = run(name)
    found: tuple[dict[str, Tensor], Any] = WHOLE[name]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stop"), [("odd", 1), ("odd", 8), *((name, 27) for name in CASES), ("carried", 40), ("list", 40)]
)
def test_an_interrupted_run_ends_like_one_without_a_stop(name: str, stop: int, tmp_path: Path) -> None:
    path = tmp_path / "small.run"
    torch.manual_seed(stop)
    _, stopped = run(name, snapshot=path, progress=at(stop, interrupt))
    torch.manual_seed(stop + 1)
    found, report = run(name, snapshot=path, resume=True)

    assert (stopped.stop_reason, stopped.steps) == ("interrupted", stop + 1)
    assert whole(name)[1].stop_reason == "finished"
    assert report == whole(name)[1]
    assert same(found, whole(name)[0])
    assert not path.exists()


def test_a_run_interrupted_at_its_end_ends_there(tmp_path: Path) -> None:
    path = tmp_path / "small.run"

    def once(**more: Any) -> Any:
        student, teacher = pair()
        return tuned(student, batches(), teacher=teacher, steps=3 * STEPS, lr=50.0, **more).report

    expected = once()
    stopped = once(snapshot=path, progress=at(expected.steps - 1, interrupt))

    assert (expected.stop_reason, stopped.steps) == ("early stopping", expected.steps)
    assert not path.exists() or once(snapshot=path, resume=True) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stop"), [("odd", 1), ("carried", 27), ("odd", 42)])
def test_a_run_that_crashed_resumes_from_its_last_evaluation(name: str, stop: int, tmp_path: Path) -> None:
    path = tmp_path / "small.run"
    with pytest.raises(CrashError):
        run(name, snapshot=path, progress=at(stop, crash))
    found, report = run(name, snapshot=path, resume=True)

    assert report == whole(name)[1]
    assert same(found, whole(name)[0])


def test_a_run_can_be_interrupted_several_times(tmp_path: Path) -> None:
    path = tmp_path / "small.run"
    run("odd", snapshot=path, progress=at(3, interrupt))
    for stop in (5, 7, 20):
        run("odd", snapshot=path, resume=True, progress=at(stop, interrupt))
    found, report = run("odd", snapshot=path, resume=True)

    assert report == whole("odd")[1]
    assert same(found, whole("odd")[0])


def stopped(folder: Path, name: str = "odd") -> Path:
    path = folder / "small.run"
    run(name, snapshot=path, progress=at(3, interrupt))
    return path


def test_resuming_needs_a_snapshot(tmp_path: Path) -> None:
    with pytest.raises(
        FinetuneError, match=r"resume: no snapshot; it stores the run to resume. Give the snapshot file"
    ):
        run("list", resume=True)
    with pytest.raises(CheckpointError, match=r"small.run: no such file; there is no run to resume"):
        run("list", snapshot=tmp_path / "small.run", resume=True)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"lr": 0.1}, "lr"),
        ({"batches_per_step": 3}, "batches_per_step"),
        ({"steps": 9}, "steps"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(change: dict[str, Any], name: str, tmp_path: Path) -> None:
    path = stopped(tmp_path)
    content = path.read_bytes()
    student, teacher = pair(Odd)
    before = values(student)

    with pytest.raises(
        FinetuneError, match=rf"small.run: a run with another {name} \({name}: .* in the snapshot, .* now\)"
    ):
        tuned(
            student,
            random_rows,
            teacher=teacher,
            **{"steps": STEPS, "lr": 0.01, "snapshot": path, "resume": True, **change},
        )
    assert same(values(student), before)
    assert path.read_bytes() == content


def test_a_run_of_another_model_is_not_resumed(tmp_path: Path) -> None:
    path = stopped(tmp_path)
    student = nn.Sequential(pair(Odd)[0])
    with pytest.raises(
        FormatError, match=r"small.run: .*, which is missing on one side, or has another shape or dtype"
    ):
        tuned(student, random_rows, teacher=pair(Odd)[1], steps=STEPS, lr=0.01, snapshot=path, resume=True)


def changed(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    with safe_open(path, framework="pt") as held:
        found, metadata = {name: held.get_tensor(name) for name in held.keys()}, held.metadata()  # noqa: SIM118
    change(found)
    save_file(found, path, metadata=metadata)


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "a weight of another shape": lambda held: held.update({"model.last.bias": torch.zeros(3)}),
    "a best one of another shape": lambda held: held.update({"best.last.bias": torch.zeros(3)}),
    "no weight": lambda held: held.pop("model.last.bias"),
    "another dtype": lambda held: held.update({"model.last.bias": held["model.last.bias"].double()}),
    "not a number": lambda held: held.update({"model.last.bias": held["model.last.bias"] * torch.nan}),
    "infinite": lambda held: held.update({"best.last.bias": held["best.last.bias"] / 0.0}),
}
OF_THE_OPTIMIZER: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "no moment": lambda held: held.pop("optimizer.0.exp_avg"),
    "no moments": lambda held: [held.pop(name) for name in [*held] if name.startswith("optimizer.")],
    "a moment of another shape": lambda held: held.update({"optimizer.0.exp_avg": torch.zeros(1, 2, 3)}),
    "moments of more": lambda held: held.update({"optimizer.99.exp_avg": torch.zeros(3)}),
    "no number": lambda held: held.update({"optimizer.first.exp_avg": torch.zeros(3)}),
}


def refused(folder: Path, change: Callable[[dict[str, Tensor]], object], name: str = "odd") -> None:
    path = stopped(folder, name)
    changed(path, change)
    with pytest.raises(MPOCompressError, match=r"small.run"):
        run(name, snapshot=path, resume=True)


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_with_damaged_weights_is_not_resumed(name: str, tmp_path: Path) -> None:
    refused(tmp_path, CHANGES[name])


@pytest.mark.parametrize("name", OF_THE_OPTIMIZER)
def test_a_run_with_damaged_moments_is_not_resumed(name: str, tmp_path: Path) -> None:
    refused(tmp_path, OF_THE_OPTIMIZER[name])


def test_a_run_with_damaged_states_is_not_resumed(tmp_path: Path) -> None:
    refused(tmp_path, lambda held: held.update({"state.0.0.lstm": torch.zeros(7, 3, 2)}), "carried")


@pytest.mark.parametrize("name", ["a weight of another shape", "infinite", "no moment", "moments of more"])
def test_a_run_that_does_not_fit_changes_nothing(name: str, tmp_path: Path) -> None:
    path = stopped(tmp_path)
    changed(path, {**CHANGES, **OF_THE_OPTIMIZER}[name])
    student, teacher = pair(Odd)
    before = values(student)

    with pytest.raises(FormatError):
        tuned(student, random_rows, teacher=teacher, steps=STEPS, lr=0.01, snapshot=path, resume=True)
    assert same(values(student), before)


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test: a step takes 1 s before the stop and 3 s after it."""
    seconds, progress = [0.0], list[FinetuneProgress]()
    monkeypatch.setattr("mpocompress.finetuning.trainer.time.monotonic", lambda: seconds[0])

    def step_of(duration_s: float, stop: int) -> Callable[[FinetuneProgress], None]:
        def report(now: FinetuneProgress) -> None:
            progress.append(now)
            seconds[0] += duration_s
            if now.step == stop:
                interrupt()

        return report

    path = tmp_path / "small.run"
    run("list", snapshot=path, progress=step_of(1.0, 20))
    run("list", snapshot=path, resume=True, progress=step_of(3.0, 0))

    assert progress[10].remaining_s == pytest.approx(10 / 11 * (STEPS - 11))
    (at_30,) = (each for each in progress if each.step == 30)
    assert at_30.remaining_s == pytest.approx(3.0 * 8 / 9 * (STEPS - 30))
