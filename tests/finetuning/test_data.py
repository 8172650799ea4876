"""Training data: held-out batches, their order in every pass, random numbers, and data that are refused."""

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
from mpocompress.finetuning.data import READ_AHEAD_BATCHES, Position, TrainingData

BEGINNING = Position()


def rows(count: int, size: int = 2) -> list[Tensor]:
    return [torch.full((size, 3), float(number)) for number in range(count)]


def training_data(
    data: object, held_out: object | None = None, *, seed: int = 0, consecutive: bool = False
) -> TrainingData:
    return TrainingData(data, held_out=held_out, seed=seed, consecutive=consecutive)


def number(one: Any) -> int:
    return int(one.inputs[0, 0])


def taken(data: TrainingData, count: int, start: Position = BEGINNING) -> list[int]:
    return [number(one) for _, one in islice(data.batches(start), count)]


def first_entries(data: TrainingData, count: int) -> list[float]:
    return [float(batch.inputs[0, 0]) for _, batch in islice(data.batches(), count)]  # type: ignore[index]


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
    found = training_data(rows(count), consecutive=consecutive)
    learning = [each for each in range(count) if each not in held_out]

    assert [number(each) for each in found.held_out] == held_out
    assert taken(found, 2 * len(learning)) == learning * 2, "pass after pass, in order"
    assert number(found.first) == learning[0]
    assert (found.is_held_out, found.is_reshuffled) == (True, False)


def test_a_single_batch_is_trained_and_evaluated_on() -> None:
    found = training_data(rows(1))

    assert (found.is_held_out, len(found.held_out), taken(found, 3)) == (False, 1, [0, 0, 0])


def test_with_given_held_out_batches_all_others_are_trained_on() -> None:
    found = training_data(rows(3), lambda: iter(rows(2, 5)))

    assert [each.samples for each in found.held_out] == [5, 5]
    assert taken(found, 4) == [0, 1, 2, 0]


@pytest.mark.parametrize(("size", "expected"), [(2, READ_AHEAD_BATCHES), (1024, 8), (100, 21), (5000, 8)])
def test_no_more_batches_than_needed_are_read_ahead(size: int, expected: int) -> None:
    """As many as hold 2,048 samples, eight at least; and no more than 32."""
    given = 0

    def endless() -> Iterator[Tensor]:
        nonlocal given
        while True:
            given += 1
            yield torch.zeros(size, 1)

    training_data(endless)
    assert given == expected


def test_an_iterator_ends_after_its_only_pass() -> None:
    found = training_data(iter(rows(9)))

    assert taken(found, 100) == [0, 1, 2, 3, 4, 5, 6, 8]


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 9, 15, 16, 17, 30])
def test_batches_continue_from_every_position(stop: int) -> None:
    data: Callable[[], Iterator[Tensor]] = lambda: (torch.full((2, 3), torch.rand(()).item() * 1e6) for _ in range(9))  # noqa: E731
    whole = list(islice(training_data(data).batches(), 40))
    start = whole[stop - 1][0] if stop else Position()

    again = list(islice(training_data(data).batches(start), 40 - stop))

    assert [each[0] for each in again] == [each[0] for each in whole[stop:]]
    assert [number(each[1]) for each in again] == [number(each[1]) for each in whole[stop:]]


def test_every_pass_draws_other_numbers_and_the_same_for_the_same_seed() -> None:
    def shuffled() -> Iterator[Tensor]:
        order = torch.randperm(64).tolist()
        yield from (rows(64)[each] for each in order)

    first, again, other = (taken(training_data(shuffled, seed=seed), 120) for seed in (3, 3, 4))

    assert first == again
    assert first != other
    assert first[:60] != first[60:]
    assert len(set(first[:60])) == 60


def test_data_in_another_order_are_noticed() -> None:
    found = training_data(lambda: iter([rows(9)[each] for each in torch.randperm(9).tolist()]))
    seen = [len(taken(found, 8)), found.is_reshuffled, len(taken(found, 40)), found.is_reshuffled]
    assert seen == [8, False, 40, True]

    same = training_data(lambda: iter([(each, torch.zeros(2)) for each in rows(9)]))
    taken(same, 40)
    assert not same.is_reshuffled


