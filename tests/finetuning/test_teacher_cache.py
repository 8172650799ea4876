"""The teacher runs once for each batch that comes again, and what is learnt is the same as if it ran every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from mpocompress.finetuning import teacher_cache as lessons
from mpocompress.finetuning.data import Example
from mpocompress.finetuning.teacher_cache import Lessons
from tests.finetuning.runs import batches, pair, same, tuned, values

CPU = torch.device("cpu")


class Counting(nn.Module):
    """A teacher that counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, *given: Any, **named: Any) -> Tensor:
        self.calls += 1
        first = next(iter((*given, *named.values())))
        rows: Tensor = getattr(first, "data", first)
        return rows.float() + torch.rand(())


def made(teacher: nn.Module, *, is_stateful: bool = False) -> Lessons:
    return Lessons(teacher, is_stateful=is_stateful, low=False, first=0, device=CPU)


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
def test_a_batch_is_told_from_others_by_all_that_is_in_it(inputs: object, other: object) -> None:
    teacher = Counting()
    held = made(teacher)

    first = held.expected(Example(inputs=inputs), 0)
    again = held.expected(Example(inputs=inputs, target=ROWS), 1)
    assert teacher.calls == 1
    assert torch.equal(first, again)
    held.expected(Example(inputs=other), 1)

    assert teacher.calls == 2


def test_a_teacher_with_a_state_runs_every_time() -> None:
    teacher = Counting()
    held = made(teacher, is_stateful=True)
    for _ in range(3):
        held.expected(Example(inputs=ROWS), 0)

    assert teacher.calls == 3


def test_batches_that_are_drawn_anew_are_soon_not_remembered_any_more() -> None:
    teacher = Counting()
    held = made(teacher)
    held.expected(Example(inputs=ROWS), 0)
    held.expected(Example(inputs=ROWS + 1), 1)  # a run that was resumed in the middle of a pass
    held.expected(Example(inputs=ROWS), 1)
    assert teacher.calls == 2
    held.expected(Example(inputs=ROWS + 2), 2)
    held.expected(Example(inputs=ROWS), 2)

    assert teacher.calls == 4


def test_what_there_is_no_room_for_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "REMEMBERED_BYTES", 2 * ROWS.numel() * 4)
    teacher = Counting()
    held = made(teacher)
    for number in range(4):
        for place in range(3):
            held.expected(Example(inputs=ROWS + place), number)

    assert teacher.calls == 2 + 4


def drawn() -> Iterator[Tensor]:
    yield from (torch.randn(6, 12) for _ in range(5))


@pytest.mark.parametrize("data", [batches(5), drawn], ids=["a list", "drawn"])
def test_what_is_learnt_does_not_depend_on_it(data: object, monkeypatch: pytest.MonkeyPatch) -> None:
    (found, teacher), (wanted, _) = pair(), pair()
    report = tuned(found, data, teacher=teacher, steps=23, kind="regression").report
    monkeypatch.setattr(lessons, "REMEMBERED_BYTES", 0)

    assert tuned(wanted, data, teacher=teacher, steps=23, kind="regression").report == report
    assert same(values(found), values(wanted))


def test_the_teacher_runs_once_for_every_batch_of_a_list() -> None:
    student, teacher = pair()
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    data = batches(9)
    tuned(student, data, teacher=teacher, steps=9, held_out=data[:1], kind="regression")
    once = len(calls)
    tuned(pair()[0], data, teacher=teacher, steps=90, held_out=data[:1], kind="regression")

    assert len(calls) - once == once
