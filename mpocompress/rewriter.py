"""Between MPOs and the tensors of a checkpoint: cores under their names, and dense weights back from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from mpocompress.checkpoint import Spool, Spooled, TensorInfo
from mpocompress.contraction import has_row_blocks, row_blocks
from mpocompress.errors import CheckpointError, FormatError
from mpocompress.lanczos import LARGE_ENTRIES
from mpocompress.mpo import MPO
from mpocompress.report import MatrixReport, Report
from mpocompress.svd import BLOCK_ENTRIES


def core_name(matrix: str, site: int) -> str:
    """Name of one core in a compressed checkpoint.

    Args:
        matrix: name of the matrix.
        site: number of the site, from 0.

    Returns:
        The name.

    Example:
        >>> core_name("lstm.weight_hh_l0", 1)
        'lstm.weight_hh_l0.core.1'
    """
    return f"{matrix}.core.{site}"


def core_tensors(matrix: str, mpo: MPO) -> dict[str, Tensor]:
    """The cores of an MPO as named tensors.

    Args:
        matrix: name of the matrix.
        mpo: its decomposition.

    Returns:
        Name -> contiguous core of shape (left_bond, row, col, right_bond).
    """
    return {core_name(matrix, site): core.contiguous() for site, core in enumerate(mpo.cores)}


def places_of_cores(matrices: Iterable[MatrixReport], shards: Mapping[str, str]) -> dict[str, str]:
    """Where the tensors of a compressed checkpoint go: cores to the shard of the first member.

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
        names = (core_name(matrix.name, site) for site in range(len(matrix.bonds) + 1))
        places |= dict.fromkeys(names, shards[matrix.members[0]])
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
    matrices: Mapping[str, tuple[MatrixReport, MPO]],
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
        CheckpointError: a tensor that has the name a core would get.
    """
    by_member = {member: entry for entry in matrices.values() for member in entry[0].members}
    for report, mpo in matrices.values():
        taken = next((core for core in core_tensors(report.name, mpo) if core in names), None)
        if taken is not None:
            raise CheckpointError(
                where=taken,
                found="a tensor of this name in the checkpoint",
                why=f"a core of {report.name} would be filed under it",
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
        FormatError: cores that are missing, that contradict the report, or that hold NaN or Inf.
    """
    check_cores(report, names, where=where)
    by_core = {core_name(m.name, site): m for m in report.compressed for site in range(len(m.bonds) + 1)}
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
        FormatError: cores that are missing or of other shapes, or a weight that is there beside its cores.
    """
    by_core = {core_name(m.name, site): m for m in report.compressed for site in range(len(m.bonds) + 1)}
    missing = [name for name in by_core if name not in names]
    if missing:
        raise FormatError(
            where=where,
            found=f"no tensor {missing[0]!r}" + (f", and {len(missing) - 1} more missing" if len(missing) > 1 else ""),
            why="the report says the layer is stored as cores",
            action="The file is damaged or was edited: compress the original checkpoint again.",
        )
    rebuilt = [member for matrix in report.compressed for member in matrix.members]
    taken = next((member for member in rebuilt if member in names), None)
    if taken is not None:
        raise FormatError(
            where=where,
            found=f"both {taken!r} and the cores it is rebuilt from",
            why="a weight is stored once",
            action="The file is damaged or was edited: compress the original checkpoint again.",
        )
    for matrix in report.compressed:
        chain = (1, *matrix.bonds, 1)
        wanted = list(zip(chain, matrix.row_dims, matrix.col_dims, chain[1:], strict=False))
        cores = [names[core_name(matrix.name, site)] for site in range(len(matrix.bonds) + 1)]
        found = [core.shape for core in cores]
        if wanted != found or not all(core.dtype.is_floating_point for core in cores):
            raise FormatError(
                where=f"{where}, {matrix.name}",
                found=f"cores of shapes {found}",
                why=f"the report says {wanted}, floating point",
                action="The file is damaged or was edited: compress the original checkpoint again.",
            )


def stored_mpo(matrix: MatrixReport, read: Callable[[str], Tensor], *, where: str) -> MPO:
    """Read one compressed matrix of a file for which `check_cores` holds.

    Args:
        matrix: its report.
        read: gives a tensor of the file by name.
        where: the file, for messages.

    Returns:
        The MPO, backed by the file.

    Raises:
        FormatError: cores that hold NaN or Inf.
    """
    cores = tuple(read(core_name(matrix.name, site)) for site in range(len(matrix.bonds) + 1))
    if not all(core.isfinite().all() for core in cores):
        raise FormatError(
            where=f"{where}, {matrix.name}",
            found="cores that hold NaN or Inf",
            why="none is ever written",
            action="The file is damaged or was edited: compress the original checkpoint again.",
        )
    return MPO(cores=cores, sites=matrix.sites)


def _members(matrix: MatrixReport, read: Callable[[str], Tensor], where: str) -> Iterator[tuple[str, Tensor]]:
    """The members of one compressed matrix by name, dense."""
    dense = _dense(stored_mpo(matrix, read, where=where), getattr(torch, matrix.source_dtype))
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
