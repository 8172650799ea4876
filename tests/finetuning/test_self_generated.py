"""Texts that a teacher generates: drawn from its own prediction, reproducible, token by token or at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.self_generated import GeneratedTexts, SelfGenerated
from tests.calibration.trial_models import Calls
from tests.finetuning.runs import Texts, same, values

CPU = torch.device("cpu")


def teacher(make: type[nn.Module] = Texts) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def generated(model: nn.Module, *, seed: int = 0, **asked: int) -> list[Tensor]:
    expected = SelfGenerated(**{"batch_size": 4, "length": 7, "batches": 3, **asked})
    return list(GeneratedTexts(model, expected, seed=seed, device=CPU))


class Chain(nn.Module):
    """Tells the next token from the last one alone, by chances that are known."""

    def __init__(self, chances: Tensor) -> None:
        super().__init__()
        self.chances = nn.Parameter(chances)
        self.lengths: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.lengths.append(ids.shape[1])
        return self.chances.log()[ids]


CHANCES = torch.tensor([[0.0, 0.75, 0.25], [0.5, 0.0, 0.5], [0.9, 0.1, 0.0]])


def test_every_token_is_drawn_from_the_prediction_of_the_teacher() -> None:
    texts = torch.cat(generated(Chain(CHANCES), batch_size=100, length=20))
    counts = torch.zeros(3, 3)
    for before, after in zip(texts[:, :-1].flatten(), texts[:, 1:].flatten(), strict=True):
        counts[before, after] += 1

    assert counts.diagonal().sum() == 0, "a token that has no chance never comes"
    torch.testing.assert_close(counts / counts.sum(dim=1, keepdim=True), CHANCES, rtol=0, atol=0.04)  # 4 sigma
    starts = torch.bincount(texts[:, 0], minlength=3) / len(texts)
    torch.testing.assert_close(starts, torch.full((3,), 1 / 3), rtol=0, atol=0.08)


def test_texts_are_the_same_for_the_same_seed_and_differ_between_batches() -> None:
    model, state = teacher(), torch.get_rng_state()
    before = values(model)
    first, again, other = generated(model), generated(model), generated(model, seed=1)

    assert [tuple(each.shape) for each in first] == [(4, 7)] * 3
    assert all(each.dtype == torch.int64 and each.min() >= 0 and each.max() < 11 for each in first)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert same(values(model), before)
    assert not any(each._forward_hooks for each in model.modules())


def test_batches_are_generated_when_needed_and_kept() -> None:
    model = Chain(CHANCES)
    texts = GeneratedTexts(model, SelfGenerated(batch_size=2, length=5, batches=3), seed=0, device=CPU)
    model.lengths.clear()
    first = next(iter(texts))

    assert model.lengths == [1, 2, 3, 4], "without a memory it is called with all that was written"
    assert next(iter(texts)) is first
    list(texts)
    assert len(model.lengths) == 12


def test_a_recurrent_teacher_is_called_with_one_token_after_the_other() -> None:
    model = teacher()
    lengths: list[int] = []
    stepped = generated(model)
    model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))

    assert all(map(torch.equal, stepped, generated(model)))
    assert set(lengths[-18:]) == {1}
    hidden = Calls(lambda self, ids: model(ids))  # whose recurrent layer is not found, so it gets all that was written
    assert all(map(torch.equal, stepped, generated(hidden)))
    assert lengths[-6:] == [1, 2, 3, 4, 5, 6]


class LooksBack(Texts):
    """Adds what was said first to every prediction, so that one token after the other gives something else."""

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = super().forward(ids) + 3 * self.head(self.embed(ids[:, :1]))
        return scores


def test_a_teacher_that_looks_back_is_called_with_the_whole_text() -> None:
    model = teacher(LooksBack)
    texts = generated(model, batches=1)[0]
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    assert torch.equal(generated(model, batches=1)[0], texts)
    assert lengths[-6:] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("name", "value", "least"), [("batch_size", 0, 1), ("length", 1, 2), ("batches", 0, 1)])
def test_numbers_out_of_range_are_refused(name: str, value: int, least: int) -> None:
    with pytest.raises(
        FinetuneError, match=rf"generated texts, {name}: got {value}; it must be {least} or more\. Give"
    ):
        SelfGenerated(**{name: value})


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Embedding(5, 1), r"Embedding: outputs of shape \(4, 2, 1\) for token ids of shape \(4, 2\)"),
        (nn.Sequential(nn.Embedding(5, 3), nn.Flatten()), r"outputs of shape \(4, 6\) for token ids"),
        (nn.Linear(2, 3), "RuntimeError: .*; the model does not accept the training data"),
    ],
)
def test_a_teacher_without_logits_is_refused(model: nn.Module, found: str) -> None:
    with pytest.raises(FinetuneError, match=found):
        generated(model)
