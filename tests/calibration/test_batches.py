"""Batches: how many are taken, which are held out, and what is said of those that are none."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from mpocompress.calibration.batches import gathered
from mpocompress.errors import CalibrationError
from mpocompress.user.batches import call_model, sample_count, to_device
from mpocompress.user.code import batches_from, data_passes


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
    found = gathered(rows(count))

    for batches, wanted in ((found.learning, learning), (found.held_out, held_out)):
        assert [int(one[0, 0]) for one in batches] == wanted  # type: ignore[index]
    assert found.is_held_out == (count > 1)
    assert found.count(found.learning) == 2 * len(learning)


def test_one_object_many_times_is_many_batches() -> None:
    found = gathered([torch.zeros(2, 3)] * 8)

    assert (len(found.learning), len(found.held_out)) == (6, 2)
    assert found.is_held_out


@pytest.mark.parametrize(("samples", "batches"), [(None, 256), (1, 1), (2, 1), (3, 2), (20, 10)])
def test_no_more_than_wanted_are_taken_of_what_never_ends(samples: int | None, batches: int) -> None:
    taken = 0

    def endless() -> Any:
        nonlocal taken
        for _ in itertools.count():
            taken += 1
            yield torch.zeros(2, 3)

    gathered(endless(), samples=samples)
    assert taken == batches


def test_batches_of_every_form_are_taken_and_counted() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2), torch.ones(1, 2)])
    forms = [torch.zeros(4, 3), (torch.zeros(5, 3), None), {"ids": torch.zeros(6, 3)}, packed, (packed, 1), {"a": 1}]
    found = gathered(forms)

    assert [sample_count(one) for one in forms] == [4, 5, 6, 3, 3, 1]
    assert found.count(found.learning) + found.count(found.held_out) == 22
    assert sample_count(torch.tensor(1.0)) == 1


def test_pairs_are_parted_into_inputs_and_targets() -> None:
    pairs = [[torch.zeros(2, 3), torch.ones(2)], (torch.zeros(4, 3), "any")]
    found = gathered(pairs, has_targets=True)

    assert [type(one) for one in (*found.learning, *found.held_out)] == [tuple, tuple]
    assert found.count((*found.learning, *found.held_out)) == 6
    assert found.inputs(found.learning[0]) is pairs[0][0]
    whole = (torch.zeros(2, 3), None)
    assert gathered([whole]).inputs(whole) is whole


TAKEN_FROM = "several batches are taken from it, one after another"
CALLED_WITH = "a model is called with a tensor, a tuple of arguments, or a dict of named ones"
PAIR = "with a loss, a batch is a pair: what the model is called with, and a target"


@pytest.mark.parametrize(
    ("batches", "targets", "found", "why"),
    [
        (torch.zeros(3, 2), False, "a Tensor", TAKEN_FROM),
        ({"ids": torch.zeros(3, 2)}, False, "a dict", TAKEN_FROM),
        (3, False, "a int", TAKEN_FROM),
        ([[torch.zeros(3, 2)]], False, "a list", CALLED_WITH),
        ([None], False, "a NoneType", CALLED_WITH),
        ([torch.zeros(2, 2)], True, "a Tensor", PAIR),
        ([(torch.zeros(2, 2),)], True, "a tuple", PAIR),
        ([([1], 2)], True, "a list", CALLED_WITH),
        ([], False, "none", "there is nothing to run the model on"),
    ],
)
def test_what_is_no_batch_is_refused(batches: Any, targets: bool, found: str, why: str) -> None:
    with pytest.raises(
        CalibrationError,
        match=f"calibration batches: {found}; {why}. Give an iterable of what the model is called with: tensors, "
        "tuples of arguments, or dicts of named ones.",
    ):
        gathered(batches, has_targets=targets)


def test_at_least_one_sample_is_wanted() -> None:
    with pytest.raises(CalibrationError, match=r"samples: got 0; at least one is needed\. Give 1 or more\."):
        gathered(rows(1), samples=0)


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
def test_batches_are_taken_from_a_file(user_file: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    first, second = (gathered(f"{user_file}:{name}") for _ in range(2))

    assert [len(one) for one in (first.learning, first.held_out)] == [4, 1]
    assert first.learning[1].equal(second.learning[1])  # type: ignore[attr-defined]
    assert torch.get_rng_state().equal(state)
    assert capsys.readouterr().out == ""


def test_random_batches_from_a_file_differ_and_are_the_same_again(user_file: Path) -> None:
    """A generator goes on drawing from where it was at the batch before, whatever is drawn in between."""

    def state() -> tuple[list[int], list[int], object]:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002

    before = state()
    batches: Iterable[Any] = batches_from(f"{user_file}:drawn")
    found = [one[0].tolist() for one in batches]
    assert state() == before
    seeded = data_passes(f"{user_file}:drawn")
    one, again, other = ([batch[0].tolist() for batch in cast(Any, seeded(seed))] for seed in (3, 3, 4))

    for column in range(3):
        assert len({row[column] for row in found}) == 5
        assert len({row[column] for row in (*one, *other)}) == 10
    assert one == again
    assert state() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"mine\.py:broken: mine\.py, line 13: ValueError: no more data; the batches could not be made"),
        ("number", r"mine\.py:number: a int; an iterable of batches is needed"),
        (
            "missing",
            r"mine\.py:missing: no 'missing' in .*mine\.py; calibration batches are needed\. Use one of",
        ),
        ("", r"no name after a colon; calibration batches are needed"),
    ],
)
def test_what_the_users_code_does_wrong_is_told(user_file: Path, name: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        gathered(f"{user_file}:{name}")


def test_random_batches_of_a_generator_differ() -> None:
    """A generator goes on drawing; every batch is drawn anew."""
    found = gathered(torch.rand(2, 3) for _ in range(3))

    assert not found.held_out[0].equal(found.held_out[1])  # type: ignore[attr-defined]


def test_a_model_is_called_with_copies() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    nest = {"a": torch.zeros(2), "b": [torch.zeros(2), (packed, None, "text")]}
    found = to_device(nest, "cpu")
    found["a"].add_(1)
    found["b"][1][0].data.add_(1)

    assert nest["a"].sum() == 0  # type: ignore[attr-defined]
    assert packed.data.max() == 1
    assert found["b"][1][1:] == (None, "text")


def test_a_model_is_called_with_what_was_made_for_it() -> None:
    packed = pack_sequence([torch.ones(3, 2)])
    said = lambda *args, **named: (args, named)  # noqa: E731

    assert call_model(said, 1) == ((1,), {})  # type: ignore[arg-type]
    assert call_model(said, (1, 2)) == ((1, 2), {})  # type: ignore[arg-type]
    assert call_model(said, {"a": 1}) == ((), {"a": 1})  # type: ignore[arg-type]
    assert call_model(said, packed) == ((packed,), {})  # type: ignore[arg-type]
