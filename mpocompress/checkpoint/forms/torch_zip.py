"""Reading the zip files that torch.save and torch.jit.save write."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import torch

from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.contents.structure import tensors_in
from mpocompress.checkpoint.forms.zip_records import ZipRecords
from mpocompress.checkpoint.pickles.builders import builder
from mpocompress.checkpoint.pickles.reader import read_pickle
from mpocompress.checkpoint.pickles.values import Global
from mpocompress.checkpoint.protocol import TORCH_ZIP, TORCHSCRIPT, Checkpoint
from mpocompress.checkpoint.storages import Storage, mapped, native, part, place_in, storage_dtype
from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size


def open_torch_zip(path: Path, key: str | None, *, container: str = TORCH_ZIP) -> Checkpoint:
    """Open a zip file written by torch.save, running nothing from it.

    Args:
        path: a file that `sniff` found to be a torch zip, or a TorchScript archive.
        key: where the state dict is; None to find it.
        container: which of the two it is.

    Returns:
        The open checkpoint.

    Raises:
        CheckpointError: the file is damaged, or has no clear state dict.
        FormatError: it is marked as ours but not laid out like it.
    """
    records = ZipRecords(path)
    try:
        storages = _Storages(path, records)
        pickle = io.BytesIO(records.read("data.pkl"))
        root = read_pickle(pickle, str(path), build=builder(str(path)), fetch=storages.fetch)
        if container == TORCHSCRIPT and next(tensors_in(root), None) is None:
            raise CheckpointError(
                where=str(path),
                found="a TorchScript archive without parameters",
                why="it was frozen, or traced from a function: its weights are constants of the program",
                action="Compress the module as it was before torch.jit.freeze, or its state dict.",
            )
        big_endian = "byteorder" in records and records.read("byteorder").strip() == b"big"

        def read(tensor: torch.Tensor) -> torch.Tensor:
            storages.check(tensor)
            return native(tensor, turned=big_endian)

        return open_contents(
            root,
            path=path,
            container=container,
            key=key,
            read=read,
            close=records.close,
            place=partial(place_in, storages.file, turned=big_endian),
        )
    except BaseException:
        records.close()
        raise


open_torchscript = partial(open_torch_zip, container=TORCHSCRIPT)


class _Storages:
    """The memory that the pickle of an archive refers to: one record each."""

    def __init__(self, path: Path, records: ZipRecords) -> None:
        self._where = str(path)
        self.file = mapped(path)
        self._records = records
        self._by_id: dict[tuple[str, torch.dtype], Storage] = {}
        self._names: dict[int, str] = {}

    def fetch(self, persistent_id: object) -> Storage:
        """Give the storage that a persistent id of torch.save stands for."""
        match persistent_id:
            case ("storage", Global(name=class_name), str(record), str(), int(count), *_):
                dtype = storage_dtype(class_name)
            case _:
                raise TypeError("a persistent id that torch.save does not write")
        if dtype is None:
            raise TypeError(f"memory of class {class_name}")
        if (record, dtype) not in self._by_id:
            self._by_id[record, dtype] = Storage(memory=self._memory(record, count * dtype.itemsize), dtype=dtype)
        return self._by_id[record, dtype]

    def check(self, tensor: torch.Tensor) -> None:
        """Check the bytes behind a tensor."""
        memory = tensor.untyped_storage()
        if memory.nbytes():
            self._records.check(self._names[memory.data_ptr()])

    def _memory(self, name: str, claimed: int) -> torch.UntypedStorage:
        record = self._records.record(f"data/{name}")
        if record.size_bytes != claimed:
            raise CheckpointError(
                where=self._where,
                found=f"a tensor claims {shown_size(claimed)} and its record {shown(record.name)} has"
                f" {shown_size(record.size_bytes)}",
                why="it is damaged or made to do harm",
                action="Fetch the file again, or save the model again with torch.save.",
            )
        memory = part(self.file, record.offset, claimed)
        self._names[memory.data_ptr()] = record.name
        return memory
