"""`finetune_module`: what a run changes, what it refuses, and models and data of every kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import mpocompress
from mpocompress.errors import FinetuneError, MPOCompressError
from mpocompress.finetuning.finetune_module import finetune_module
from mpocompress.finetuning.self_generated import SelfGenerated
from mpocompress.nn import MPOWeight
from tests.calibration.trial_models import Calls, numbers
from tests.finetuning.runs import Odd, Texts, apart, batches, pair, pairs, same, texts, tuned, values
from tests.inspecting import report_in


@pytest.fixture(autouse=True)
def _without_a_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run on one thread, and choose no execution by a measurement."""
    monkeypatch.setenv("MPOCOMPRESS_EXECUTION", "modelled")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def modes(model: nn.Module) -> list[bool]:
    return [each.training for each in model.modules()]


def test_a_run_changes_nothing_but_the_weights() -> None:
    made: tuple[Any, Any] = pair(Odd)
    student, teacher = made
    student.eval()
    student.drop.train()
    teacher.train()
    teacher.norm.eval()
    student.first.bias.requires_grad_(False)
    student.first.execution = "materialised"
    of_teacher, before = values(teacher), values(student)
    was = modes(student), modes(teacher), [each.requires_grad for each in student.parameters()]

    result = tuned(student, batches(), teacher=teacher)

    assert id(result.model) == id(student)
    assert (modes(student), modes(teacher), [each.requires_grad for each in student.parameters()]) == was
    assert same(values(teacher), of_teacher)
    assert all(each.grad is None for each in (*student.parameters(), *teacher.parameters()))
    assert (student.first.execution, student.last.execution) == ("materialised", "auto")
    assert "first.bias" not in apart(before, values(student))
    assert student.first.weight is student.tied.weight
    assert apart(before, values(student)) > {"first.weight.core.0", "last.weight.core.1", "norm.running_mean"}


def test_the_repr_of_a_result_is_one_line() -> None:
    student, teacher = pair(Odd)

    result = tuned(student, batches(), teacher=teacher)

    assert repr(result) == (
        f"FinetuneResult(Odd, {result.steps} steps, loss {result.before.loss:.4g} -> {result.after.loss:.4g}, finished)"
    )


@pytest.mark.parametrize("data", [[], [3], [numbers(6, 5)], [numbers(6, 12)] * 4])
def test_a_run_that_is_refused_changes_nothing(data: list[Any]) -> None:
    """The last data have a loss that fails after the first forward pass."""
    student, teacher = pair(Odd)
    student.eval()
    before, was = values(student), modes(student)
    options: dict[str, Any] = {} if len(data) < 4 else {"teacher_share": 0.5}

    with pytest.raises(FinetuneError):
        tuned(student, data, teacher=teacher, **options)
    assert same(values(student), before)
    assert modes(student) == was
    assert not any(each._forward_hooks for each in student.modules())


def test_a_loss_that_fails_does_not_change_the_buffers() -> None:
    student, _ = pair(Odd)
    before = values(student)

    with pytest.raises(FinetuneError):
        tuned(student, pairs(), loss=lambda output, target: output)
    assert same(values(student), before)


def test_a_first_step_that_fails_does_not_change_the_buffers() -> None:
    student, _ = pair(Odd)
    before, data = values(student), pairs(4)
    data[0][1].fill_(torch.nan)

    with pytest.raises(FinetuneError, match="no step could be completed"):
        tuned(student, data, held_out=pairs(2), kind="regression")
    assert same(values(student), before)


