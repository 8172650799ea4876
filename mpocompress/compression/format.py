"""Between MPOs and the tensors of a checkpoint: cores under their names, and dense weights back from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from mpocompress.checkpoint import dtypes
from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.checkpoint.writing.spool import Spool, Spooled
from mpocompress.errors import CheckpointError, FormatError
from mpocompress.layers.names import core_name, scale_name
from mpocompress.mpo.contraction import has_row_blocks, row_blocks
from mpocompress.mpo.lanczos import LARGE_ENTRIES
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import LARGEST_CODE, QuantisedMPO, channels, restore
from mpocompress.mpo.svd import BLOCK_ENTRIES
from mpocompress.reports.compression import INT8, MatrixReport, Report


def core_tensors(matrix: str, mpo: MPO | QuantisedMPO) -> dict[str, Tensor]:
    """The cores of an MPO as named tensors, each with its scales behind it where it has any.

    Args:
        matrix: name of the matrix.
        mpo: its decomposition.

    Returns:
        Name -> contiguous core of shape (left_bond, row, col, right_bond), or its scales.
    """
    if isinstance(mpo, MPO):
        return {core_name(matrix, site): core.contiguous() for site, core in enumerate(mpo.cores)}
    tensors: dict[str, Tensor] = {}
    for site, (codes, scale) in enumerate(zip(mpo.codes, mpo.scales, strict=True)):
        name = core_name(matrix, site)
        tensors |= {name: codes.contiguous(), scale_name(name): scale}
    return tensors


def places_of_cores(matrices: Iterable[MatrixReport], shards: Mapping[str, str]) -> dict[str, str]:
    """Where the tensors of a compressed checkpoint go: cores and scales to the shard of the first member.

    Args:
        matrices: the compressed matrices.
        shards: name -> shard, of the original; empty where there are none.

    Returns:
        Name -> shard, the original names kept.

    Example:
        >>> places_of_cores((), {"fc.bias": "a"})
        {'fc.bias': 'a'}
    """
    places = dict(shards)
    for matrix in matrices if shards else ():
        places |= dict.fromkeys(_names(matrix), shards[matrix.members[0]])
    return places


def places_of_members(matrices: Iterable[MatrixReport], shards: Mapping[str, str]) -> dict[str, str]:
    """Where the tensors of an expanded checkpoint go: members to the shard of their first core.

    Args:
        matrices: the compressed matrices.
        shards: name -> shard, of the compressed checkpoint; empty where there are none.

    Returns:
        Name -> shard, the names of cores kept.

    Example:
        >>> places_of_members((), {"fc.bias": "a"})
        {'fc.bias': 'a'}
    """
    places = dict(shards)
    for matrix in matrices if shards else ():
        places |= dict.fromkeys(matrix.members, shards.get(core_name(matrix.name, 0), ""))
    return places


def compressed_tensors(
    names: Mapping[str, TensorInfo],
    matrices: Mapping[str, tuple[MatrixReport, MPO | QuantisedMPO]],
    read: Callable[[str], Tensor],
    changed: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """The tensors of a compressed checkpoint: cores where the first member stood, everything else as it was.

    Args:
        names: the tensors of the original checkpoint, in file order.
        matrices: compressed matrices with their decompositions, by matrix name.
        read: gives an original tensor by name.
        changed: tensors that have other values now.

    Returns:
        Name -> tensor, in file order, tied tensors left out.

    Raises:
        CheckpointError: a tensor that has a name which belongs to a core or its scales.
    """
    by_member = {member: entry for entry in matrices.values() for member in entry[0].members}
    for report, _ in matrices.values():
        reserved = (*report.core_names, *map(scale_name, report.core_names))
        taken = next((name for name in reserved if name in names), None)
        if taken is not None:
            raise CheckpointError(
                where=taken,
                found="a tensor of this name in the checkpoint",
                why=f"the name belongs to the cores of {report.name}",
                action=f"Rename it, or leave {report.name} out.",
            )
    tensors: dict[str, Tensor] = {}
    for name, info in names.items():
        if info.alias_of is not None:
            continue
        if name not in by_member:
            tensors[name] = changed[name] if name in changed else read(name)
            continue
        report, mpo = by_member[name]
        tensors.update(core_tensors(report.name, mpo))
    return tensors


def dense_tensors(
    report: Report,
    names: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    *,
    where: str,
    spool: Spool,
) -> dict[str, Tensor]:
    """The tensors of an ordinary dense checkpoint: every matrix multiplied out and cut into its members again.

    Args:
        report: the report inside the compressed file.
        names: the tensors of the compressed file, in file order.
        read: gives one of them by name.
        where: the file, for messages.
        spool: where rebuilt weights go, one at a time.

    Returns:
        Name -> tensor under the original names, in the original dtypes; tied tensors left out. Rebuilt ones are mapped
        from the spool.

    Raises:
        FormatError: cores or scales that are missing, that contradict the report, or that hold NaN or Inf.
    """
    check_cores(report, names, where=where)
    by_core = {name: matrix for matrix in report.compressed for name in _names(matrix)}
    tensors: dict[str, Tensor | Spooled] = {}
    for name, info in names.items():
        matrix = by_core.get(name)
        if matrix is None:
            if info.alias_of is None:
                tensors[name] = read(name)
        elif matrix.members[0] not in tensors:
            tensors.update((member, spool.add(part)) for member, part in _members(matrix, read, where))
    return {name: spool.tensor(held) if isinstance(held, Spooled) else held for name, held in tensors.items()}


def check_cores(report: Report, names: Mapping[str, TensorInfo], *, where: str) -> None:
    """Refuse a compressed file whose tensors are not those its report tells of; none is read.

    Args:
        report: the report inside the file.
        names: the tensors of the file.
        where: the file, for messages.

    Raises:
        FormatError: cores or scales that are missing or of other shapes, or what may not be there beside them.
    """
    missing = [name for matrix in report.compressed for name in _names(matrix) if name not in names]
    if missing:
        raise _damaged(
            where,
            f"no tensor {missing[0]!r}" + (f", and {len(missing) - 1} more missing" if len(missing) > 1 else ""),
            "the report says the layer is stored as cores",
        )
    rebuilt = [member for matrix in report.compressed for member in matrix.members]
    taken = next((member for member in rebuilt if member in names), None)
    if taken is not None:
        raise _damaged(where, f"both {taken!r} and the cores it is rebuilt from", "a weight is stored once")
    for matrix in report.compressed:
        _check_shapes(matrix, names, f"{where}, {matrix.name}")


def _check_shapes(matrix: MatrixReport, names: Mapping[str, TensorInfo], where: str) -> None:
    """Refuse cores and scales of other shapes or dtypes than the report says."""
    quantised, chain = bool(matrix.scale_names), (1, *matrix.bonds, 1)
    wanted = list(zip(chain, matrix.row_dims, matrix.col_dims, chain[1:], strict=False))
    cores = [names[name] for name in matrix.core_names]
    found = [core.shape for core in cores]
    fit = all(core.dtype == dtypes.INT8 if quantised else core.dtype.is_floating_point for core in cores)
    if wanted != found or not fit:
        kind = INT8 if quantised else "floating point"
        raise _damaged(where, f"cores of shapes {found}", f"the report says {wanted}, {kind}")
    scales = [names[name] for name in map(scale_name, matrix.core_names) if name in names]
    counts = [(count,) for count in channels(matrix.bonds)] if quantised else []
    if counts != [scale.shape for scale in scales] or not all(scale.dtype == dtypes.FLOAT32 for scale in scales):
        raise _damaged(
            where,
            f"scales of shapes {[scale.shape for scale in scales]}",
            f"cores in {matrix.dtype} have {f'{counts}, float32' if quantised else 'none'}",
        )


def stored_mpo(matrix: MatrixReport, read: Callable[[str], Tensor], *, where: str) -> MPO:
    """Read one compressed matrix of a file for which `check_cores` holds.

    Args:
        matrix: its report.
        read: gives a tensor of the file by name.
        where: the file, for messages.

    Returns:
        The MPO, its cores floating: backed by the file, or restored from int8 in float32.

    Raises:
        FormatError: cores or scales that hold NaN or Inf, or numbers that no quantisation gives.
    """
    cores, scales = (tuple(map(read, names)) for names in (matrix.core_names, matrix.scale_names))
    mpo = MPO(cores=cores, sites=matrix.sites)
    if scales:
        mpo = restore(QuantisedMPO(codes=cores, scales=scales, sites=matrix.sites))
    flaws = {
        "scales that are not all positive and finite": any(not (s.isfinite() & (s > 0)).all() for s in scales),
        f"codes below {-LARGEST_CODE}": bool(scales) and any((core < -LARGEST_CODE).any() for core in cores),
        "cores that hold NaN or Inf": not all(core.isfinite().all() for core in mpo.cores),
    }
    for found in (flaw for flaw, holds in flaws.items() if holds):
        raise _damaged(f"{where}, {matrix.name}", found, "none is ever written")
    return mpo


def _names(matrix: MatrixReport) -> tuple[str, ...]:
    """The tensors of a file that stand for a matrix."""
    return (*matrix.core_names, *matrix.scale_names)


def _damaged(where: str, found: str, why: str) -> FormatError:
    return FormatError(
        where=where,
        found=found,
        why=why,
        action="The file is damaged or was edited: compress the original checkpoint again.",
    )


def _members(matrix: MatrixReport, read: Callable[[str], Tensor], where: str) -> Iterator[tuple[str, Tensor]]:
    """The members of one compressed matrix by name, dense."""
    dense = _dense(stored_mpo(matrix, read, where=where), torch_dtype(matrix.source_dtype))
    parts = torch.split(dense, list(matrix.member_columns), dim=1)
    yield from zip(matrix.members, (part.T if matrix.transposed else part for part in parts), strict=True)


def _dense(mpo: MPO, dtype: torch.dtype) -> Tensor:
    """The dense matrix in a dtype, multiplied out in float32 at least; a large one some rows at a time."""
    precise = mpo.to(torch.promote_types(mpo.cores[0].dtype, torch.float32))
    if math.prod(mpo.shape) <= LARGE_ENTRIES or not has_row_blocks(mpo.sites):
        return precise.to_matrix().to(dtype)
    dense = torch.empty(mpo.shape, dtype=dtype)
    for start, block in row_blocks(precise.cores, mpo.sites, BLOCK_ENTRIES):
        dense[start : start + len(block)] = block
    return dense


def _shards(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Tensor -> shard; empty where all are in one file."""
    return checkpoint.layout.shards if checkpoint.layout is not None else {}
