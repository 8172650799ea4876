"""A checkpoint as its names and shapes show it, as plain numbers: what it holds, and what could be compressed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from mpocompress.layers.specs import Skipped
from mpocompress.reports.documents import fields_of

OVERVIEW_FORMAT, OVERVIEW_VERSION = "mpocompress-overview", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A tensor that can be compressed.

    Args:
        name: its name.
        layer: path of its module.
        kind: what the layer is: `lstm`, `lstm_cell`, `linear` or `conv1d`.
        kind_from: from where that is known: `as asked`, `recorded class`, `model`, `config` or `name and shape`.
        shape: its shape in the file.
        transposed: whether its rows are inputs.
        dtype: its dtype.
        parameters: its entries.
    """

    name: str
    layer: str
    kind: str
    kind_from: str
    shape: tuple[int, int]
    transposed: bool
    dtype: str
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The tensors of one dtype; tied ones count once.

    Args:
        dtype: the dtype.
        tensors: how many there are.
        parameters: their entries.
        size_bytes: their bytes.
    """

    dtype: str
    tensors: int
    parameters: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a target would leave, as far as that is known without reading a weight.

    Args:
        kind: `bond` or `keep`.
        asked: the bond, or the fraction.
        eligible_parameters_after: parameters of the weights that can be compressed; at most so many for `keep`.
        parameters: parameters of the whole model.
    """

    kind: str
    asked: float
    eligible_parameters_after: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What an ordinary checkpoint is and holds, and what of it could be compressed. No weight is read for it.

    Args:
        tool_version: version of mpocompress that looked.
        file: name of the file, without the folder.
        container: the kind of file.
        key: where the state dict sits in it; empty for the top.
        files: number of files.
        file_size_bytes: bytes of all files.
        recorded_classes: number of modules whose class the file records.
        parameters: of the whole model; tied tensors count once.
        eligible_parameters: of the weights that can be compressed.
        size_bytes: bytes of all tensors.
        dtypes: what it holds, by dtype, most bytes first.
        weights: the tensors that can be compressed, in file order.
        skipped: every other tensor, with the reason.
        aliases: tied tensors, name -> the name that holds the values.
        estimates: what some targets would leave.
        estimated_sites: the site shape that bonds are counted in.
        notes: what else the reader should know, a sentence each.
    """

    tool_version: str
    file: str
    container: str
    key: str
    files: int
    file_size_bytes: int
    recorded_classes: int
    parameters: int
    eligible_parameters: int
    size_bytes: int
    dtypes: tuple[Held, ...]
    weights: tuple[Weight, ...]
    skipped: tuple[Skipped, ...]
    aliases: Mapping[str, str]
    estimates: tuple[Estimate, ...]
    estimated_sites: str
    notes: tuple[str, ...] = ()

    def to_json(self, *, indent: int | None = None) -> str:
        """The overview as a JSON document; its schema is `mpocompress/reports/schema/overview-1.json`.

        Args:
            indent: spaces to indent by, or None for one line.

        Returns:
            The document.
        """
        document = {"format": OVERVIEW_FORMAT, "version": OVERVIEW_VERSION, **fields_of(self)}
        return json.dumps(document, indent=indent, allow_nan=False)
