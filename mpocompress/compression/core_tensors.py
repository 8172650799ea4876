"""Convert between MPOs and the tensors of a compressed file: cores under their names, and dense weights from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from mpocompress.checkpoint import dtypes
from mpocompress.checkpoint.checkpoint import Checkpoint, TensorInfo
from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.checkpoint.writing.spool import Spool, Spooled
from mpocompress.errors import CheckpointError, FormatError
from mpocompress.layers.names import core_name, scale_name
from mpocompress.layers.specs import split_members
from mpocompress.mpo.contraction import has_row_blocks, row_blocks
from mpocompress.mpo.lanczos import LARGE_ENTRIES
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import LARGEST_CODE, QuantisedMPO, channels, restore
from mpocompress.mpo.svd import BLOCK_ENTRIES
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import INT8, MatrixReport


def core_tensors(matrix: str, mpo: MPO | QuantisedMPO) -> dict[str, Tensor]:
    """Return the cores of an MPO as named tensors, each followed by its scales if it has any.

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


def shards_of(checkpoint: Checkpoint) -> Mapping[str, str]:
    """Return the shard of every tensor; empty if all are in one file.

    Args:
        checkpoint: the checkpoint.
    """
    return checkpoint.layout.shards if checkpoint.layout is not None else {}


def shards_of_cores(matrices: Iterable[MatrixReport], shards: Mapping[str, str]) -> dict[str, str]:
    """Return the shard of every tensor of a compressed checkpoint: cores and scales go to that of the first member.

    Args:
        matrices: the compressed matrices.
        shards: name -> shard, of the original; empty if it has no shards.

    Returns:
        Name -> shard; the original names are kept.

    Example:
        >>> shards_of_cores((), {"fc.bias": "a"})
        {'fc.bias': 'a'}
    """
    placed = dict(shards)
    for matrix in matrices if shards else ():
        placed |= dict.fromkeys(_stored_names(matrix), shards[matrix.members[0]])
    return placed


def shards_of_members(matrices: Iterable[MatrixReport], shards: Mapping[str, str]) -> dict[str, str]:
    """Return the shard of every tensor of an expanded checkpoint: members go to that of their first core.

    Args:
        matrices: the compressed matrices.
        shards: name -> shard, of the compressed checkpoint; empty if it has no shards.

    Returns:
        Name -> shard; the names of cores are kept.

    Example:
        >>> shards_of_members((), {"fc.bias": "a"})
        {'fc.bias': 'a'}
    """
    placed = dict(shards)
    for matrix in matrices if shards else ():
        placed |= dict.fromkeys(matrix.members, shards.get(core_name(matrix.name, 0), ""))
    return placed


