"""Build the report of a saved model from that of its compression: its names, dtypes and sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mpocompress._version import __version__
from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.checkpoint.dtypes import DTYPES
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.layers.names import JOINT, core_name
from mpocompress.layers.specs import Skipped, member_shapes
from mpocompress.modules.provenance import Provenance
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
class SavedWeight:
    """An MPO weight of a model that is saved.

    Args:
        weight: the weight.
        provenance: its origin.
        paths: its paths in the model; the cores are stored under the first one.
    """

    weight: MPOWeight
    provenance: Provenance
    paths: tuple[str, ...]

    @property
    def path(self) -> str:
        """The path that the cores are stored under."""
        return self.paths[0]

    def core_names(self, path: str) -> list[str]:
        """Return the names of its cores at one of its paths."""
        return [core_name(path, site) for site in range(len(self.weight.cores))]

    def tied_core_names(self) -> set[str]:
        """Return the names of its cores at all paths but the first."""
        return {name for path in self.paths[1:] for name in self.core_names(path)}

    def prefixes(self) -> Iterator[tuple[str, str]]:
        """Return the prefix of the name in the file and the prefix in the model that leave the same end; or nothing."""
        old = self.provenance.stored_name.split(".")
        pairs = []
        for path in self.paths:
            new = path.split(".")
            same = next(
                (count for count, (a, b) in enumerate(zip(old[::-1], new[::-1], strict=False)) if a != b),
                min(len(old), len(new)),
            )
            pairs.append(
                (same, "".join(f"{part}." for part in old[:-same]), "".join(f"{part}." for part in new[:-same]))
            )
        same, before, after = max(pairs)
        if same:
            yield before, after

    def members(self, path: str) -> tuple[str, ...]:
        """Return the names of the dense weights at one of its paths."""
        head, joint, tail = path.rpartition(JOINT)
        parts = ("weight_ih", "weight_hh") if joint and len(self.provenance.matrix.members) > 1 else (joint,)
        return tuple(f"{head}{part}{tail}" for part in parts)


def updated_report(
    weights: Sequence[SavedWeight],
    infos: Mapping[str, TensorInfo],
    tensors: Mapping[str, Tensor],
    notes: tuple[str, ...],
) -> Report:
    """Return the report of a compression with the names, dtypes and sums of a model that is saved.

    Args:
        weights: the MPO weights of the model, all from one compression.
        infos: every tensor of its state dict.
        tensors: the tensors that are stored, in order.
        notes: notes to add.

    Returns:
        The report. Errors are those of the truncation.
    """
    before = weights[0].provenance.report
    prefixes = tuple(dict.fromkeys(pair for weight in weights for pair in weight.prefixes()))
    compressed = {name: weight for weight in weights for name in weight.core_names(weight.path)}
    dense = _dense_matrices(before, prefixes, tensors)
    matrices: dict[str, MatrixReport] = {}
    for name in tensors:
        if name in compressed:
            matrices.setdefault(compressed[name].path, _matrix_report(compressed[name]))
        elif name in dense:
            matrices.setdefault(name, dense[name])
    eligible = {member for matrix in matrices.values() for member in matrix.members}
    reasons = {tensor.name: tensor.reason for tensor in before.skipped}
    skipped = (
        Skipped(
            name=name,
            shape=tuple(tensor.shape),
            reason=next((reasons[old] for old in _old_names(name, prefixes) if old in reasons), ADDED),
        )
        for name, tensor in tensors.items()
        if name not in compressed and name not in eligible
    )
    rounded = (ROUNDED,) if any(weight.provenance.matrix.dtype == INT8 for weight in weights) else ()
    return dataclasses.replace(
        before,
        tool_version=__version__,
        matrices=tuple(matrices.values()),
        skipped=tuple(skipped),
        aliases=_aliases(weights, infos, tensors),
        totals=_totals(before, tuple(matrices.values()), tensors),
        notes=(*(note for note in before.notes if note != SAVED), *rounded, SAVED, *notes),
    )


def _aliases(
    weights: Sequence[SavedWeight], infos: Mapping[str, TensorInfo], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """Return the tied names: of tensors, and of the dense weights of shared cores."""
    cores = {name for weight in weights for name in weight.tied_core_names()}
    aliases = {
        name: info.alias_of
        for name, info in infos.items()
        if info.alias_of is not None and name not in tensors and name not in cores
    }
    for weight in weights:
        for path in weight.paths[1:]:
            aliases.update(zip(weight.members(path), weight.members(weight.path), strict=True))
    return aliases


def _old_names(name: str, prefixes: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Return the possible names of a tensor in the file."""
    return (old + name.removeprefix(new) for old, new in prefixes if name.startswith(new))


def _dense_matrices(
    before: Report, prefixes: Sequence[tuple[str, str]], tensors: Mapping[str, Tensor]
) -> dict[str, MatrixReport]:
    """Return the matrices that were kept dense and are in the model, by the names of their first members there."""
    matrices = {}
    for old, new in prefixes:
        for matrix in before.matrices:
            if matrix.is_compressed or not all(member.startswith(old) for member in matrix.members):
                continue
            names = tuple(new + member.removeprefix(old) for member in matrix.members)
            dtypes = {dtype_of(tensors[name].dtype).name for name in names if name in tensors}
            shapes = [tuple(tensors[name].shape) for name in names if name in tensors]
            if shapes == list(member_shapes(matrix).values()) and len(dtypes) == 1:
                (dtype,) = dtypes
                if dtype in FLOAT_DTYPES:
                    layer = names[0].rpartition(".")[0]
                    matrices[names[0]] = dataclasses.replace(
                        matrix, name=names[0], layer=layer, members=names, source_dtype=dtype, dtype=dtype
                    )
    return matrices


def _totals(before: Report, matrices: Sequence[MatrixReport], tensors: Mapping[str, Tensor]) -> Totals:
    after = sum(tensor.numel() for tensor in tensors.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    eligible = sum(matrix.dense_parameters for matrix in matrices)
    eligible_after = sum(matrix.parameters for matrix in matrices)
    dense_size = sum(matrix.dense_parameters * DTYPES[matrix.source_dtype].itemsize for matrix in matrices)
    stored_size = sum(matrix.parameters * DTYPES[matrix.dtype].itemsize for matrix in matrices)
    return dataclasses.replace(
        before.totals,
        dense_parameters=after + eligible - eligible_after,
        parameters=after,
        eligible_parameters=eligible,
        eligible_parameters_after=eligible_after,
        size_bytes_before=size + dense_size - stored_size,
        size_bytes_after=size,
        file_size_bytes_after=None,
    )


def _matrix_report(saved: SavedWeight) -> MatrixReport:
    """Return the report of a compressed matrix, with its name and dtype in the model."""
    before, weight = saved.provenance.matrix, saved.weight
    dtype = dtype_of(weight.dtype).name
    report = dataclasses.replace(
        before,
        name=saved.path,
        layer=saved.path.rpartition(".")[0],
        members=saved.members(saved.path),
        bonds=weight.bonds,
        parameters=weight.parameter_count,
        dtype=dtype,
    )
    if dtype == before.dtype:
        return report
    # The error that rounding to another dtype added was never measured: that of the truncation remains.
    discarded = sum(before.discarded_weights)
    error = (discarded / before.squared_norm) ** 0.5 if before.squared_norm else 0.0
    return dataclasses.replace(report, rounding_weight=0.0, relative_error=error)
