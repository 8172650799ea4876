"""The teacher runs once for each batch that occurs again, and the training is the same as if it ran every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mpocompress.finetuning import teacher_cache
from mpocompress.finetuning.teacher_cache import TeacherCache
from mpocompress.user.batches import Batch
from tests.finetuning.runs import batches, pair, same, tuned, values

CPU = torch.device("cpu")


class Counting(nn.Module):
    """A teacher that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, *given: Any, **named: Any) -> Tensor:
        self.calls += 1
        first = next(iter((*given, *named.values())))
        rows: Tensor = getattr(first, "data", first)
        return rows.float() + torch.rand(())


def cached(teacher: nn.Module, *, is_stateful: bool = False) -> TeacherCache:
    return TeacherCache(teacher, is_stateful=is_stateful, dtype="float32", first=0, device=CPU)


ROWS = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("inputs", "other"),
    [
        (ROWS, ROWS + 1),
        (ROWS.T, ROWS.reshape(3, 2)),
        (ROWS.long(), ROWS.double()),
        ((ROWS, 2.0, ROWS), (ROWS, 3.0, ROWS)),
        ({"x": ROWS, "y": ROWS}, {"x": ROWS, "z": ROWS}),
        (pack_sequence([ROWS[0], ROWS[1, :2]]), pack_sequence([ROWS[0], ROWS[1, :1]])),
        (ROWS.bfloat16(), ROWS.half()),
    ],
    ids=["tensor", "transposed", "dtype", "tuple", "dict", "packed", "half"],
)
def test_batches_are_distinguished_by_everything_in_them(inputs: object, other: object) -> None:
    teacher = Counting()
    cache = cached(teacher)

    first = cache.output(Batch(inputs=inputs), 0)
    again = cache.output(Batch(inputs=inputs, target=ROWS), 1)
    assert teacher.calls == 1
    assert torch.equal(first, again)
    cache.output(Batch(inputs=other), 1)

    assert teacher.calls == 2


def test_a_teacher_with_a_state_runs_every_time() -> None:
    teacher = Counting()
    cache = cached(teacher, is_stateful=True)
    for _ in range(3):
        cache.output(Batch(inputs=ROWS), 0)

    assert teacher.calls == 3


def test_inputs_without_a_digest_run_every_time() -> None:
    """The text of a large array leaves out its middle."""
    teacher = Counting()
    cache = cached(teacher)
    for _ in range(3):
        cache.output(Batch(inputs=(ROWS, np.zeros(5))), 0)

    assert teacher.calls == 3


def test_batches_that_are_drawn_anew_are_soon_not_cached_any_more() -> None:
    teacher = Counting()
    cache = cached(teacher)
    cache.output(Batch(inputs=ROWS), 0)
    cache.output(Batch(inputs=ROWS + 1), 1)  # a run that was resumed in the middle of a pass
    cache.output(Batch(inputs=ROWS), 1)
    assert teacher.calls == 2
    cache.output(Batch(inputs=ROWS + 2), 2)
    cache.output(Batch(inputs=ROWS), 2)

    assert teacher.calls == 4


def test_outputs_beyond_the_largest_size_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "CACHE_BYTES", 2 * ROWS.numel() * 4)
    teacher = Counting()
    cache = cached(teacher)
    for number in range(4):
        for place in range(3):
            cache.output(Batch(inputs=ROWS + place), number)

    assert teacher.calls == 2 + 4


def drawn() -> Iterator[Tensor]:
    yield from (torch.randn(6, 12) for _ in range(5))


@pytest.mark.parametrize("data", [batches(5), drawn], ids=["a list", "drawn"])
def test_the_training_does_not_depend_on_the_cache(data: object, monkeypatch: pytest.MonkeyPatch) -> None:
    (found, teacher), (expected, _) = pair(), pair()
    report = tuned(found, data, teacher=teacher, steps=23, kind="regression").report
    monkeypatch.setattr(teacher_cache, "CACHE_BYTES", 0)

    assert tuned(expected, data, teacher=teacher, steps=23, kind="regression").report == report
    assert same(values(found), values(expected))


def test_the_teacher_runs_once_for_every_batch_of_a_list() -> None:
    student, teacher = pair()
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    data = batches(9)
    tuned(student, data, teacher=teacher, steps=9, held_out=data[:1], kind="regression")
    once = len(calls)
    tuned(pair()[0], data, teacher=teacher, steps=90, held_out=data[:1], kind="regression")

    assert len(calls) - once == once
