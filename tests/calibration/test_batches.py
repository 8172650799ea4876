"""Calibration batches: how many are taken, which are held out, and which are refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from mpocompress.calibration.batches import read_batches, sample_total
from mpocompress.errors import CalibrationError
from mpocompress.user.code import calibration_passes, data_passes


def rows(count: int, size: int = 2) -> list[Tensor]:
    return [torch.full((size, 3), float(number)) for number in range(count)]


@pytest.mark.parametrize(
    ("count", "learning", "held_out"),
    [
        (1, [0], [0]),
        (2, [0], [1]),
        (3, [0], [1, 2]),
        (4, [0, 1, 2], [3]),
        (9, [0, 1, 2, 4, 5, 6, 8], [3, 7]),
    ],
)
def test_every_fourth_batch_is_held_out(count: int, learning: list[int], held_out: list[int]) -> None:
    batches = read_batches(rows(count))

    for part, expected in ((batches.learning, learning), (batches.held_out, held_out)):
        assert [int(batch.inputs[0, 0]) for batch in part] == expected  # type: ignore[index]
    assert batches.is_held_out == (count > 1)
    assert sample_total(batches.learning) == 2 * len(learning)
    assert batches.held_out_samples == (2 * len(held_out) if count > 1 else 0)


def test_the_same_object_several_times_is_several_batches() -> None:
    batches = read_batches([torch.zeros(2, 3)] * 8)

    assert (len(batches.learning), len(batches.held_out)) == (6, 2)
    assert batches.is_held_out


@pytest.mark.parametrize(("samples", "expected"), [(None, 256), (1, 1), (2, 1), (3, 2), (20, 10)])
def test_no_more_batches_are_taken_than_needed(samples: int | None, expected: int) -> None:
    taken = 0

    def endless() -> Iterator[Tensor]:
        nonlocal taken
        for _ in itertools.count():
            taken += 1
            yield torch.zeros(2, 3)

    read_batches(endless(), samples=samples)
    assert taken == expected


def test_batches_of_every_form_are_accepted_and_counted() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2), torch.ones(1, 2)])
    forms = [torch.zeros(4, 3), (torch.zeros(5, 3), None), {"ids": torch.zeros(6, 3)}, packed, (packed, 1), {"a": 1}]
    batches = read_batches(forms)

    assert sample_total(batches.learning) + sample_total(batches.held_out) == 22


def test_pairs_are_split_into_inputs_and_targets() -> None:
    pairs = [[torch.zeros(2, 3), torch.ones(2)], (torch.zeros(4, 3), "any")]
    batches = read_batches(pairs, has_targets=True)

    assert [batch.inputs for batch in (*batches.learning, *batches.held_out)] == [pairs[0][0], pairs[1][0]]
    assert [batch.target for batch in (*batches.learning, *batches.held_out)] == [pairs[0][1], "any"]
    arguments = (torch.zeros(2, 3), None)
    assert read_batches([arguments]).learning[0].inputs is arguments, "without a loss, two are two arguments"


@pytest.mark.parametrize(
    ("batches", "has_targets", "found"),
    [
        (torch.zeros(3, 2), False, "a Tensor; an iterable of batches is needed"),
        (rows, False, "a function; an iterable of batches is needed"),
        ([[torch.zeros(3, 2)]], False, "a list; a model is called with"),
        ([torch.zeros(2, 2)], True, "a Tensor; with a loss, every batch is a pair"),
        ([], False, "no batch; there is nothing to run the model on"),
    ],
)
def test_other_batches_are_refused(batches: Any, has_targets: bool, found: str) -> None:
    with pytest.raises(
        CalibrationError,
        match=rf"calibration batches: {found}.*\. Give an iterable of inputs of the model: tensors, tuples of "
        r"arguments, or mappings of named arguments\. If batches are inputs with labels, give the inputs alone",
    ):
        read_batches(batches, has_targets=has_targets)


def test_at_least_one_sample_is_needed() -> None:
    with pytest.raises(CalibrationError, match=r"samples: got 0; at least one sample is needed\. Give 1 or more\."):
        read_batches(rows(1), samples=0)


USER = """
import torch

several = [torch.zeros(2, 3)] * 5

def made():
    print("hello")
    for number in range(5):
        yield torch.rand(2, 3)

def broken():
    yield torch.zeros(2, 3)
    raise ValueError("no more data")

def given():
    return several

number = 3

def drawn():
    import random
    import numpy
    for _ in range(5):
        yield torch.tensor([[float(torch.rand(())), float(numpy.random.rand()), random.random()]])
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(USER)
    return path


@pytest.mark.parametrize("name", ["several", "made", "given"])
def test_batches_are_read_from_a_file(user_file: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    first, second = (read_batches(f"{user_file}:{name}") for _ in range(2))

    assert [len(part) for part in (first.learning, first.held_out)] == [4, 1]
    assert torch.equal(first.learning[1].inputs, second.learning[1].inputs)  # type: ignore[arg-type]
    assert torch.get_rng_state().equal(state)
    assert capsys.readouterr().out == ""


def test_random_batches_from_a_file_differ_and_repeat(user_file: Path) -> None:
    """A generator continues from its own random state, whatever else is drawn between its batches."""

    def state() -> tuple[list[int], list[int], object]:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002

    def drawn(batches: Any) -> list[list[float]]:
        return [batch[0].tolist() for batch in batches]

    before = state()
    unseeded = drawn(calibration_passes(f"{user_file}:drawn")(None))
    assert state() == before
    passes = data_passes(f"{user_file}:drawn")
    first, again, other = (drawn(passes(seed)) for seed in (3, 3, 4))

    for column in range(3):
        assert len({row[column] for row in unseeded}) == 5
        assert len({row[column] for row in (*first, *other)}) == 10
    assert first == again
    assert state() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"mine\.py:broken: mine\.py, line 13: ValueError: no more data; the batches could not be made"),
        ("number", r"mine\.py:number: a int; an iterable of batches is needed"),
        ("missing", r"mine\.py:missing: no 'missing' in .*mine\.py; calibration batches are needed\. Use one of"),
        ("", r"no name after a colon; calibration batches are needed"),
    ],
)
def test_errors_of_the_users_code_are_reported(user_file: Path, name: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read_batches(f"{user_file}:{name}")


def test_random_batches_of_a_generator_differ() -> None:
    batches = read_batches(torch.rand(2, 3) for _ in range(3))

    assert not torch.equal(batches.held_out[0].inputs, batches.held_out[1].inputs)  # type: ignore[arg-type]
