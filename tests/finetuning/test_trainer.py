"""The training loop: weights against a hand-written loop, early ends, and the state afterwards."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mpocompress.errors import FinetuneError, OutputError
from mpocompress.finetuning.progress import FinetuneProgress
from tests.calibration.trial_models import Calls, numbers
from tests.finetuning.runs import (
    CrashError,
    Odd,
    Texts,
    apart,
    at,
    batches,
    crash,
    interrupt,
    pair,
    pairs,
    plain,
    same,
    texts,
    tuned,
    values,
)
from tests.programs import run_threads

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
"""The loops add in float32 in different orders, and AdamW divides by small numbers."""


def by_hand(model: nn.Module, losses: Sequence[Callable[[], Tensor]], *, steps: int, lr: float | None) -> None:
    """AdamW as in its paper, with the documented schedule; a step uses the mean of several losses."""
    parameters = [one for one in model.parameters() if one.requires_grad]
    start = float(torch.stack([one().detach() for one in losses]).mean())
    share = min(0.03, max(0.0005, 0.02 * math.sqrt(start)))
    rates = [lr or share * max(0.01, float(one.detach().square().mean().sqrt())) for one in parameters]
    first, second = ([torch.zeros_like(one) for one in parameters] for _ in range(2))
    each, warm_up = len(losses) // steps, max(1, min(100, round(0.2 * steps)))
    for step in range(steps):
        share = min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        loss = torch.stack([one() for one in losses[step * each : (step + 1) * each]]).mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float(one.square().sum()) for one in gradients))
        with torch.no_grad():
            for place, (one, rate) in enumerate(zip(parameters, rates, strict=True)):
                gradient = gradients[place] / max(1.0, norm)
                first[place] = 0.9 * first[place] + 0.1 * gradient
                second[place] = 0.98 * second[place] + 0.02 * gradient**2
                mean, square = first[place] / (1 - 0.9 ** (step + 1)), second[place] / (1 - 0.98 ** (step + 1))
                one.mul_(1 - rate * share * 0.01).sub_(rate * share * mean / (square.sqrt() + 1e-8))


def close(one: nn.Module, other: nn.Module) -> None:
    theirs = values(other)
    for name, value in values(one).items():
        torch.testing.assert_close(value, theirs[name], **CLOSE)


@pytest.mark.parametrize("lr", [0.01, None])
@pytest.mark.parametrize("each", [1, 2])
def test_weights_are_those_of_a_hand_written_loop(each: int, lr: float | None) -> None:
    (found, teacher), (expected, _) = pair(), pair()
    data, scale = batches(5), float(teacher(batches(5)[0]).detach().square().mean())

    def loss(x: Tensor) -> Callable[[], Tensor]:
        return lambda: functional.mse_loss(expected(x), teacher(x).detach()) / scale

    report = tuned(
        found, data, teacher=teacher, held_out=data, steps=10, lr=lr, batches_per_step=each, kind="regression"
    ).report
    by_hand(expected, [loss(data[place % 5]) for place in range(10 * each)], steps=10, lr=lr)

    assert (report.best_step, report.steps, report.samples) == (10, 10, 10 * each * 6)
    assert (report.relative_learning_rate is None) == (lr is not None)
    close(found, expected)
    assert apart(values(found), values(pair()[0])) == set(values(found)), "every tensor was trained"


def test_weights_trained_with_targets_and_a_teacher_are_those_of_a_hand_written_loop() -> None:
    (found, teacher), (expected, _) = pair(), pair()
    data = pairs(4)

    def loss(x: Tensor, y: Tensor) -> Callable[[], Tensor]:
        def one() -> Tensor:
            angle = functional.cosine_similarity(expected(x), teacher(x).detach()).mean()
            found: Tensor = 0.75 * (1 - angle) + 0.25 * (expected(x) - y).abs().mean()
            return found

        return one

    report = tuned(
        found,
        data,
        teacher=teacher,
        held_out=data,
        lr=0.01,
        kind="embedding",
        teacher_share=0.75,
        loss=lambda output, target: (output - target).abs().mean(),
    ).report
    by_hand(expected, [loss(*data[place % 4]) for place in range(6)], steps=6, lr=0.01)

    assert report.best_step == 6
    assert report.loss == "0.75 x (1 - cosine to the outputs of the teacher) + 0.25 x (the given loss on targets)"
    close(found, expected)


def test_states_are_carried_as_in_a_hand_written_loop() -> None:
    """In a pass, for the model and the teacher; every pass starts without states."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        found, wanted = Texts(), Texts()
    wanted.load_state_dict(found.state_dict())
    _, teacher = pair(Texts)
    data, states = texts(3), dict[nn.Module, Any]()

    def run(model: Any, ids: Tensor) -> Tensor:
        output, state = model.lstm(model.embed(ids), states.get(model))
        states[model] = tuple(each.detach() for each in state)
        scores: Tensor = model.head(output)
        return scores.reshape(-1, 11).log_softmax(1)

    def loss(place: int) -> Callable[[], Tensor]:
        def each() -> Tensor:
            if place % 3 == 0:
                states.clear()
            ids = data[place % 3]
            expected = run(teacher, ids).detach()
            return functional.kl_div(run(wanted, ids), expected, reduction="batchmean", log_target=True)

        return each

    options: dict[str, Any] = {"teacher": teacher, "held_out": data, "lr": 0.01, "kind": "classification", "steps": 8}
    report = tuned(found, data, carry_state=True, **options).report
    by_hand(wanted, [loss(place) for place in range(8)], steps=8, lr=0.01)

    assert report.best_step == 8
    close(found, wanted)
    other = Texts()
    other.load_state_dict(pair(Texts)[1].state_dict())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in (*found.modules(), *teacher.modules()))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    runs: list[tuple[dict[str, Tensor], Any]] = []
    for seed in (3, 3, 4):
        student, teacher = pair(Odd)
        torch.manual_seed(seed * 100 + len(runs))  # what the caller drew before must not matter
        result = tuned(student, lambda: (torch.randn(6, 12) for _ in range(9)), teacher=teacher, seed=seed)
        runs.append((values(student), result.report))

    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