def compressed_tensors(
    infos: Mapping[str, TensorInfo],
    matrices: Mapping[str, tuple[MatrixReport, MPO | QuantisedMPO]],
    read: Callable[[str], Tensor],
    biases: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Return the tensors of a compressed checkpoint: cores at the place of the first member, all else unchanged.

    Args:
        infos: the tensors of the original checkpoint, in file order.
        matrices: the compressed matrices with their decompositions, by matrix name.
        read: returns an original tensor by name.
        biases: tensors with new values.

    Returns:
        Name -> tensor, in file order, without tied tensors.

    Raises:
        CheckpointError: a tensor has the name of a core or of its scales.
    """
    by_member = {member: entry for entry in matrices.values() for member in entry[0].members}
    for report, _ in matrices.values():
        reserved = (*report.core_names, *map(scale_name, report.core_names))
        taken = next((name for name in reserved if name in infos), None)
        if taken is not None:
            raise CheckpointError(
                where=taken,
                found="a tensor of this name in the checkpoint",
                why=f"the name is reserved for the cores of {report.name}",
                action=f"Rename it, or exclude {report.name}.",
            )
    tensors: dict[str, Tensor] = {}
    for name, info in infos.items():
        if info.alias_of is not None:
            continue
        if name not in by_member:
            tensors[name] = biases[name] if name in biases else read(name)
            continue
        report, mpo = by_member[name]
        tensors.update(core_tensors(report.name, mpo))
    return tensors


def dense_tensors(
    report: Report,
    infos: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    *,
    where: str,
    spool: Spool,
) -> dict[str, Tensor]:
    """Return the tensors of a dense checkpoint: every matrix contracted and split into its members.

    Args:
        report: the report inside the compressed file.
        infos: the tensors of the compressed file, in file order.
        read: returns one of them by name.
        where: the file, for messages.
        spool: the spool that takes the dense weights, one at a time.

    Returns:
        Name -> tensor under the original names, in the original dtypes, without tied tensors. Dense weights are mapped
        from the spool.

    Raises:
        FormatError: cores or scales that are missing, contradict the report, or hold NaN or Inf.
    """
    check_cores(report, infos, where=where)
    by_core = {name: matrix for matrix in report.compressed for name in _stored_names(matrix)}
    tensors: dict[str, Tensor | Spooled] = {}
    for name, info in infos.items():
        matrix = by_core.get(name)
        if matrix is None:
            if info.alias_of is None:
                tensors[name] = read(name)
        elif matrix.members[0] not in tensors:
            mpo = stored_mpo(matrix, read, where=where)
            dense = _dense(mpo, torch_dtype(matrix.source_dtype))
            tensors.update((member, spool.add(part)) for member, part in split_members(dense, matrix).items())
    return {name: spool.tensor(held) if isinstance(held, Spooled) else held for name, held in tensors.items()}


def _dense(mpo: MPO, dtype: torch.dtype) -> Tensor:
    """Contract an MPO to the dense matrix in a dtype, computing in float32 at least; a large one by blocks of rows."""
    if math.prod(mpo.shape) <= LARGE_ENTRIES or not has_row_blocks(mpo.sites):
        return mpo.to_matrix(precise=True).to(dtype)
    dense = torch.empty(mpo.shape, dtype=dtype)
    for start, block in row_blocks(mpo.precise().cores, mpo.sites, BLOCK_ENTRIES):
        dense[start : start + len(block)] = block
    return dense


def check_cores(report: Report, infos: Mapping[str, TensorInfo], *, where: str) -> None:
    """Refuse a compressed file whose tensors contradict its report; no tensor is read.

    Args:
        report: the report inside the file.
        infos: the tensors of the file.
        where: the file, for messages.

    Raises:
        FormatError: cores or scales that are missing or have other shapes, or a dense weight beside its cores.
    """
    missing = [name for matrix in report.compressed for name in _stored_names(matrix) if name not in infos]
    if missing:
        raise _damaged(
            where,
            f"no tensor {missing[0]!r}" + (f", and {len(missing) - 1} more missing" if len(missing) > 1 else ""),
            "the report says that the layer is stored as cores",
        )
    members = [member for matrix in report.compressed for member in matrix.members]
    taken = next((member for member in members if member in infos), None)
    if taken is not None:
        raise _damaged(where, f"both {taken!r} and its cores", "a weight is stored once")
    for matrix in report.compressed:
        _check_shapes(matrix, infos, f"{where}, {matrix.name}")


def _check_shapes(matrix: MatrixReport, infos: Mapping[str, TensorInfo], where: str) -> None:
    """Refuse cores and scales whose shapes or dtypes contradict the report."""
    is_quantised, chain = bool(matrix.scale_names), (1, *matrix.bonds, 1)
    expected = list(zip(chain, matrix.row_dims, matrix.col_dims, chain[1:], strict=False))
    cores = [infos[name] for name in matrix.core_names]
    shapes = [core.shape for core in cores]
    fit = all(core.dtype == dtypes.INT8 if is_quantised else core.dtype.is_floating_point for core in cores)
    if expected != shapes or not fit:
        kind = INT8 if is_quantised else "floating point"
        raise _damaged(where, f"cores of shapes {shapes}", f"the report says {expected}, {kind}")
    scales = [infos[name] for name in map(scale_name, matrix.core_names) if name in infos]
    counts = [(count,) for count in channels(matrix.bonds)] if is_quantised else []
    if counts != [scale.shape for scale in scales] or not all(scale.dtype == dtypes.FLOAT32 for scale in scales):
        raise _damaged(
            where,
            f"scales of shapes {[scale.shape for scale in scales]}",
            f"cores in {matrix.dtype} have {f'{counts}, float32' if is_quantised else 'none'}",
        )


def stored_mpo(matrix: MatrixReport, read: Callable[[str], Tensor], *, where: str) -> MPO:
    """Read one compressed matrix of a file that `check_cores` accepts.

    Args:
        matrix: its report.
        read: returns a tensor of the file by name.
        where: the file, for messages.

    Returns:
        The MPO, with floating cores: backed by the file, or restored from int8 in float32.

    Raises:
        FormatError: cores or scales that hold NaN or Inf, or numbers that quantisation cannot give.
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
    flaw = next((flaw for flaw, is_present in flaws.items() if is_present), None)
    if flaw is not None:
        raise _damaged(f"{where}, {matrix.name}", flaw, "mpocompress never writes such values")
    return mpo


def _stored_names(matrix: MatrixReport) -> tuple[str, ...]:
    """Return the names of the cores and scales of a matrix."""
    return (*matrix.core_names, *matrix.scale_names)


def _damaged(where: str, found: str, why: str) -> FormatError:
    return FormatError(
        where=where,
        found=found,
        why=why,
        action="The file is damaged or was edited: compress the original checkpoint again.",
    )