class Averaging(nn.Module):
    """Keeps a mean of its inputs, in a new tensor every time."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 10)
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        y: Tensor = self.inner(x - self.mean)
        return y


def test_a_buffer_that_is_replaced_belongs_to_the_best_weights() -> None:
    student, teacher = pair(Averaging)
    seen: list[dict[str, Tensor]] = []
    scores = iter([0.0, 1.0, 5.0, *[3.0] * 20])

    def score(model: nn.Module) -> float:
        seen.append(values(model))
        return next(scores)

    tuned(student, batches(), teacher=teacher, evaluate=score)
    assert same(values(student), seen[2])


def test_only_cores_are_trained_on_request() -> None:
    student, teacher = pair(Odd)
    before = values(student)

    report = tuned(student, batches(), teacher=teacher, train="cores").report

    cores = {name for name in before if ".core." in name}
    assert {name for name in apart(before, values(student)) if not name.startswith("norm.")} == cores
    assert report.trained == "cores"
    distinct = {id(core): core for each in student.modules() if isinstance(each, MPOWeight) for core in each.cores}
    assert report.trained_parameters == sum(each.numel() for each in distinct.values())
    assert all(each.requires_grad for each in student.parameters())


def test_the_report_is_saved_with_the_model(tmp_path: Path) -> None:
    student, teacher = pair()
    result = tuned(student, batches(), teacher=teacher, lr=0.01)
    again = tuned(student, batches(), teacher=teacher, lr=0.01, seed=1)
    report = mpocompress.save(student, tmp_path / "small.pt")

    assert report.finetuning == (result.report, again.report)
    assert report_in(tmp_path / "small.pt").finetuning == report.finetuning
    assert all(each.inconsistency() == "" for each in report.finetuning)
    assert (result.report.data, result.report.teacher, result.report.learning_rate) == ("a list", "Sequential", 0.01)
    assert (result.steps, result.before, result.after) == (6, result.history[0], result.history[-1])


def test_a_trained_model_is_closer_to_its_teacher() -> None:
    student, teacher = pair()
    x = torch.cat(batches(4))
    before = functional.mse_loss(student(x), teacher(x)).detach()

    tuned(student, batches(16), teacher=teacher, steps=60, kind="regression")

    assert functional.mse_loss(student(x), teacher(x)).detach() < 0.8 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "itself"}, "teacher: the model to train; the teacher would change with every step"),
        ({}, "training loss: neither a teacher nor targets"),
        (
            {"teacher": "other", "data": SelfGenerated()},
            "RuntimeError: .*; the model does not accept the training data",
        ),
        ({"data": SelfGenerated()}, "generated texts: no teacher; the teacher generates them"),
        ({"teacher": "other", "carry_state": True}, "carry_state: no recurrent layer"),
        (
            {"teacher": "other", "train": "cores", "model": nn.Linear(12, 10)},
            "Linear: no cores to train; training would",
        ),
        ({"teacher": "other", "evaluate": "none.py:score"}, "none.py:score: .*no file none.py; the score could not"),
        ({"teacher": "other", "loss": "none.py:loss"}, "none.py:loss: .*no file none.py; the loss could not"),
        ({"teacher": "other", "resume": True}, "resume: no snapshot"),
        ({"teacher": "other", "steps": 0}, "steps: got 0"),
        ({"teacher": nn.Linear(12, 10, device="meta")}, "model and teacher: parameters on cpu, meta; both are called"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    student, other = pair()
    model = options.pop("model", student)
    teacher = {"itself": model, "other": other}.get(str(options.get("teacher")), options.get("teacher"))

    with pytest.raises(FinetuneError, match=message):
        tuned(model, options.pop("data", batches()), **{**options, "teacher": teacher})


def test_a_model_with_nothing_to_train_is_refused() -> None:
    student, teacher = pair()
    with pytest.raises(
        FinetuneError, match="Sequential: no parameter that requires a gradient; training would change nothing"
    ):
        tuned(student.requires_grad_(False), batches(), teacher=teacher)


def test_a_language_model_is_trained_on_generated_texts() -> None:
    student, teacher = pair(Texts)
    again, _ = pair(Texts)
    asked = SelfGenerated(batch_size=4, length=6, batches=9)

    result = tuned(student, asked, teacher=teacher, steps=30, lr=0.02)
    tuned(again, asked, teacher=teacher, steps=30, lr=0.02)

    assert result.report.kind == "classification"
    assert result.report.data == "9 x 4 texts of 6 tokens, generated by the teacher"
    assert result.after.divergence is not None
    assert result.before.divergence is not None
    assert result.after.divergence < 0.7 * result.before.divergence
    assert same(values(student), values(again))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_are_trained_in_it_with_a_note(dtype: torch.dtype) -> None:
    student, teacher = (each.to(dtype) for each in pair())

    result = tuned(student, [each.to(dtype) for each in batches()], teacher=teacher, kind="regression")

    name = str(dtype).removeprefix("torch.")
    note = f"Weights were trained in {name}, which loses small steps; float32 is more precise."
    assert (note in result.report.notes) == (dtype != torch.float64)
    assert {each.dtype for each in student.parameters()} == {dtype}


def test_products_in_bfloat16_are_reported() -> None:
    student, teacher = pair()
    result = tuned(student, batches(), teacher=teacher, precision="bfloat16")

    assert result.report.precision == "bfloat16"
    assert {each.dtype for each in student.parameters()} == {torch.float32}


@dataclass
class Answer:
    scores: Tensor


class Wrapped(nn.Module):
    """Returns its outputs inside another object."""

    def __init__(self, inner: nn.Module, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x: Any) -> object:
        return self.wrap(self.inner(x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, None),
        lambda y: [torch.arange(3), y],
        lambda y: {"hidden": y * 0, "logits": y},
        lambda y: {"first": y, "second": (y, y)},
    ],
    ids=["tuple", "list", "logits", "mapping"],
)
def test_nested_outputs_train_like_plain_ones(wrap: Callable[[Tensor], object]) -> None:
    (student, teacher), (alone, _) = pair(), pair()
    tuned(Wrapped(student, wrap), batches(), teacher=Wrapped(teacher, wrap), kind="classification")
    tuned(alone, batches(), teacher=teacher, kind="classification")

    assert same(values(student), values(alone))


def test_a_dataclass_output_is_trained_with_a_loss_that_reads_it() -> None:
    student, _ = pair()
    wrapped = Wrapped(student, Answer)
    before = values(student)

    result = tuned(wrapped, pairs(), loss=lambda output, target: functional.mse_loss(output.scores, target))
    assert (result.stopped, apart(before, values(student))) == ("finished", set(before))

    with pytest.raises(MPOCompressError, match="an output of type Answer; it contains no"):
        tuned(wrapped, batches(), teacher=Wrapped(pair()[1], Answer))


class Packing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 12)

    def forward(self, x: PackedSequence) -> Any:
        return self.lstm(x)


def test_packed_sequences_are_trained_on() -> None:
    student, teacher = pair(Packing)
    data = [pack_sequence([numbers(5, 12, seed=seed), numbers(2, 12, seed=seed + 9)]) for seed in range(8)]

    result = tuned(student, data, teacher=teacher, steps=12)

    assert (result.stopped, result.report.samples) == ("finished", 24)
    assert result.after.selection_metric > result.before.selection_metric


class Computing(Odd):
    """Takes named arguments, and computes its own loss if there are labels."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        scores = super().forward(x)
        loss = None if labels is None else functional.cross_entropy(scores, labels)
        return {"loss": loss, "logits": scores}