def test_random_generators_of_the_caller_do_not_change() -> None:
    student, teacher = pair(Odd)
    state = torch.get_rng_state()

    tuned(student, lambda: (torch.randn(6, 12) for _ in range(9)), teacher=teacher)

    assert torch.equal(torch.get_rng_state(), state)


def poisoned(place: int, value: float = math.nan) -> list[tuple[Tensor, Tensor]]:
    data = pairs(6)
    data[place][1][0, 0] = value
    return data


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite")])
@pytest.mark.parametrize("make", [plain, Odd])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_best_weights(
    make: Callable[[], nn.Module], value: float, word: str, tmp_path: Path
) -> None:
    student, clean = pair(make)[0], pair(make)[0]
    held_out, snapshot = pairs(3), tmp_path / "small.run"

    report = tuned(student, poisoned(3, value), held_out=held_out, kind="regression", snapshot=snapshot).report
    expected: list[dict[str, Tensor]] = []
    tuned(clean, pairs(6), held_out=held_out, kind="regression", progress=lambda now: expected.append(values(clean)))

    assert report.stop_reason == f"the loss was {word} at step 4"
    assert (report.steps, report.is_finished) == (3, False)
    kept = expected[report.best_step - 1] if report.best_step else values(pair(make)[0])
    assert same(values(student), kept)
    assert not snapshot.exists()


