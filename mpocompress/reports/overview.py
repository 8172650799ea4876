"""The overview of an uncompressed checkpoint, from names and shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mpocompress.layers.specs import Skipped
from mpocompress.reports.json_documents import Count, Document, Fraction, Positive
from mpocompress.reports.matrix import Kind, KindSource


@dataclass(frozen=True, slots=True, kw_only=True)
class EligibleTensor:
    """A tensor that can be compressed.

    Args:
        name: name of the tensor.
        layer: path of its module.
        kind: kind of the layer.
        kind_from: source of `kind`, the most certain first: the user, a class recorded in the file, the given model,
            `config.json`, or name and shape.
        shape: shape in the file.
        transposed: whether its rows are inputs.
        dtype: dtype.
        parameters: number of entries.
    """

    name: str
    layer: str
    kind: Kind
    kind_from: KindSource
    shape: tuple[Positive, Positive]
    transposed: bool
    dtype: str
    parameters: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class DtypeTotals:
    """All tensors of one dtype; tied ones count once.

    Args:
        dtype: the dtype.
        tensors: number of tensors.
        parameters: number of entries.
        size_bytes: size.
    """

    dtype: str
    tensors: Positive
    parameters: Count
    size_bytes: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The result of one target as far as shapes determine it.

    Args:
        kind: kind of the target: `bond` or `keep`.
        requested: the bond, or the fraction to keep.
        eligible_parameters_after: number of parameters of the tensors that can be compressed; an upper bound for
            `keep`.
        parameters: number of parameters of the whole model; an upper bound for `keep`.
    """

    kind: str
    requested: Positive | Fraction
    eligible_parameters_after: Count
    parameters: Count


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Overview(Document):
    """Contents of an uncompressed checkpoint, and which of its tensors can be compressed. No weight is read.

    Args:
        tool_version: version of mpocompress that read the file.
        file: name of the file or folder, without the folder it is in.
        container: form of the file, such as `torch-zip`, `safetensors` or `torchscript`; later releases may add
            others.
        key: path of the state dict in the checkpoint; empty if it is the checkpoint itself.
        files: number of files.
        file_size_bytes: size of all files.
        recorded_classes: number of modules whose class is recorded in the file.
        parameters: number of parameters of the whole model; tied tensors count once.
        eligible_parameters: number of parameters of the tensors that can be compressed.
        size_bytes: size of all tensors.
        dtypes: totals by dtype, most bytes first.
        weights: the tensors that can be compressed, in file order.
        skipped: every other tensor, with the reason.
        aliases: tied tensors: a name that is not stored, to the name that holds its values.
        estimates: the result of some targets.
        estimated_sites: site shape of the estimates.
        notes: further notes, as sentences.
    """

    __module__ = "mpocompress"
    FORMAT: ClassVar[str] = "mpocompress-overview"

    tool_version: str
    file: str
    container: str
    key: str
    files: Positive
    file_size_bytes: Count
    recorded_classes: Count
    parameters: Count
    eligible_parameters: Count
    size_bytes: Count
    dtypes: tuple[DtypeTotals, ...]
    weights: tuple[EligibleTensor, ...]
    skipped: tuple[Skipped, ...]
    aliases: Mapping[str, str]
    estimates: tuple[Estimate, ...]
    estimated_sites: str
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the file and how much of it can be compressed."""
        eligible = f"{self.eligible_parameters:,} of {self.parameters:,} parameters can be compressed"
        return f"<Overview: {self.file}, {eligible}>"