def test_a_model_that_computes_its_own_loss_is_trained_with_it() -> None:
    student, teacher = pair(Computing)
    labels = torch.tensor([1, 2, 3, 4, 5, 6])
    data = [{"x": x, "labels": labels} for x in batches()]

    alone = tuned(student, data, steps=30, lr=0.02)
    both = tuned(pair(Computing)[0], data, teacher=teacher)

    assert alone.report.loss == "the loss that the model computes"
    assert both.report.loss.startswith("0.5 x (KL divergence to the outputs of the teacher) + 0.5 x (the loss")
    assert alone.after.selection_metric > alone.before.selection_metric
    only = tuned(pair(Computing)[0], [{"x": x} for x in batches()], teacher=teacher)
    assert only.report.loss == "KL divergence to the outputs of the teacher"


def test_batches_of_one_sample_are_trained_on() -> None:
    student, teacher = pair()
    assert tuned(student, batches(9, 1), teacher=teacher).report.samples == 6


@pytest.mark.slow
def test_data_from_a_loader_with_workers_repeat() -> None:
    loader = DataLoader(TensorDataset(torch.cat(batches(10))), batch_size=6, shuffle=True, num_workers=2)
    runs: list[dict[str, Tensor]] = []
    for seed in (0, 0):
        student, teacher = pair()
        torch.manual_seed(len(runs))
        tuned(student, loader, teacher=teacher, seed=seed, held_out=batches(2), steps=12)
        runs.append(values(student))

    assert same(*runs)


def test_batches_that_share_a_buffer_are_distinct() -> None:
    """A generator may fill the same tensor for every batch."""
    (student, teacher), (expected, _) = pair(), pair()

    def reused() -> Iterator[Tensor]:
        buffer = torch.empty(6, 12)
        for one in batches(12):
            yield buffer.copy_(one)

    for each in (1, 3):
        tuned(student, reused, teacher=teacher, batches_per_step=each)
        tuned(expected, batches(12), teacher=teacher, batches_per_step=each)
        assert same(values(student), values(expected))


