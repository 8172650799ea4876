"""Read torch.export archives (.pt2): the weights are one record each, described in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpocompress.checkpoint import dtypes
from mpocompress.checkpoint.checkpoint import TORCH_EXPORT, Checkpoint
from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.forms.zip_records import ZipRecords
from mpocompress.checkpoint.lazy_tensors import LazyTensor, lay_out
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

_WEIGHTS = "data/weights/"
_CONFIG = f"{_WEIGHTS}model_weights_config.json"
_MODEL = "models/model.json"
# Numbers of element types in the schema of torch.export, version 8.
_DTYPES: Mapping[object, DType] = {
    1: dtypes.UINT8,
    2: dtypes.INT8,
    3: dtypes.INT16,
    4: dtypes.INT32,
    5: dtypes.INT64,
    6: dtypes.FLOAT16,
    7: dtypes.FLOAT32,
    8: dtypes.FLOAT64,
    10: dtypes.COMPLEX64,
    11: dtypes.COMPLEX128,
    12: dtypes.BOOL,
    13: dtypes.BFLOAT16,
    28: dtypes.UINT16,
    29: dtypes.FLOAT8_E4M3FN,
    30: dtypes.FLOAT8_E5M2,
    31: dtypes.FLOAT8_E4M3FNUZ,
    32: dtypes.FLOAT8_E5M2FNUZ,
}


def open_torch_export(path: Path, key: str | None) -> Checkpoint:
    """Open a torch.export archive; neither its program nor any other code in it is run.

    Args:
        path: a torch.export archive, according to `sniff`.
        key: must be None or "": its weights are at the top.

    Raises:
        CheckpointError: it is damaged, holds several programs, or describes its weights in an unknown way.
    """
    where = str(path)
    records = ZipRecords(path)
    if _CONFIG not in records:
        raise CheckpointError(
            where=where,
            found="a torch.export archive without the weights of a model named 'model'",
            why="this release reads archives of one exported program, as torch.export.save writes them since 2.7",
            action="Load it with torch.export.load and save its state dict: torch.save(program.state_dict, ...).",
        )
    return open_contents(
        {name: _tensor(entry, records, where) for name, entry in _weights(records, where)},
        path=path,
        container=TORCH_EXPORT,
        key=key,
        classes=_classes(records, where),
        notes=("its weights are read; the program and its constants are not carried over",),
    )


def _weights(records: ZipRecords, where: str) -> list[tuple[str, Any]]:
    config = _json(records, _CONFIG, where)
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise _unknown(where, f"{_CONFIG} without its entries")
    return list(entries.items())


def _tensor(entry: Any, records: ZipRecords, where: str) -> LazyTensor:
    try:
        meta = entry["tensor_meta"]
        dtype = _DTYPES[meta["dtype"]]
        size, stride = (tuple(dim["as_int"] for dim in meta[part]) for part in ("sizes", "strides"))
        offset = meta["storage_offset"]["as_int"]
        record = records.record(f"{_WEIGHTS}{entry['path_name']}")
        if entry["use_pickle"] is not False:
            raise TypeError
    except (KeyError, TypeError, IndexError) as error:
        raise _unknown(where, f"a weight described by {shown(json.dumps(entry))}") from error
    return lay_out(records.storage(record, dtype), dtype, offset, size, stride, where)


def _classes(records: ZipRecords, where: str) -> dict[str, str]:
    """Path -> class of the modules in the program, from the origin recorded for each of its nodes."""
    classes: dict[str, str] = {}
    program = _json(records, _MODEL, where) if _MODEL in records else {}
    try:
        nodes = program["graph_module"]["graph"]["nodes"]
        stacks = {node["metadata"].get("nn_module_stack", "") for node in nodes}
        for step in (step for stack in stacks for step in stack.split(";")):
            _, path, class_name = step.split(",", 2) if step.count(",") >= 2 else ("", "", "")
            if class_name:
                classes[path] = class_name
    except (KeyError, TypeError, AttributeError):
        return {}  # another version of the schema
    return classes


def _json(records: ZipRecords, name: str, where: str) -> Any:
    try:
        return json.loads(records.read(name))
    except (ValueError, RecursionError) as error:
        raise _unknown(where, f"{name} is not JSON") from error


def _unknown(where: str, found: str) -> CheckpointError:
    return CheckpointError(
        where=where,
        found=found,
        why="the archive is damaged, or written by a version of torch.export that this release does not support",
        action="Load it with torch.export.load and save its state dict: torch.save(program.state_dict, ...).",
    )
