"""What can be asked of a fine-tuning, and what is said of what means nothing."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from torch import nn

from mpocompress.errors import TuningError
from mpocompress.finetuning.recipe import Recipe, named_thing
from mpocompress.finetuning.self_generated import SelfGenerated


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", 0, "1 or more"),
        ("minutes", 0.0, "a number above 0"),
        ("minutes", math.inf, "a number above 0"),
        ("minutes", math.nan, "a number above 0"),
        ("lr", -1.0, "a number above 0"),
        ("lr", math.nan, "a number above 0"),
        ("train", "biases", "all or cores"),
        ("kind", "pictures", "one of classification, embedding, regression, or none"),
        ("teacher_share", 1.1, "a number from 0 to 1"),
        ("teacher_share", math.nan, "a number from 0 to 1"),
        ("batches_per_step", 0, "1 or more"),
        ("precision", "float16", "one of auto, float32, bfloat16"),
        ("seed", -1, "0 or more"),
    ],
)
def test_a_value_that_means_nothing_is_refused(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(TuningError, match=rf"{name}: got {value!r}; it would mean nothing\. Give {wanted}\."):
        Recipe(**{name: value})


@pytest.mark.parametrize(
    ("given", "steps", "seconds"),
    [
        ({}, 1000, None),
        ({"steps": 3}, 3, None),
        ({"minutes": 0.5}, None, 30.0),
        ({"steps": 3, "minutes": 2}, 3, 120.0),
    ],
)
def test_a_thousand_steps_are_made_where_nothing_is_said(
    given: dict[str, Any], steps: int | None, seconds: float | None
) -> None:
    length = Recipe(**given).length

    assert (length.steps, length.seconds) == (steps, seconds)


def score(model: nn.Module) -> float:
    return 0.0


def test_every_value_tells_one_recipe_from_another() -> None:
    others: dict[str, Any] = {
        "evaluate": score,
        "loss": "net.py:loss",
        "steps": 7,
        "minutes": 3.0,
        "lr": 0.1,
        "train": "cores",
        "kind": "embedding",
        "teacher_share": 0.3,
        "held_out": [1],
        "carry_state": True,
        "batches_per_step": 2,
        "precision": "bfloat16",
        "seed": 5,
    }
    plain = Recipe()

    assert others.keys() == {one.name for one in fields(Recipe)}
    for name, value in others.items():
        words, before = replace(plain, **{name: value}).words(), plain.words()
        assert {one for one in words if words[one] != before[one]} == {name}
        assert all(isinstance(one, str) for one in words.values())


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (None, ""),
        ("", ""),
        ("net.py:data", "net.py:data"),
        (score, "score"),
        (nn.Linear, "Linear"),
        (iter([]), "a list_iterator"),
        (
            SelfGenerated(batch_size=2, length=3, batches=4),
            "4 x 2 texts of 3 tokens that the teacher wrote",
        ),
    ],
)
def test_things_are_called_what_they_are(thing: object, name: str) -> None:
    assert named_thing(thing) == name