def test_data_draw_from_no_generator_of_the_caller() -> None:
    def drawing() -> Iterator[Tensor]:
        for _ in range(9):
            yield torch.full((2, 3), random.random() + float(np.random.rand()) + float(torch.rand(())))  # noqa: NPY002

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002
    found = [float(one.inputs[0, 0]) for _, one in islice(training_data(drawing).batches(), 24)]  # type: ignore[index]

    assert len(set(found)) == 24, "every batch is drawn anew"
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index] # noqa: NPY002
    assert random.getstate() == before[2]


@pytest.mark.parametrize(("batch", "found"), [(3, "int"), ([], "list"), ((1, 2), "int")])
def test_batches_that_no_model_is_called_with_are_refused(batch: Any, found: str) -> None:
    message = (
        f"training data: a {found}; a model is called with a tensor, a tuple of arguments, or a mapping of named "
        "arguments. Give an iterable of inputs of the model"
    )
    with pytest.raises(FinetuneError, match=message):
        training_data([batch])
    with pytest.raises(FinetuneError, match=message):
        list(islice(training_data([*rows(40), batch]).batches(), 100))
    with pytest.raises(FinetuneError, match=message.replace("training data", "held-out data")):
        training_data(rows(40), [batch])


def test_tuples_of_two_are_pairs_of_inputs_and_a_target() -> None:
    data = training_data([(x, x.sum()) for x in rows(9)])

    assert data.first.target == 0.0
    assert [float(batch.target) for _, batch in islice(data.batches(), 8)] == [0, 6, 12, 18, 24, 30, 36, 48]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(3, 2), "training data: a Tensor; an iterable of batches is needed"),
        ({"ids": 1}, "training data: a dict; an iterable"),
        (3, "training data: a int; an iterable"),
        ([], "training data: no batch; there is nothing to train on"),
        (iter(()), "training data: no batch; there is nothing to train on"),
    ],
)
def test_data_without_batches_are_refused(data: Any, message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        training_data(data)


def test_held_out_data_without_batches_are_refused() -> None:
    with pytest.raises(FinetuneError, match="held-out data: no batch; there is nothing to evaluate on"):
        training_data(rows(3), [])


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
        first_entries(training_data(f"{tmp_path}/mine.py:drawn", seed=seed), 24) for seed in (5, 5, 6)
    )

    assert len(set(first)) == 24
    assert (first == again, first == other) == (True, False)
    assert torch.equal(torch.get_rng_state(), state)
    out, err = capsys.readouterr()
    assert (out, err.count("hello")) == ("", 9), "three passes of each"
    assert len(list(islice(training_data(f"{tmp_path}/mine.py:several").batches(), 20))) == 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"mine\.py:broken: mine\.py, line 16: ValueError: no more data; the batches could not be made"),
        ("number", r"mine\.py:number: a int; an iterable of batches is needed"),
        ("missing", r"mine\.py:missing: no 'missing' in .*mine\.py; training data are needed"),
    ],
)
def test_errors_in_the_users_file_are_reported(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(USER)
    with pytest.raises(FinetuneError, match=message):
        training_data(f"{tmp_path}/mine.py:{name}")


def test_data_may_reuse_a_buffer_for_every_batch() -> None:
    def reused() -> Iterator[dict[str, Any]]:
        buffer = torch.empty(2, 3)
        for number in range(9):
            yield {"x": buffer.fill_(number), "parts": [buffer, (buffer, "text")]}

    batches = [batch.inputs for _, batch in islice(training_data(reused).batches(), 8)]

    assert [int(batch["x"][0, 0]) for batch in batches] == [0, 1, 2, 3, 4, 5, 6, 8]  # type: ignore[index]
    assert int(batches[0]["parts"][1][0][0, 0]) == 0  # type: ignore[index]


def test_packed_sequences_may_reuse_a_buffer() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])

    def reused() -> Iterator[object]:
        for number in range(3):
            packed.data.fill_(number)
            yield packed

    inputs: list[Any] = [batch.inputs for _, batch in islice(training_data(reused).batches(), 2)]
    assert [int(each.data[0, 0]) for each in inputs] == [0, 1]
