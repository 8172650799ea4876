"""Batches to train on: what is held out, in which order they come, and what is said of those that are none."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.data import AHEAD_BATCHES, Feed, Position, example, passes_over

BEGINNING = Position()


def rows(count: int, size: int = 2) -> list[Tensor]:
    return [torch.full((size, 3), float(number)) for number in range(count)]


def feed(data: object, held_out: object | None = None, *, seed: int = 0, consecutive: bool = False) -> Feed:
    return Feed(data, held_out=held_out, seed=seed, consecutive=consecutive)


def number(one: Any) -> int:
    return int(one.inputs[0, 0])


def taken(found: Feed, count: int, start: Position = BEGINNING) -> list[int]:
    return [number(one) for _, one in islice(found.batches(start), count)]


@pytest.mark.parametrize(
    ("count", "consecutive", "held_out"),
    [
        (2, False, [1]),
        (7, False, [6]),
        (8, False, [7]),
        (17, False, [7, 15]),
        (64, False, [7, 15, 23, 31]),
        (2, True, [0]),
        (17, True, [0, 1]),
        (64, True, [0, 1, 2, 3]),
    ],
)
def test_one_batch_in_eight_is_held_out_and_never_trained_on(
    count: int, consecutive: bool, held_out: list[int]
) -> None:
    found = feed(rows(count), consecutive=consecutive)
    learning = [one for one in range(count) if one not in held_out]

    assert [number(one) for one in found.held_out] == held_out
    assert taken(found, 2 * len(learning)) == learning * 2, "pass after pass, in order"
    assert number(found.first) == learning[0]
    assert (found.is_held_out, found.is_reshuffled) == (True, False)


def test_a_single_batch_is_trained_on_and_measured_on() -> None:
    found = feed(rows(1))

    assert (found.is_held_out, len(found.held_out), taken(found, 3)) == (False, 1, [0, 0, 0])


def test_batches_that_are_given_to_be_held_out_leave_all_others_to_be_trained_on() -> None:
    found = feed(rows(3), lambda: iter(rows(2, 5)))

    assert [one.samples for one in found.held_out] == [5, 5]
    assert taken(found, 4) == [0, 1, 2, 0]


@pytest.mark.parametrize(("size", "wanted"), [(2, AHEAD_BATCHES), (1024, 8), (100, 21), (5000, 8)])
def test_no_more_than_needed_is_read_ahead_of_what_never_ends(size: int, wanted: int) -> None:
    """As many as hold 2,048 samples, eight at least; and no more than 32."""
    given = 0

    def endless() -> Iterator[Tensor]:
        nonlocal given
        while True:
            given += 1
            yield torch.zeros(size, 1)

    feed(endless)
    assert given == wanted


def test_an_iterator_ends_after_its_only_pass() -> None:
    found = feed(iter(rows(9)))

    assert taken(found, 100) == [0, 1, 2, 3, 4, 5, 6, 8]


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 9, 15, 16, 17, 30])
def test_batches_go_on_from_every_place(stop: int) -> None:
    data: Callable[[], Iterator[Tensor]] = lambda: (torch.full((2, 3), torch.rand(()).item() * 1e6) for _ in range(9))  # noqa: E731
    whole = list(islice(feed(data).batches(), 40))
    start = whole[stop - 1][0] if stop else Position()

    again = list(islice(feed(data).batches(start), 40 - stop))

    assert [one[0] for one in again] == [one[0] for one in whole[stop:]]
    assert [number(one[1]) for one in again] == [number(one[1]) for one in whole[stop:]]


def test_every_pass_draws_anew_and_the_same_for_the_same_seed() -> None:
    def shuffled() -> Iterator[Tensor]:
        order = torch.randperm(64).tolist()
        yield from (rows(64)[one] for one in order)

    first, again, other = (taken(feed(shuffled, seed=seed), 120) for seed in (3, 3, 4))

    assert first == again
    assert first != other
    assert first[:60] != first[60:]
    assert len(set(first[:60])) == 60


def test_data_that_come_in_another_order_are_noticed() -> None:
    found = feed(lambda: iter([rows(9)[one] for one in torch.randperm(9).tolist()]))
    seen = [len(taken(found, 8)), found.is_reshuffled, len(taken(found, 40)), found.is_reshuffled]
    assert seen == [8, False, 40, True]

    same = feed(lambda: iter([(one, torch.zeros(2)) for one in rows(9)]))
    taken(same, 40)
    assert not same.is_reshuffled


def test_data_draw_from_no_generator_of_the_caller() -> None:
    def drawing() -> Iterator[Tensor]:
        for _ in range(9):
            yield torch.full((2, 3), random.random() + float(np.random.rand()) + float(torch.rand(())))  # noqa: NPY002

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
    found = [float(one.inputs[0, 0]) for _, one in islice(feed(drawing).batches(), 24)]  # type: ignore[index]

    assert len(set(found)) == 24, "every batch is drawn anew"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # noqa: NPY002
    assert random.getstate() == before[2]


PACKED = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])


@pytest.mark.parametrize(
    ("batch", "samples", "inputs", "target"),
    [
        (torch.zeros(4, 3), 4, Tensor, False),
        (PACKED, 2, type(PACKED), False),
        ({"ids": torch.zeros(5, 3)}, 5, dict, False),
        ((torch.zeros(6, 3),), 6, tuple, False),
        ([torch.zeros(6, 3)], 6, tuple, False),
        ((torch.zeros(6, 3), torch.zeros(6), 3), 6, tuple, False),
        ((torch.zeros(6, 3), torch.zeros(6)), 6, Tensor, True),
        ([torch.zeros(6, 3), "any"], 6, Tensor, True),
        (([torch.zeros(6, 3), torch.zeros(6)], None), 6, tuple, False),
        (({"ids": torch.zeros(5, 3)}, 1), 5, dict, True),
        ((PACKED, torch.zeros(2)), 2, type(PACKED), True),
    ],
)
def test_inputs_are_told_from_a_target(batch: Any, samples: int, inputs: type, target: bool) -> None:
    found = example(batch)

    assert found.samples == samples
    assert isinstance(found.inputs, inputs)
    assert (found.target is not None) == target


@pytest.mark.parametrize(
    ("batch", "found"), [(3, "int"), ("text", "str"), ([], "list"), ((), "tuple"), ((1, 2), "int"), (None, "NoneType")]
)
def test_what_is_no_batch_is_refused(batch: Any, found: str) -> None:
    message = (
        f"training data: a {found}; a model is called with a tensor, a tuple of arguments, or a dict of named ones. "
        "Give an iterable of what the model is called with"
    )
    with pytest.raises(FinetuneError, match=message):
        feed([batch])
    with pytest.raises(FinetuneError, match=message):
        list(islice(feed([*rows(40), batch]).batches(), 100))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(3, 2), "training data: a Tensor; several batches are taken from it, one after another"),
        ({"ids": 1}, "training data: a dict; several batches"),
        (3, "training data: a int; several batches"),
        ([], "training data: no batch; there is nothing to train on"),
        (iter(()), "training data: no batch; there is nothing to train on"),
    ],
)
def test_what_gives_no_batches_is_refused(data: Any, message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        feed(data)


def test_nothing_to_measure_on_is_refused() -> None:
    with pytest.raises(FinetuneError, match="held-out data: no batch; there is nothing to measure on"):
        feed(rows(3), [])


USER = """
import random
import numpy
import torch