def test_training_of_a_model_that_draws_random_numbers_repeats() -> None:
    runs: list[dict[str, Tensor]] = []
    for caller in (1, 2):
        student, teacher = pair()
        noisy = Calls(lambda self, x: self.inner(x + 0.1 * torch.randn_like(x)), inner=student)
        torch.manual_seed(caller)
        state = torch.get_rng_state()
        tuned(noisy, batches(), teacher=Calls(noisy.call, inner=teacher), kind="regression")
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(values(student))

    assert same(*runs)


def test_a_model_that_cannot_be_copied_is_trained() -> None:
    class Single(Wrapped):
        def __deepcopy__(self, memo: object) -> Single:
            raise RuntimeError("there is one of these")

    student, teacher = pair()
    single = Single(student, lambda y: y)
    with pytest.raises(RuntimeError):
        copy.deepcopy(single)

    assert tuned(single, batches(), teacher=teacher).stopped == "finished"


def test_a_score_may_change_modes_and_gradients_of_the_model() -> None:
    (student, teacher), (expected, _) = pair(Odd), pair(Odd)

    def score(model: nn.Module) -> float:
        model.train()
        with torch.enable_grad():
            model(batches(1)[0]).sum().backward()
        model.eval().get_submodule("drop").train()
        return -1.0

    def quiet(model: nn.Module) -> float:
        model.train()
        model(batches(1)[0])
        return -1.0

    tuned(student, batches(), teacher=teacher, evaluate=score)
    tuned(expected, batches(), teacher=teacher, evaluate=quiet)
    assert same(values(student), values(expected))
    assert all(each.grad is None for each in student.parameters())


def test_a_very_short_time_limit_is_respected() -> None:
    student, teacher = pair()
    result = finetune_module(student, batches(), teacher=teacher, minutes=0.0005, precision="float32")

    assert result.stopped == "finished"
    assert result.history[-1].step == result.steps


def test_steps_of_a_very_short_time_limit_are_reported() -> None:
    student, teacher = pair()
    report = finetune_module(student, batches(), teacher=teacher, minutes=1e-7, precision="float32").report

    assert report.requested_steps == report.steps


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_gradients_are_computed_in_every_block(
    block: Callable[[], AbstractContextManager[None]],
) -> None:
    student, teacher = pair()
    with block():
        result = tuned(student, batches(), teacher=teacher)
    assert result.stopped == "finished"


@pytest.mark.slow
def test_a_compiled_model_is_trained() -> None:
    (student, teacher), (expected, _) = pair(), pair()
    compiled: Any = torch.compile(student, backend="eager")

    tuned(compiled, batches(), teacher=teacher, kind="regression")
    tuned(expected, batches(), teacher=teacher, kind="regression")

    for name, value in values(student).items():
        torch.testing.assert_close(value, values(expected)[name], rtol=1e-4, atol=1e-5)


def test_an_empty_batch_is_refused() -> None:
    student, teacher = pair()
    with pytest.raises(MPOCompressError):
        tuned(student, [*batches(3), torch.zeros(0, 12), *batches(2)], teacher=teacher, held_out=batches(1))


def test_data_loss_and_score_can_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def data():\n    for _ in range(9):\n        yield torch.randn(6, 12), torch.randn(6, 10)\n"
        "def loss(output, target):\n    return (output - target).square().mean()\n"
        "def score(model):\n    print('scored')\n    return -float(model(torch.ones(2, 12)).square().mean())\n"
    )
    there = f"{tmp_path}/mine.py"
    student, _ = pair()

    report = tuned(student, f"{there}:data", loss=f"{there}:loss", evaluate=f"{there}:score").report

    assert (report.data, report.selection_metric) == (f"{there}:data", f"the score of {there}:score")
    assert report.loss == "the given loss on targets"
    (tmp_path / "mine.py").write_text("def score(model):\n    return model.no_such_layer\n")
    with pytest.raises(FinetuneError, match=r"mine.py, line 2: AttributeError: .*; the score could not be computed"):
        tuned(student, pairs(), evaluate=f"{there}:score")


def test_a_mapping_of_any_type_is_a_batch() -> None:
    class Ids(Mapping[str, Tensor]):
        def __init__(self, **held: Tensor) -> None:
            self.held = held

        def __getitem__(self, name: str) -> Tensor:
            return self.held[name]

        def __iter__(self) -> Iterator[str]:
            return iter(self.held)

        def __len__(self) -> int:
            return len(self.held)

    (student, teacher), (expected, _) = pair(Texts), pair(Texts)
    tuned(student, [Ids(ids=each) for each in texts()], teacher=teacher)
    tuned(expected, texts(), teacher=teacher)

    assert same(values(student), values(expected))
