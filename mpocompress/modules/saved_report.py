"""The report of a compression made new for a model as it is now: its names, its dtypes, its sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpocompress._version import __version__
from mpocompress.checkpoint import TensorInfo
from mpocompress.layers.names import JOINT, core_name
from mpocompress.layers.specs import Skipped
from mpocompress.modules.provenance import Record
from mpocompress.nn import MPOWeight
from mpocompress.reports.compression import Report, Totals
from mpocompress.reports.matrix import FLOAT_DTYPES, INT8, MatrixReport

SAVED = (
    "Saved from a model in memory: errors are those of the truncation, and weights may have been trained since; "
    "what the original file held beside the weights is not in it."
)
ROUNDED = "Some cores had been rounded to int8; what that added is not in the errors."
ADDED = "not in the checkpoint that was compressed"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A weight made of cores in a model.

    Args:
        weight: the weight.
        record: where it came from.
        paths: where it is, the first one being what its cores are filed under.
    """

    weight: MPOWeight
    record: Record
    paths: tuple[str, ...]

    def core_names(self, path: str) -> list[str]:
        """The names of its cores at one of its places."""
        return [core_name(path, site) for site in range(len(self.weight.cores))]

    def prefixes(self) -> Iterator[tuple[str, str]]:
        """What the names in the file began with, and those in the model begin with: what follows is the same."""
        old = self.record.place.split(".")
        tails = []
        for path in self.paths:
            new = path.split(".")
            same = next(
                (n for n, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b),
                min(len(old), len(new)),
            )
            tails.append(
                (same, "".join(f"{part}." for part in old[:-same]), "".join(f"{part}." for part in new[:-same]))
            )
        same, before, after = max(tails)
        if same:
            yield before, after

    def members(self, path: str) -> tuple[str, ...]:
        """The names of the dense weights at one of its places."""
        head, joint, tail = path.rpartition(JOINT)
        parts = ("weight_ih", "weight_hh") if joint and len(self.record.matrix.members) > 1 else (joint,)
        return tuple(f"{head}{part}{tail}" for part in parts)


def renewed_report(
    found: Sequence[Found],
    infos: Mapping[str, TensorInfo],
    tensors: Mapping[str, Tensor],
    notes: tuple[str, ...],
) -> Report:
    """The report of a compression, for a model that holds what came of it.

    Args:
        found: its weights made of cores, all of one compression.
        infos: every tensor of its state dict.
        tensors: those that are stored, in order.
        notes: what the reader should know.

    Returns:
        The report. Errors stay those of the truncation.
    """
    before = found[0].record.report
    prefixes = tuple(dict.fromkeys(pair for one in found for pair in one.prefixes()))
    compressed = {name: one for one in found for name in one.core_names(one.paths[0])}
    dense = _dense_matrices(before, prefixes, tensors)
    matrices: dict[str, MatrixReport] = {}
    for name in tensors:
        if name in compressed:
            matrices.setdefault(compressed[name].paths[0], _matrix(compressed[name]))
        elif name in dense:
            matrices.setdefault(name, dense[name])
    eligible = {member for matrix in matrices.values() for member in matrix.members}
    reasons = {one.name: one.reason for one in before.skipped}
    skipped = (
        Skipped(
            name=name,
            shape=tuple(tensor.shape),
            reason=next((reasons[old] for old in _old_names(name, prefixes) if old in reasons), ADDED),
        )
        for name, tensor in tensors.items()
        if name not in compressed and name not in eligible
    )
    rounded = (ROUNDED,) if any(one.record.matrix.dtype == INT8 for one in found) else ()
    return dataclasses.replace(
        before,
        tool_version=__version__,
        matrices=tuple(matrices.values()),
        skipped=tuple(skipped),
        aliases=_aliases(found, infos, tensors),
        totals=_totals(before, tuple(matrices.values()), tensors),
        notes=(*(note for note in before.notes if note != SAVED), *rounded, SAVED, *notes),
    )


def _aliases(found: Sequence[Found], infos: Mapping[str, TensorInfo], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tied names: of tensors, and of the dense weights that shared cores stand for."""
    cores = {core for one in found for place in one.paths[1:] for core in one.core_names(place)}
    aliases = {
        name: info.alias_of
        for name, info in infos.items()
        if info.alias_of is not None and name not in tensors and name not in cores
    }
    for one in found:
        for place in one.paths[1:]:
            aliases.update(zip(one.members(place), one.members(one.paths[0]), strict=True))
    return aliases


def _old_names(name: str, prefixes: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What a tensor may have been called in the file."""
    return (old + name.removeprefix(new) for old, new in prefixes if name.startswith(new))


def _dense_matrices(
    before: Report, prefixes: Sequence[tuple[str, str]], tensors: Mapping[str, Tensor]
) -> dict[str, MatrixReport]:
    """The matrices that were kept dense and are in the model, by the names of their first members there."""
    found = {}
    for old, new in prefixes:
        for matrix in before.matrices:
            if matrix.is_compressed or not all(member.startswith(old) for member in matrix.members):
                continue
            names = tuple(new + member.removeprefix(old) for member in matrix.members)
            dtypes = {str(tensors[name].dtype).removeprefix("torch.") for name in names if name in tensors}
            shapes = [(matrix.shape[0], columns) for columns in matrix.member_columns]
            wanted = [shape[::-1] if matrix.transposed else shape for shape in shapes]
            if wanted == [tuple(tensors[name].shape) for name in names if name in tensors] and len(dtypes) == 1:
                (dtype,) = dtypes
                if dtype in FLOAT_DTYPES:
                    layer = names[0].rpartition(".")[0]
                    found[names[0]] = dataclasses.replace(
                        matrix, name=names[0], layer=layer, members=names, source_dtype=dtype, dtype=dtype
                    )
    return found


def _totals(before: Report, matrices: Sequence[MatrixReport], tensors: Mapping[str, Tensor]) -> Totals:
    after = sum(tensor.numel() for tensor in tensors.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    eligible, eligible_after = (
        sum(counts) for counts in zip(*((m.dense_parameters, m.parameters) for m in matrices), strict=True)
    )
    dense = sum(m.dense_parameters * getattr(torch, m.source_dtype).itemsize for m in matrices)
    kept = sum(m.parameters * getattr(torch, m.dtype).itemsize for m in matrices)
    return dataclasses.replace(
        before.totals,
        dense_parameters=after + eligible - eligible_after,
        parameters=after,
        eligible_parameters=eligible,
        eligible_parameters_after=eligible_after,
        size_bytes_before=size + dense - kept,
        size_bytes_after=size,
        file_size_bytes_after=None,
    )


def _matrix(one: Found) -> MatrixReport:
    """The report of a compressed matrix, under its name and in its dtype here."""
    old, path, weight = one.record.matrix, one.paths[0], one.weight
    dtype = str(weight.dtype).removeprefix("torch.")
    new = dataclasses.replace(
        old,
        name=path,
        layer=path.rpartition(".")[0],
        members=one.members(path),
        bonds=weight.bonds,
        parameters=weight.parameter_count,
        dtype=dtype,
    )
    if dtype == old.dtype:
        return new
    # What rounding to another dtype added was never measured: what is left is the error of the truncation.
    lost = sum(old.discarded_weights)
    error = (lost / old.squared_norm) ** 0.5 if old.squared_norm else 0.0
    return dataclasses.replace(new, rounding_weight=0.0, relative_error=error)
