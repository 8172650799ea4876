"""Files of every format version that was ever written stay readable and mean the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mpocompress
from tests.inspecting import report_in

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "small.pt": "dense.safetensors",
    "small.safetensors": "dense.safetensors",
    "small-int8.safetensors": "dense-int8.safetensors",
}
"""A file, and what it expands to."""
VERSIONS = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())


def original(version: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(GOLDEN / version / "original.pt", weights_only=True)["model"]
    return tensors


def test_there_is_a_folder_for_every_version() -> None:
    assert VERSIONS == ["version-1"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FILES)
def test_a_golden_file_expands_to_what_it_always_did(version: str, name: str, tmp_path: Path) -> None:
    mpocompress.expand(GOLDEN / version / name, tmp_path / "dense.safetensors")
    found, wanted = load_file(tmp_path / "dense.safetensors"), load_file(GOLDEN / version / FILES[name])

    assert {key: value.dtype for key, value in found.items()} == {key: value.dtype for key, value in wanted.items()}
    for key, value in wanted.items():
        # Another machine adds up the same products in another order; bfloat16 may then round to its neighbour.
        slack = 2**-7 if value.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found[key], value, rtol=slack, atol=slack)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FILES)
def test_the_report_of_a_golden_file_is_true_of_it(version: str, name: str) -> None:
    """Summed up from the tensors, so that a golden file that was wrong from the start could not pass."""
    report = report_in(GOLDEN / version / name)
    before, after = original(version), load_file(GOLDEN / version / FILES[name])

    assert set(before) == set(after)
    assert all((matrix.dtype == "int8") == ("int8" in name) for matrix in report.compressed)
    assert report.aliases == {"tied.weight": "fc.weight"}
    assert torch.equal(after["tied.weight"], after["fc.weight"])
    assert report.totals.dense_parameters == sum(before[name].numel() for name in before if name != "tied.weight")
    assert {matrix.kind for matrix in report.compressed} == {"lstm", "lstm_cell", "linear"}
    # Fields that came later have a value for files from before.
    assert {(matrix.kind_from, matrix.transposed) for matrix in report.compressed} == {("name and shape", False)}
    for matrix in report.compressed:
        dense, rebuilt = (
            torch.cat([side[name].double() for name in matrix.members], dim=1) for side in (before, after)
        )
        measured = float((dense - rebuilt).norm() / dense.norm())
        # The members are rounded once more to their own type when they are rebuilt.
        assert measured == pytest.approx(matrix.relative_error, rel=1e-4 if matrix.source_dtype == "bfloat16" else 1e-6)
        assert matrix.bonds == matrix.sites.capped(3)
    untouched = set(before) - {name for matrix in report.compressed for name in matrix.members} - {"tied.weight"}
    assert all(torch.equal(before[name], after[name]) for name in untouched)
