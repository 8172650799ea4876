"""The public functions: values in torch's own types, and signatures that show what can be passed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpocompress
from mpocompress.benchmarking.options import BenchOptions
from mpocompress.compression.options import CompressOptions
from mpocompress.errors import BenchmarkError, TargetError
from mpocompress.layers.selection import Selection
from mpocompress.planning.targets import Truncation

FOUR = Truncation(max_bond=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_a_dtype_of_torch_means_its_name(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    torch.save(nn.Linear(64, 64).state_dict(), tmp_path / "model.pt")

    report = mpocompress.compress(tmp_path / "model.pt", tmp_path / "small.pt", truncation=FOUR, dtype=dtype, jobs=1)

    assert {matrix.dtype for matrix in report.compressed} == {str(dtype).removeprefix("torch.")}


def test_dtypes_that_cores_are_not_stored_in_are_refused() -> None:
    assert CompressOptions(truncation=FOUR).dtype_name is None
    with pytest.raises(TargetError, match="dtype: got 'complex64'; it must be one of float16, bfloat16, float32, "):
        CompressOptions(truncation=FOUR, dtype=torch.complex64)


def test_a_device_of_torch_means_its_name() -> None:
    assert BenchOptions(device=torch.device("cpu")).device_name == "cpu"
    with pytest.raises(BenchmarkError, match="device: got 'meta'; it must be one of cpu, cuda"):
        BenchOptions(device=torch.device("meta"))


def test_a_selection_shows_what_is_selected() -> None:
    assert repr(Selection()) == "Selection()"
    assert repr(Selection(exclude=("head*",), min_side=8)) == "Selection(exclude=('head*',), min_side=8)"


@pytest.mark.parametrize(
    ("function", "leading"),
    [
        (mpocompress.compress, ["source", "target"]),
        (mpocompress.compress_module, ["model"]),
        (mpocompress.plan, ["source"]),
        (mpocompress.inspect, ["source"]),
        (mpocompress.expand, ["source", "target"]),
        (mpocompress.bench, ["source"]),
        (mpocompress.finetune, ["source", "target"]),
        (mpocompress.finetune_module, ["model", "data"]),
        (mpocompress.calibrate, ["source", "inputs", "model"]),
    ],
)
def test_a_signature_shows_every_keyword_and_the_docstring_describes_it(
    function: Callable[..., Any], leading: list[str]
) -> None:
    parameters = inspect.signature(function).parameters
    keywords = [name for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY]

    assert [name for name in parameters if name not in keywords] == leading
    assert len(keywords) > 1
    for name in (*leading, *keywords):
        assert f"\n    {name}: " in (function.__doc__ or "")


def test_both_functions_that_compress_take_the_target_by_keyword() -> None:
    for function in (mpocompress.compress, mpocompress.compress_module):
        parameter = inspect.signature(function).parameters["truncation"]
        assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty)