several = [torch.zeros(2, 3)] * 9

def drawn():
    print("hello")
    for _ in range(9):
        yield torch.full((2, 3), random.random() + numpy.random.rand() + torch.rand(()).item())

def broken():
    for _ in range(4):
        yield torch.zeros(2, 3)
    raise ValueError("no more data")

number = 3
"""


def test_data_in_a_file_are_made_anew_in_every_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(USER)
    state = torch.get_rng_state()

    first, again, other = (
        [float(one.inputs[0, 0]) for _, one in islice(feed(f"{tmp_path}/mine.py:drawn", seed=seed).batches(), 24)]  # type: ignore[index]
        for seed in (5, 5, 6)
    )

    assert len(set(first)) == 24
    assert (first == again, first == other) == (True, False)
    assert torch.equal(torch.get_rng_state(), state)
    out, err = capsys.readouterr()
    assert (out, err.count("hello")) == ("", 9), "three passes of each"
    assert len(list(islice(feed(f"{tmp_path}/mine.py:several").batches(), 20))) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"mine\.py:broken: mine\.py, line 16: ValueError: no more data; the batches could not be made"),
        ("number", r"mine\.py:number: a int; an iterable of batches is needed"),
        ("missing", r"mine\.py:missing: no 'missing' in .*mine\.py; training data are needed"),
    ],
)
def test_what_the_users_file_does_wrong_is_told(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(USER)
    with pytest.raises(FinetuneError, match=message):
        feed(f"{tmp_path}/mine.py:{name}")


def test_a_pass_can_be_gone_through_beside_another() -> None:
    found: Callable[[int], Iterator[Any]] = passes_over(lambda: (torch.rand(2) for _ in range(4)))
    one, other = found(1), found(2)
    mixed = [torch.cat([next(one), next(other)]) for _ in range(4)]

    assert torch.equal(torch.cat(mixed).reshape(4, 2, 2)[:, 0], torch.stack(list(found(1))))
    assert torch.equal(torch.cat(mixed).reshape(4, 2, 2)[:, 1], torch.stack(list(found(2))))
