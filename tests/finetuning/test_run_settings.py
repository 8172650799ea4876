"""Settings that a resumed run must share, and the names of what the user gives."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from torch import nn

from mpocompress.finetuning.options import TrainingOptions
from mpocompress.finetuning.resume import name_of, run_settings
from mpocompress.finetuning.self_generated import SelfGenerated


def score(model: nn.Module) -> float:
    return 0.0


def test_every_option_distinguishes_runs() -> None:
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
    options = TrainingOptions()
    before = run_settings(options)

    assert others.keys() == {declared.name for declared in fields(TrainingOptions)}
    for name, value in others.items():
        settings = run_settings(replace(options, **{name: value}))
        assert {key for key in settings if settings[key] != before[key]} == {name}
        assert all(isinstance(text, str) for text in settings.values())


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (None, ""),
        ("", ""),
        ("net.py:data", "net.py:data"),
        (score, "score"),
        (nn.Linear, "Linear"),
        (iter([]), "a list_iterator"),
        (SelfGenerated(batch_size=2, length=3, batches=4), "4 x 2 texts of 3 tokens that the teacher wrote"),
    ],
)
def test_objects_are_named_or_called_by_their_type(thing: object, name: str) -> None:
    assert name_of(thing) == name