@pytest.mark.parametrize("which", ["first", "held out", "weights"])
def test_values_that_are_not_finite_at_the_start_are_refused_and_change_nothing(which: str) -> None:
    student, _ = pair()
    if which == "weights":
        with torch.no_grad():
            student[0].bias[0] = math.nan
    before = values(student)
    data = poisoned(0) if which == "first" else pairs(6)
    held_out = poisoned(1) if which == "held out" else pairs(2)

    with pytest.raises(FinetuneError, match="NaN"):
        tuned(student, data, held_out=held_out, kind="regression")
    assert all(each.grad is None for each in student.parameters())
    assert all(torch.equal(each, before[name]) or each.isnan().any() for name, each in values(student).items())


def test_a_run_that_makes_the_weights_worse_keeps_the_first_ones() -> None:
    student, teacher = pair()
    before = values(student)

    result = tuned(student, batches(), teacher=teacher, lr=1e4, steps=100)

    assert result.report.best_step == 0
    assert result.stopped == "early stopping" or "NaN" in result.stopped or "inf" in result.stopped.lower()
    assert result.report.steps < 100
    assert same(values(student), before)
    assert result.after == result.before


def test_the_best_weights_are_kept_with_their_buffers() -> None:
    """The best weights are those before the evaluation with the best score."""
    student, teacher = pair(Odd)
    scores = iter([0.0, 1.0, 5.0, 2.0, *[3.0] * 20])
    seen: list[dict[str, Tensor]] = []

    def score(model: nn.Module) -> float:
        seen.append(values(model))
        return next(scores)

    result = tuned(student, batches(), teacher=teacher, evaluate=score)

    assert (result.report.best_step, result.after.score) == (2, 5.0)
    assert same(values(student), seen[2])
    assert result.report.selection_metric.startswith("the score of ")
    assert {"norm.running_mean", "norm.num_batches_tracked"} <= apart(seen[2], seen[4])


def test_ctrl_c_ends_with_the_best_weights_and_keeps_the_snapshot(tmp_path: Path) -> None:
    student, teacher = pair()
    snapshot = tmp_path / "small.run"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    result = tuned(
        student, batches(), teacher=teacher, steps=80, snapshot=snapshot, progress=at(11, interrupt), kind="regression"
    )

    assert (result.stopped, result.steps, result.report.requested_steps) == ("interrupted", 12, 80)
    assert snapshot.exists()
    assert [each.step for each in result.history] == [0, 4, 8, 12]
    whole, again = pair()[0], list[dict[str, Tensor]]()
    tuned(
        whole,
        batches(),
        teacher=teacher,
        steps=80,
        kind="regression",
        progress=lambda now: again.append(values(whole)),
    )
    assert same(values(student), again[result.report.best_step - 1])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_sigterm_acts_like_ctrl_c() -> None:
    student, teacher = pair()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        result = tuned(student, batches(), teacher=teacher, progress=at(2, lambda: signal.raise_signal(signal.SIGTERM)))
    finally:
        signal.signal(signal.SIGTERM, before)

    assert (result.stopped, result.steps) == ("interrupted", 3)


def test_two_signals_at_once_are_one_request() -> None:
    student, teacher = pair()

    def twice() -> None:
        interrupt()
        interrupt()

    assert tuned(student, batches(), teacher=teacher, progress=at(2, twice)).stopped == "interrupted"


def test_a_run_outside_the_main_thread_needs_no_signals() -> None:
    student, teacher = pair()
    results: list[Any] = []
    run_threads([lambda: results.append(tuned(student, batches(), teacher=teacher))])

    expected, _ = pair()
    tuned(expected, batches(), teacher=teacher)
    assert results[0].stopped == "finished"
    assert same(values(student), values(expected))


def test_data_that_end_early_end_the_run() -> None:
    student, teacher = pair()

    result = tuned(student, iter(batches(9)), teacher=teacher, steps=50)

    assert (result.steps, result.stopped, result.report.requested_steps) == (8, "end of data", 50)
    assert result.history[-1].step == 8
    assert "The data can be passed over only once, and ended before the last step." in result.report.notes


