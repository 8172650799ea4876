"""Read the zip files that torch.save and torch.jit.save write."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

from mpocompress.checkpoint.checkpoint import TORCH_ZIP, TORCHSCRIPT, Checkpoint
from mpocompress.checkpoint.contents.opening import open_contents
from mpocompress.checkpoint.contents.structure import tensors_in
from mpocompress.checkpoint.forms.zip_records import ZipRecords
from mpocompress.checkpoint.pickles.builders import builder
from mpocompress.checkpoint.pickles.reader import read_pickle
from mpocompress.checkpoint.pickles.values import Global
from mpocompress.checkpoint.storages import Storage, storage_dtype
from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size


def open_torch_zip(path: Path, key: str | None, *, container: str = TORCH_ZIP) -> Checkpoint:
    """Open a zip file written by torch.save; no code from it is run.

    Args:
        path: a torch zip or a TorchScript archive, according to `sniff`.
        key: position of the state dict; None to find it.
        container: which of the two it is.

    Raises:
        CheckpointError: the file is damaged, or has no unambiguous state dict.
        FormatError: it is marked as ours but not laid out like it.
    """
    records = ZipRecords(path)
    storages = _Storages(str(path), records)
    pickle = io.BytesIO(records.read("data.pkl"))
    root = read_pickle(pickle, str(path), build=builder(str(path)), fetch=storages.fetch)
    if container == TORCHSCRIPT and next(tensors_in(root), None) is None:
        raise CheckpointError(
            where=str(path),
            found="a TorchScript archive without parameters",
            why="it was frozen, or traced from a function: its weights are constants of the program",
            action="Compress the module before torch.jit.freeze, or its state dict.",
        )
    return open_contents(root, path=path, container=container, key=key)


open_torchscript = partial(open_torch_zip, container=TORCHSCRIPT)


class _Storages:
    """The storages that the pickle of an archive refers to: one record each."""

    def __init__(self, where: str, records: ZipRecords) -> None:
        self._where = where
        self._records = records
        self._swapped = "byteorder" in records and records.read("byteorder").strip() == b"big"
        self._by_id: dict[tuple[str, str], Storage] = {}

    def fetch(self, persistent_id: object) -> Storage:
        """Return the storage for a persistent id of torch.save."""
        match persistent_id:
            case ("storage", Global(name=class_name), str(name), str(), int(count), *_):
                dtype = storage_dtype(class_name)
            case _:
                raise TypeError("a persistent id that torch.save does not write")
        if dtype is None:
            raise TypeError(f"a storage of class {class_name}")
        if (name, dtype.name) not in self._by_id:
            record = self._records.record(f"data/{name}")
            claimed = count * dtype.itemsize
            if record.size_bytes != claimed:
                raise CheckpointError(
                    where=self._where,
                    found=f"a tensor claims {shown_size(claimed)} and its record {shown(record.name)} has"
                    f" {shown_size(record.size_bytes)}",
                    why="the file is damaged or malicious",
                    action="Download the file again, or save the model again with torch.save.",
                )
            self._by_id[name, dtype.name] = self._records.storage(record, dtype, swapped=self._swapped)
        return self._by_id[name, dtype.name]
