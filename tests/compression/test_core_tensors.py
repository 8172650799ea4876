"""Between MPOs and named tensors: every name once, in place, and back with nothing missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.checkpoint.writing.spool import Spool
from mpocompress.compression.build_report import dense_report
from mpocompress.compression.core_tensors import compressed_tensors, core_tensors, dense_tensors
from mpocompress.errors import FormatError, MPOCompressError
from mpocompress.layers.names import core_name
from mpocompress.layers.specs import MatrixSpec, Member
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import folded
from mpocompress.mpo.tt_svd import factorise
from mpocompress.reports.compression import Report, Source, Totals
from mpocompress.reports.matrix import MatrixReport
from tests.draw import random_matrix


def infos(tensors: dict[str, Tensor], aliases: dict[str, str] | None = None) -> dict[str, TensorInfo]:
    ties = aliases or {}
    named = {**tensors, **{name: tensors[first] for name, first in ties.items()}}
    return {
        name: TensorInfo(
            name=name,
            shape=tuple(tensor.shape),
            dtype=dtype_of(tensor.dtype),
            alias_of=ties.get(name),
        )
        for name, tensor in named.items()
    }


def decomposed(name: str, members: dict[str, Tensor], bond: int, dtype: torch.dtype) -> tuple[MatrixReport, MPO]:
    """A compressed matrix with its report, its figures left at what they are for the dense one."""
    weight = torch.cat(list(members.values()), dim=1)
    rows, cols = weight.shape
    mpo = factorise(weight, folded(rows, cols, 2, 2), bonds=(bond,)).mpo.to(dtype)
    spec = MatrixSpec(
        name=name,
        members=tuple(
            Member(
                name=member, shape=(tensor.shape[0], tensor.shape[1]), dtype=str(tensor.dtype).removeprefix("torch.")
            )
            for member, tensor in members.items()
        ),
    )
    report = dataclasses.replace(
        dense_report("lstm", "lstm", spec, 1.0),
        row_dims=mpo.sites.row_dims,
        col_dims=mpo.sites.col_dims,
        anti_aligned=True,
        bonds=mpo.bonds,
    )
    return report, mpo


def report_of(*matrices: MatrixReport) -> Report:
    return Report(
        tool_version="0",
        source=Source(file="m.pt", sha256="", container="torch-zip", key="", file_size_bytes=0),
        target=None,
        matrices=matrices,
        skipped=(),
        aliases={},
        totals=Totals(
            dense_parameters=0,
            parameters=0,
            eligible_parameters=0,
            eligible_parameters_after=0,
            size_bytes_before=0,
            size_bytes_after=0,
            file_size_bytes_before=0,
            file_size_bytes_after=None,
        ),
    )


def model(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "first": torch.arange(3.0),
        "lstm.weight_ih": random_matrix(16, 4, 0).to(dtype),
        "lstm.weight_hh": random_matrix(16, 6, 1).to(dtype),
        "lstm.bias": torch.arange(4),
        "last": torch.ones(2, 2),
    }


def joint(tensors: dict[str, Tensor], bond: int = 20, dtype: torch.dtype = torch.float32) -> tuple[MatrixReport, MPO]:
    members = {name: tensors[name] for name in ("lstm.weight_ih", "lstm.weight_hh")}
    return decomposed("lstm.weight_joint", members, bond, dtype)


def test_cores_are_named_after_their_matrix_and_contiguous() -> None:
    mpo = MPO.from_cores([torch.ones(4, 3, 1, 1).permute(3, 1, 2, 0), torch.ones(4, 1, 2, 1)])

    cores = core_tensors("fc.weight", mpo)

    assert list(cores) == ["fc.weight.core.0", "fc.weight.core.1"] == [core_name("fc.weight", site) for site in (0, 1)]
    assert all(core.is_contiguous() for core in cores.values())


def test_cores_stand_where_the_first_member_stood() -> None:
    tensors = model()
    report, mpo = joint(tensors)

    stored = compressed_tensors(infos(tensors), {report.name: (report, mpo)}, tensors.__getitem__)

    assert list(stored) == ["first", "lstm.weight_joint.core.0", "lstm.weight_joint.core.1", "lstm.bias", "last"]
    assert stored["lstm.bias"] is tensors["lstm.bias"]


def test_tied_tensors_are_left_out_and_not_read() -> None:
    tensors = model()
    names = infos(tensors, {"twin": "last"})

    stored = compressed_tensors(names, {}, tensors.__getitem__)

    assert list(stored) == list(tensors)


def test_only_what_stays_is_read() -> None:
    tensors = model()
    report, mpo = joint(tensors)
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return tensors[name]

    compressed_tensors(infos(tensors), {report.name: (report, mpo)}, read)

    assert asked == ["first", "lstm.bias", "last"]


@pytest.mark.parametrize("name", ["lstm.weight_joint.core.0", "lstm.weight_joint.core.1"])
def test_a_core_never_takes_the_name_of_another_tensor(name: str) -> None:
    """One of the two would be lost without a word."""
    tensors = {**model(), name: torch.ones(3)}
    report, mpo = joint(tensors)

    with pytest.raises(MPOCompressError, match=name):
        compressed_tensors(infos(tensors), {report.name: (report, mpo)}, tensors.__getitem__)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with Spool(tmp_path / "dense.pt") as made:
        yield made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dense_tensors_come_back_in_their_names_shapes_and_dtypes(
    dtype: torch.dtype, stored: torch.dtype, spool: Spool
) -> None:
    tensors = model(dtype)
    report, mpo = joint(tensors, dtype=stored)
    small = compressed_tensors(infos(tensors), {report.name: (report, mpo)}, tensors.__getitem__)

    dense = dense_tensors(report_of(report), infos(small), small.__getitem__, where="small.pt", spool=spool)

    assert list(dense) == list(tensors)
    for name, tensor in tensors.items():
        assert (dense[name].dtype, dense[name].shape) == (tensor.dtype, tensor.shape)
        assert dense[name].is_contiguous()
        # Both roundings and those of the sweep, of entries up to about 3 that a full bond of 20 multiplies out.
        eps = max(torch.finfo(dtype).eps, torch.finfo(stored).eps)
        assert (dense[name].double() - tensor.double()).abs().max() <= 60 * eps


def test_a_core_that_is_missing_is_said(spool: Spool) -> None:
    tensors = model()
    report, mpo = joint(tensors)
    small = compressed_tensors(infos(tensors), {report.name: (report, mpo)}, tensors.__getitem__)

    del small["lstm.weight_joint.core.1"]
    message = r"small.pt: no tensor 'lstm.weight_joint.core.1'; the report says .* damaged or was edited"
    with pytest.raises(FormatError, match=message):
        dense_tensors(report_of(report), infos(small), small.__getitem__, where="small.pt", spool=spool)
    del small["lstm.weight_joint.core.0"]
    with pytest.raises(FormatError, match=r"no tensor 'lstm.weight_joint.core.0', and 1 more missing"):
        dense_tensors(report_of(report), infos(small), small.__getitem__, where="small.pt", spool=spool)


@pytest.mark.parametrize(
    "core",
    [torch.ones(1, 8, 2, 3), torch.ones(1, 8, 2), torch.ones(2, 8, 1, 16), torch.ones(1, 8, 2, 10, dtype=torch.int32)],
)
def test_a_core_of_another_shape_or_kind_is_refused(core: Tensor, spool: Spool) -> None:
    tensors = model()
    report, mpo = joint(tensors, bond=10)
    small = compressed_tensors(infos(tensors), {report.name: (report, mpo)}, tensors.__getitem__)
    small["lstm.weight_joint.core.0"] = core

    with pytest.raises(
        FormatError, match=r"small.pt, lstm.weight_joint: cores of shapes .*; the report says .*, floating point"
    ):
        dense_tensors(report_of(report), infos(small), small.__getitem__, where="small.pt", spool=spool)


def test_a_member_never_takes_the_name_of_another_tensor(spool: Spool) -> None:
    tensors = model()
    report, mpo = joint(tensors)
    small = compressed_tensors(infos(tensors), {report.name: (report, mpo)}, tensors.__getitem__)
    small["lstm.weight_hh"] = torch.zeros(3)

    with pytest.raises(MPOCompressError, match=r"lstm\.weight_hh"):
        dense_tensors(report_of(report), infos(small), small.__getitem__, where="small.pt", spool=spool)
