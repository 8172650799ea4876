"""Compressed files of every version of the format are read, and their contents stay the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mpocompress
from mpocompress.reports.compression import Report
from tests.inspecting import report_in

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "small.pt": "dense.safetensors",
    "small.safetensors": "dense.safetensors",
    "small-int8.safetensors": "dense-int8.safetensors",
}
"""Compressed file -> the same file expanded."""
FORMATS = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


def original(folder: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(GOLDEN / folder / "original.pt", weights_only=True)["model"]
    return tensors


def test_there_is_a_folder_for_every_version_of_the_format() -> None:
    assert [f"format-{version}" for version in range(1, Report.VERSION + 1)] == FORMATS


@pytest.mark.parametrize("folder", FORMATS)
@pytest.mark.parametrize("name", FILES)
def test_a_golden_file_expands_to_the_same_tensors(folder: str, name: str, tmp_path: Path) -> None:
    mpocompress.expand(GOLDEN / folder / name, tmp_path / "dense.safetensors")
    tensors, golden = load_file(tmp_path / "dense.safetensors"), load_file(GOLDEN / folder / FILES[name])

    assert {key: value.dtype for key, value in tensors.items()} == {key: value.dtype for key, value in golden.items()}
    for key, value in golden.items():
        # Another machine adds the same products in another order; bfloat16 may then round to its neighbour.
        tolerance = 2**-7 if value.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(tensors[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("folder", FORMATS)
@pytest.mark.parametrize("name", FILES)
def test_the_report_of_a_golden_file_agrees_with_its_tensors(folder: str, name: str) -> None:
    """A golden file that was wrong from the start cannot pass."""
    report = report_in(GOLDEN / folder / name)
    before, after = original(folder), load_file(GOLDEN / folder / FILES[name])

    assert set(before) == set(after)
    assert all((matrix.dtype == "int8") == ("int8" in name) for matrix in report.compressed)
    assert report.aliases == {"tied.weight": "fc.weight"}
    assert torch.equal(after["tied.weight"], after["fc.weight"])
    assert report.totals.dense_parameters == sum(before[name].numel() for name in before if name != "tied.weight")
    assert {matrix.kind for matrix in report.compressed} == {"lstm", "lstm_cell", "linear"}
    assert {(matrix.kind_from, matrix.transposed) for matrix in report.compressed} == {("name and shape", False)}
    for matrix in report.compressed:
        dense, rebuilt = (
            torch.cat([side[name].double() for name in matrix.members], dim=1) for side in (before, after)
        )
        measured = float((dense - rebuilt).norm() / dense.norm())
        # Expanding rounds the members once more, to their original dtype.
        assert measured == pytest.approx(matrix.relative_error, rel=1e-4 if matrix.source_dtype == "bfloat16" else 1e-6)
        assert matrix.bonds == matrix.sites.capped(3)
    untouched = set(before) - {name for matrix in report.compressed for name in matrix.members} - {"tied.weight"}
    assert all(torch.equal(before[name], after[name]) for name in untouched)
