"""Batches of the user: passes over them, inputs and targets, and how a model is called with one."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from mpocompress.errors import FinetuneError
from mpocompress.user.batches import BatchFormat, call_model, parse_batch, passes_over, sample_count, to_device
from mpocompress.user.code import data_passes

PACKED = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
FORMAT = BatchFormat(
    name="example data",
    error=FinetuneError,
    action="Give batches.",
    load=data_passes,
    targets="none",
    accepts_functions=True,
)
CALLED_WITH = "a model is called with a tensor, a tuple of arguments, or a mapping of named arguments"
PAIR = "with a loss, every batch is a pair of the model's inputs and a target"

Targets = Literal["none", "required", "optional"]


@pytest.mark.parametrize(
    ("targets", "batch", "samples", "inputs", "has_target"),
    [
        ("none", torch.zeros(4, 3), 4, Tensor, False),
        ("none", PACKED, 2, PackedSequence, False),
        ("none", OrderedDict(ids=torch.zeros(5, 3)), 5, OrderedDict, False),
        ("none", (torch.zeros(6, 3), torch.zeros(6)), 6, tuple, False),
        ("required", (torch.zeros(6, 3), torch.zeros(6)), 6, Tensor, True),
        ("required", [torch.zeros(6, 3), "any"], 6, Tensor, True),
        ("required", ((torch.zeros(6, 3), 2), 1), 6, tuple, True),
        ("required", (torch.zeros(6, 3), None), 6, Tensor, False),
        ("optional", torch.zeros(4, 3), 4, Tensor, False),
        ("optional", PACKED, 2, PackedSequence, False),
        ("optional", {"ids": torch.zeros(5, 3)}, 5, dict, False),
        ("optional", (torch.zeros(6, 3),), 6, tuple, False),
        ("optional", [torch.zeros(6, 3)], 6, tuple, False),
        ("optional", (torch.zeros(6, 3), torch.zeros(6), 3), 6, tuple, False),
        ("optional", (torch.zeros(6, 3), torch.zeros(6)), 6, Tensor, True),
        ("optional", [torch.zeros(6, 3), "any"], 6, Tensor, True),
        ("optional", ([torch.zeros(6, 3), torch.zeros(6)], None), 6, tuple, False),
        ("optional", ({"ids": torch.zeros(5, 3)}, 1), 5, dict, True),
        ("optional", (PACKED, torch.zeros(2)), 2, PackedSequence, True),
    ],
)
def test_a_batch_is_split_into_inputs_and_a_target(
    targets: Targets, batch: Any, samples: int, inputs: type, has_target: bool
) -> None:
    parsed = parse_batch(batch, replace(FORMAT, targets=targets))

    assert parsed.samples == samples
    assert type(parsed.inputs) is inputs
    assert (parsed.target is not None) == has_target


@pytest.mark.parametrize(
    ("targets", "batch", "found", "why"),
    [
        ("none", [torch.zeros(3, 2)], "a list", CALLED_WITH),
        ("none", None, "a NoneType", CALLED_WITH),
        ("none", "text", "a str", CALLED_WITH),
        ("none", (), "a tuple", CALLED_WITH),
        ("required", torch.zeros(2, 2), "a Tensor", PAIR),
        ("required", (torch.zeros(2, 2),), "a tuple", PAIR),
        ("required", PACKED, "a PackedSequence", PAIR),
        ("required", ([1], 2), "a list", CALLED_WITH),
        ("optional", 3, "a int", CALLED_WITH),
        ("optional", "text", "a str", CALLED_WITH),
        ("optional", None, "a NoneType", CALLED_WITH),
        ("optional", [], "a list", CALLED_WITH),
        ("optional", (), "a tuple", CALLED_WITH),
        ("optional", (1, 2), "a int", CALLED_WITH),
        ("optional", ([], 2), "a list", CALLED_WITH),
    ],
)
def test_other_batches_are_refused(targets: Targets, batch: Any, found: str, why: str) -> None:
    with pytest.raises(FinetuneError, match=f"^example data: {found}; {why}. Give batches.$"):
        parse_batch(batch, replace(FORMAT, targets=targets))


def numbers() -> Iterator[Tensor]:
    for _ in range(4):
        yield torch.tensor([random.random(), float(np.random.rand()), float(torch.rand(()))])  # noqa: NPY002


def generators() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index] # noqa: NPY002


def test_passes_with_a_seed_draw_random_numbers_of_their_own() -> None:
    passes, before = passes_over(numbers, FORMAT), generators()
    first: Any = passes(1)
    second: Any = passes(2)
    interleaved = [(next(first), next(second)) for _ in range(4)]

    assert generators() == before
    for place, seed in enumerate((1, 2)):
        alone: list[Any] = list(passes(seed))
        assert all(torch.equal(pair[place], batch) for pair, batch in zip(interleaved, alone, strict=True))
    assert len({float(batch[0]) for pair in interleaved for batch in pair}) == 8


def test_a_pass_without_a_seed_draws_from_the_global_generators() -> None:
    passes = passes_over(numbers, FORMAT)
    torch.manual_seed(3)
    batches: list[Any] = list(passes(None))
    torch.manual_seed(3)

    assert [float(batch[2]) for batch in batches] == [float(torch.rand(())) for _ in range(4)]


def test_an_iterable_is_passed_over_again_and_an_iterator_once() -> None:
    data = [torch.zeros(2)] * 3
    several, once = passes_over(data, FORMAT), passes_over(iter(data), FORMAT)

    assert [len(list(several(seed))) for seed in (None, 0, 1)] == [3, 3, 3]
    assert [len(list(once(seed))) for seed in (0, 1)] == [3, 0]


@pytest.mark.parametrize(
    ("data", "found"), [(torch.zeros(3, 2), "Tensor"), ({"ids": 1}, "dict"), (3, "int"), (numbers, "function")]
)
def test_data_that_are_no_iterable_of_batches_are_refused(data: object, found: str) -> None:
    with pytest.raises(
        FinetuneError, match=f"^example data: a {found}; an iterable of batches is needed. Give batches.$"
    ):
        passes_over(data, replace(FORMAT, accepts_functions=False))


def test_data_given_by_name_are_imported(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("several = [1, 2, 3]\n")

    assert list(passes_over(f"{tmp_path}/mine.py:several", FORMAT)(0)) == [1, 2, 3]


def test_samples_are_counted_along_the_first_dim_of_the_first_tensor() -> None:
    batches = [torch.zeros(4, 3), (None, torch.zeros(5, 3)), {"ids": torch.zeros(6, 3)}, PACKED, (PACKED, 1), {"a": 1}]

    assert [sample_count(batch) for batch in batches] == [4, 5, 6, 2, 2, 1]
    assert sample_count(torch.tensor(1.0)) == 1


def test_a_model_is_called_with_copies() -> None:
    tree = {"a": torch.zeros(2), "b": [torch.zeros(2), (PACKED, None, "text")]}
    copied = to_device(tree, "cpu")
    copied["a"].add_(1)
    copied["b"][1][0].data.add_(1)

    assert tree["a"].sum() == 0  # type: ignore[attr-defined]
    assert PACKED.data.max() == 1
    assert copied["b"][1][1:] == (None, "text")


def test_tuples_are_arguments_and_mappings_named_arguments() -> None:
    def arguments(*args: Any, **named: Any) -> Any:
        return args, named

    model: Any = arguments
    assert call_model(model, 1) == ((1,), {})
    assert call_model(model, (1, 2)) == ((1, 2), {})
    assert call_model(model, {"a": 1}) == ((), {"a": 1})
    assert call_model(model, PACKED) == ((PACKED,), {})
