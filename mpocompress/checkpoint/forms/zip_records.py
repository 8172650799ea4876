"""The records of a torch zip: their positions in the file, and their checksums."""

from __future__ import annotations

import mmap
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mpocompress.checkpoint.dtypes import DType
from mpocompress.checkpoint.storages import InputFile, Storage
from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size

MAX_PICKLE_BYTES = 192 * 2**20
_LOCAL_HEADER_BYTES = 30
_CENTRAL_HEADER_BYTES = 46
_ENCRYPTED = 0x1
_CHECKSUM_BEHIND = 0x8
_DOWNLOAD_AGAIN = "Download the file again, or save the model again with torch.save."


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One file inside the archive.

    Args:
        name: name without the archive's folder, such as `data/0`.
        offset: position of its first byte in the file.
        size_bytes: number of bytes.
        crc: checksum recorded in the archive.
        stored: whether its bytes are in the file unchanged, neither compressed nor encrypted.
    """

    name: str
    offset: int
    size_bytes: int
    crc: int
    stored: bool


class ZipRecords:
    """The records of one torch zip, mapped into memory.

    Args:
        path: a torch zip, according to `sniff`.

    Raises:
        CheckpointError: records are listed twice, or lie outside the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = InputFile(path)
        self._checked: set[str] = set()
        with self._file.mapped() as archive:
            self._by_name = self._scan(archive)
        # torch.save has an option to omit checksums; then all of them are zero.
        self._has_checksums = any(record.crc for record in self._by_name.values())

    def record(self, name: str) -> Record:
        """Return a record that is stored unchanged.

        Raises:
            CheckpointError: there is none, or it is compressed or encrypted.
        """
        record = self._by_name.get(name)
        if record is None:
            raise self._refusal(f"record {shown(name)} is missing", "the file is truncated, damaged or malicious")
        if not record.stored:
            raise CheckpointError(
                where=str(self._path),
                found=f"record {shown(name)} is compressed or encrypted",
                why="only records that are stored unchanged, as torch.save does, can be mapped into memory",
                action="Load the file with torch.load and save it again with torch.save.",
            )
        return record

    def storage(self, record: Record, dtype: DType, *, swapped: bool = False) -> Storage:
        """Return the bytes of a record as a storage, which compares them with the checksum before they are used.

        Args:
            record: a record of this archive.
            dtype: element type.
            swapped: whether the bytes of every element are in the order of the other kind of processor.
        """
        return Storage(
            buffer=self._file,
            offset=record.offset,
            size_bytes=record.size_bytes,
            dtype=dtype,
            swapped=swapped,
            check=partial(self._check, record.name),
        )

    def read(self, name: str) -> bytes:
        """Return the bytes of a record that describes tensors, checked.

        Raises:
            CheckpointError: it is missing, damaged, or larger than any description.
        """
        record = self.record(name)
        if record.size_bytes > MAX_PICKLE_BYTES:
            raise self._refusal(
                f"{shown_size(record.size_bytes)} of description beside the tensors",
                f"no model needs more than {shown_size(MAX_PICKLE_BYTES)}",
            )
        with self._file.mapped() as archive:
            data = archive[record.offset : record.offset + record.size_bytes]
        self._check(name, data)
        return data

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a record of this name."""
        return name in self._by_name

    def _scan(self, content: mmap.mmap) -> dict[str, Record]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise self._refusal("a zip archive that cannot be listed", "the file is truncated or damaged") from error
        prefix = entries[0].filename.partition("/")[0] + "/"
        records: dict[str, Record] = {}
        offsets: set[int] = set()
        for entry in entries:
            record = self._record(entry, prefix, content)
            if record.name in records or record.offset in offsets:
                raise self._refusal(f"record {shown(record.name)} is listed twice", "the archive is ambiguous")
            offsets.add(record.offset)
            records[record.name] = record
        return records

    def _record(self, entry: zipfile.ZipInfo, prefix: str, content: mmap.mmap) -> Record:
        header = entry.header_offset
        offset = _data_offset(content, header)
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & _ENCRYPTED
        inconsistent = stored and entry.file_size != entry.compress_size
        beyond = offset + entry.compress_size > len(content)
        if content[header : header + 4] != b"PK\x03\x04" or beyond or inconsistent:
            raise self._refusal(
                f"record {shown(entry.filename)} lies outside the file", "the file is truncated or damaged"
            )
        return Record(
            name=entry.filename.removeprefix(prefix),
            offset=offset,
            size_bytes=entry.file_size,
            crc=entry.CRC,
            stored=stored,
        )

    def _check(self, name: str, data: bytes | memoryview) -> None:
        """Compare the bytes of a record with its checksum, once."""
        if name in self._checked:
            return
        if self._has_checksums and zlib.crc32(data) != self._by_name[name].crc:
            raise self._refusal(f"record {shown(name)} does not match its checksum", "its data is damaged")
        self._checked.add(name)

    def _refusal(self, found: str, why: str) -> CheckpointError:
        return CheckpointError(where=str(self._path), found=found, why=why, action=_DOWNLOAD_AGAIN)


def is_zip(path: Path) -> bool:
    """Tell whether a file ends like a zip archive."""
    return zipfile.is_zipfile(path)


def update_checksums(path: Path, offsets: Sequence[int]) -> None:
    """Write new checksums for records whose bytes were overwritten.

    Args:
        path: a zip whose records are stored unchanged; modified in place.
        offsets: positions in the file that were written to.
    """
    touched = sorted(offsets)
    with zipfile.ZipFile(path) as archive:
        entries, position = archive.infolist(), archive.start_dir  # entries are in this order
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as whole:
        for entry in entries:
            start = _data_offset(whole, entry.header_offset)
            end = start + entry.compress_size
            if entry.CRC and bisect_left(touched, start) < bisect_left(touched, end):
                with memoryview(whole) as view, view[start:end] as data:
                    checksum = zlib.crc32(data).to_bytes(4, "little")
                whole[position + 16 : position + 20] = checksum
                if entry.flag_bits & _CHECKSUM_BEHIND:
                    behind = end + 4 if whole[end : end + 4] == b"PK\x07\x08" else end
                    whole[behind : behind + 4] = checksum
                else:
                    whole[entry.header_offset + 14 : entry.header_offset + 18] = checksum
            lengths = (whole[position + at : position + at + 2] for at in (28, 30, 32))
            position += _CENTRAL_HEADER_BYTES + sum(int.from_bytes(length, "little") for length in lengths)


def _data_offset(archive: mmap.mmap, header: int) -> int:
    """Position of the bytes of a record, after its local header."""
    lengths = archive[header + 26 : header + _LOCAL_HEADER_BYTES]
    return header + _LOCAL_HEADER_BYTES + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