def test_a_single_batch_is_trained_and_evaluated_on() -> None:
    student, teacher = pair()

    result = tuned(student, iter(batches(1)), teacher=teacher)

    assert (result.steps, result.stopped, result.report.held_out_samples) == (1, "end of data", 0)
    assert "There was only one batch, so the loss was measured on the data that were trained on." in result.report.notes


def test_too_few_batches_for_a_step_are_refused() -> None:
    student, teacher = pair()
    before = values(student)

    with pytest.raises(FinetuneError, match="training: end of data; no step could be completed"):
        tuned(student, iter(batches(3)), teacher=teacher, batches_per_step=4)
    assert same(values(student), before)


def test_data_in_another_order_are_noted() -> None:
    student, teacher = pair()
    shuffled = lambda: iter([batches(9)[place] for place in torch.randperm(9).tolist()])  # noqa: E731

    notes = tuned(student, shuffled, teacher=teacher, steps=20).report.notes

    assert any(each.startswith("Later passes had other batches than the first one") for each in notes)


def test_progress_is_reported_after_every_step() -> None:
    student, teacher = pair()
    told: list[FinetuneProgress] = []

    result = tuned(student, batches(), teacher=teacher, steps=43, progress=told.append)

    assert [each.step for each in told] == list(range(1, 44))
    assert {each.steps for each in told} == {43}
    assert [each.share for each in told] == pytest.approx([step / 43 for step in range(1, 44)])
    measured = [each.step for each in told if each.is_new]
    assert measured == [*range(4, 43, 4), 43] == [each.step for each in result.history][1:]
    losses = [each.loss for each in told if each.loss is not None]
    assert result.history[3].training_loss == pytest.approx(sum(losses[8:12]) / 4)
    assert result.history[0].training_loss is None
    assert told[-1].best_step == result.report.best_step
    assert told[-1].remaining_s == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("where", ["progress", "data", "score"])
def test_an_error_in_a_run_leaves_the_first_or_the_best_weights(where: str) -> None:
    """A model is never left in between."""
    student, teacher = pair()
    before, seen = values(student), list[dict[str, Tensor]]()
    options: dict[str, Any] = {"teacher": teacher, "held_out": batches(2), "steps": 80, "kind": "regression"}
    data: Any = batches()

    def broken() -> Iterator[Tensor]:
        yield from batches(5)
        raise CrashError

    def score(model: nn.Module) -> float:
        seen.append(values(model))
        if where == "score" and len(seen) == 3:
            raise CrashError
        return float(len(seen))

    if where == "progress":
        options["progress"] = at(5, crash)
    if where == "data":
        options["held_out"], data = batches(2), lambda: (each for each in LazyAfter(40, broken))
    with pytest.raises((CrashError, FinetuneError)):
        tuned(student, data, evaluate=score, **options)
    after = values(student)
    assert same(after, before) or any(same(after, each) for each in seen[: 2 if where == "score" else None])


class LazyAfter:
    """Yields good batches first, then those of a generator that fails."""

    def __init__(self, count: int, broken: Callable[[], Iterator[Tensor]]) -> None:
        self._count, self._broken = count, broken

    def __iter__(self) -> Iterator[Tensor]:
        yield from batches(1) * self._count
        yield from self._broken()


def test_a_snapshot_that_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    student, teacher = pair()
    before = values(student)

    with pytest.raises(OutputError):
        tuned(student, batches(), teacher=teacher, snapshot=tmp_path / "none" / "small.run")
    assert same(values(student), before)


def test_a_model_with_one_number_per_sample_is_trained() -> None:
    model = Calls(lambda self, x: self.inner(x)[:, 0], inner=nn.Linear(12, 1))
    expected = numbers(12, 1, seed=3)
    data = [(x, (x @ expected)[:, 0]) for x in batches(9)]

    result = tuned(model, data, steps=60, lr=0.1)

    assert result.after.loss is not None
    assert result.before.loss is not None
    assert result.after.loss < 0.05 * result.before.loss
    assert result.report.kind == "regression"
