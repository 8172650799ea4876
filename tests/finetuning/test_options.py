"""Options of fine-tuning: their limits, and what a call may leave out."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.options import FinetuneModuleOptions, FinetuneOptions, TrainingOptions


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", 0, "an integer of 1 or more"),
        ("minutes", 0.0, "a number above 0"),
        ("minutes", math.inf, "a number above 0"),
        ("minutes", math.nan, "a number above 0"),
        ("lr", -1.0, "a number above 0"),
        ("lr", math.nan, "a number above 0"),
        ("train", "biases", "one of all, cores"),
        ("kind", "pictures", "one of classification, embedding, regression"),
        ("teacher_share", 1.1, "a number from 0 to 1"),
        ("teacher_share", math.nan, "a number from 0 to 1"),
        ("batches_per_step", 0, "an integer of 1 or more"),
        ("precision", "float16", "one of auto, float32, bfloat16"),
        ("seed", -1, "an integer of 0 or more"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: Any, wanted: str) -> None:
    for make in (
        TrainingOptions,
        FinetuneModuleOptions,
        lambda **given: FinetuneOptions(model="net.py:build", data=[], **given),
    ):
        with pytest.raises(FinetuneError) as caught:
            make(**{name: value})
        assert str(caught.value) == f"{name}: got {value!r}; it must be {wanted}. Pass such a value."


def test_a_device_becomes_its_name() -> None:
    assert FinetuneOptions(model="net.py:build", data=[], device=torch.device("cuda", 1)).device == "cuda:1"
    assert FinetuneOptions(model="net.py:build", data=[], device="cpu").device == "cpu"
    assert FinetuneOptions(model="net.py:build", data=[]).device is None


def test_files_and_modules_are_trained_with_the_same_options() -> None:
    shared = {each.name for each in fields(TrainingOptions)} | {"resume", "progress"}

    assert {each.name for each in fields(FinetuneModuleOptions)} - shared == {"teacher", "snapshot"}
    assert {each.name for each in fields(FinetuneOptions)} - shared == {
        "model",
        "data",
        "teacher",
        "device",
        "allow_pickle",
        "overwrite",
    }


def test_options_are_imported_without_torch() -> None:
    script = "import sys, mpocompress.finetuning.options; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
