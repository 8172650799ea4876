"""Reading torch.export archives (.pt2): the weights lie there one record each, described in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.forms.zip_records import ZipRecords
from mpocompress.checkpoint.protocol import TORCH_EXPORT, Checkpoint
from mpocompress.checkpoint.storages import Storage, mapped, native, part, place_in, tensor_over
from mpocompress.errors import CheckpointError
from mpocompress.text import shown

_WEIGHTS = "data/weights/"
_CONFIG = f"{_WEIGHTS}model_weights_config.json"
_MODEL = "models/model.json"
# Numbers of element types in the schema of torch.export, version 8.
_DTYPES: Mapping[object, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
}


def open_torch_export(path: Path, key: str | None) -> Checkpoint:
    """Open a torch.export archive; neither its program nor anything else in it is run.

    Args:
        path: a file that `sniff` found to be one.
        key: must be None or "": its weights are at the top.

    Returns:
        The open checkpoint.

    Raises:
        CheckpointError: it is damaged, holds several programs, or describes its weights in an unknown way.
    """
    where = str(path)
    records = ZipRecords(path)
    try:
        if _CONFIG not in records:
            raise CheckpointError(
                where=where,
                found="a torch.export archive without the weights of a model named 'model'",
                why="this release reads archives of one exported program, as torch.export.save writes them since 2.7",
                action="Load it with torch.export.load and save its state dict: torch.save(program.state_dict, ...).",
            )
        names: dict[int, str] = {}
        file = mapped(path)
        tensors = {name: _tensor(entry, records, file, names, where) for name, entry in _weights(records, where)}

        def read(tensor: torch.Tensor) -> torch.Tensor:
            memory = tensor.untyped_storage()
            if memory.nbytes():
                records.check(names[memory.data_ptr()])
            return native(tensor)

        return open_contents(
            tensors,
            path=path,
            container=TORCH_EXPORT,
            key=key,
            read=read,
            close=records.close,
            classes=_classes(records, where),
            place=partial(place_in, file),
            notes=("its weights are taken; the program and its constants are not carried over",),
        )
    except BaseException:
        records.close()
        raise


def _weights(records: ZipRecords, where: str) -> list[tuple[str, Any]]:
    config = _json(records, _CONFIG, where)
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise _unknown(where, f"{_CONFIG} without its entries")
    return list(entries.items())


def _tensor(
    entry: Any, records: ZipRecords, file: torch.UntypedStorage, names: dict[int, str], where: str
) -> torch.Tensor:
    try:
        meta = entry["tensor_meta"]
        dtype = _DTYPES[meta["dtype"]]
        size, stride = (tuple(dim["as_int"] for dim in meta[part_]) for part_ in ("sizes", "strides"))
        offset = meta["storage_offset"]["as_int"]
        record = records.record(f"{_WEIGHTS}{entry['path_name']}")
        if entry["use_pickle"] is not False:
            raise TypeError
    except (KeyError, TypeError, IndexError) as error:
        raise _unknown(where, f"a weight described by {shown(json.dumps(entry))}") from error
    memory = part(file, record.offset, record.size_bytes)
    names[memory.data_ptr()] = record.name
    return tensor_over(Storage(memory=memory, dtype=dtype), dtype, offset, size, stride, where)


def _classes(records: ZipRecords, where: str) -> dict[str, str]:
    """Path -> class of the modules that the program passes through, from what its nodes say of their origin."""
    found: dict[str, str] = {}
    program = _json(records, _MODEL, where) if _MODEL in records else {}
    try:
        nodes = program["graph_module"]["graph"]["nodes"]
        stacks = {node["metadata"].get("nn_module_stack", "") for node in nodes}
        for step in (step for stack in stacks for step in stack.split(";")):
            _, path, class_name = step.split(",", 2) if step.count(",") >= 2 else ("", "", "")
            if class_name:
                found[path] = class_name
    except (KeyError, TypeError, AttributeError):
        return {}  # it says less than the current version does
    return found


def _json(records: ZipRecords, name: str, where: str) -> Any:
    try:
        return json.loads(records.read(name))
    except (ValueError, RecursionError) as error:
        raise _unknown(where, f"{name} is no JSON") from error


def _unknown(where: str, found: str) -> CheckpointError:
    return CheckpointError(
        where=where,
        found=found,
        why="the archive is damaged, or written by a version of torch.export that is not known here",
        action="Load it with torch.export.load and save its state dict: torch.save(program.state_dict, ...).",
    )
