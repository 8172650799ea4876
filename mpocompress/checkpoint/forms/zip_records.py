"""The records of a torch zip: where each lies in the file, and that it is whole."""

from __future__ import annotations

import mmap
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size

MAX_PICKLE_BYTES = 192 * 2**20
_LOCAL_HEADER_BYTES = 30
_CENTRAL_HEADER_BYTES = 46
_ENCRYPTED = 0x1
_CHECKSUM_BEHIND = 0x8
_FETCH_AGAIN = "Fetch the file again, or save the model again with torch.save."


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One file inside the archive.

    Args:
        name: its name without the archive's folder, such as `data/0`.
        offset: where its bytes start in the file.
        size_bytes: how many there are.
        crc: the checksum the archive gives for them.
        stored: whether they lie there as they are, neither compressed nor encrypted.
    """

    name: str
    offset: int
    size_bytes: int
    crc: int
    stored: bool


class ZipRecords:
    """The records of one torch zip, their bytes mapped into memory.

    Args:
        path: a file that `sniff` found to be a torch zip.

    Raises:
        CheckpointError: records are there twice, or lie outside the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked: set[str] = set()
        with path.open("rb") as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._by_name = self._scan()
            # torch.save can be told to leave checksums out; then all of them are zero.
            self._has_checksums = any(record.crc for record in self._by_name.values())
        except BaseException:
            self.close()
            raise

    def record(self, name: str) -> Record:
        """Find a record that is stored as it is.

        Args:
            name: its name.

        Returns:
            The record.

        Raises:
            CheckpointError: there is none, or it is compressed or encrypted.
        """
        record = self._by_name.get(name)
        if record is None:
            raise self._refusal(f"record {shown(name)} is missing", "it is cut off, damaged or made to do harm")
        if not record.stored:
            raise CheckpointError(
                where=str(self._path),
                found=f"record {shown(name)} is compressed or encrypted",
                why="torch.save stores records as they are, and only so can they be mapped into memory",
                action="Load the file with torch.load and save it again with torch.save.",
            )
        return record

    def read(self, name: str) -> bytes:
        """Read a record that describes tensors, checked.

        Args:
            name: its name.

        Returns:
            Its bytes.

        Raises:
            CheckpointError: it is missing, damaged, or larger than descriptions are.
        """
        record = self.record(name)
        if record.size_bytes > MAX_PICKLE_BYTES:
            raise self._refusal(
                f"{shown_size(record.size_bytes)} of description beside the tensors",
                f"more than {shown_size(MAX_PICKLE_BYTES)} is never needed",
            )
        self.check(name)
        return self._bytes[record.offset : record.offset + record.size_bytes]

    def check(self, name: str) -> None:
        """Compare the bytes of a record with its checksum, once.

        Args:
            name: its name.

        Raises:
            CheckpointError: they differ, or there is no such record.
        """
        if name in self._checked:
            return
        record = self.record(name)
        if self._has_checksums and self._checksum(record) != record.crc:
            raise self._refusal(f"record {shown(record.name)} does not match its checksum", "its data is damaged")
        self._checked.add(name)

    def __contains__(self, name: object) -> bool:
        """Tell whether there is a record of this name."""
        return name in self._by_name

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in the order of the archive."""
        return iter(self._by_name)

    def close(self) -> None:
        """Let go of the file."""
        self._bytes.close()

    def _scan(self) -> dict[str, Record]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise self._refusal("a zip archive that cannot be listed", "it is cut off or damaged") from error
        prefix = entries[0].filename.partition("/")[0] + "/"
        found: dict[str, Record] = {}
        offsets: set[int] = set()
        for entry in entries:
            record = self._record(entry, prefix)
            if record.name in found or record.offset in offsets:
                raise self._refusal(f"record {shown(record.name)} is there twice", "it is unclear which one counts")
            offsets.add(record.offset)
            found[record.name] = record
        return found

    def _record(self, entry: zipfile.ZipInfo, prefix: str) -> Record:
        header = entry.header_offset
        offset = _data_offset(self._bytes, header)
        stored = entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & _ENCRYPTED
        lies = stored and entry.file_size != entry.compress_size
        if self._bytes[header : header + 4] != b"PK\x03\x04" or offset + entry.compress_size > len(self._bytes) or lies:
            raise self._refusal(f"record {shown(entry.filename)} lies outside the file", "it is cut off or damaged")
        return Record(
            name=entry.filename.removeprefix(prefix),
            offset=offset,
            size_bytes=entry.file_size,
            crc=entry.CRC,
            stored=stored,
        )

    def _checksum(self, record: Record) -> int:
        with memoryview(self._bytes) as whole, whole[record.offset : record.offset + record.size_bytes] as data:
            return zlib.crc32(data)

    def _refusal(self, found: str, why: str) -> CheckpointError:
        return CheckpointError(where=str(self._path), found=found, why=why, action=_FETCH_AGAIN)


def is_zip(path: Path) -> bool:
    """Tell whether a file is a zip archive.

    Args:
        path: the file.

    Returns:
        Whether it ends like one.
    """
    return zipfile.is_zipfile(path)


def renew_checksums(path: Path, offsets: Sequence[int]) -> None:
    """Write the checksums of records anew, after their bytes were changed where they lie.

    Args:
        path: a zip whose records are stored as they are; changed in place.
        offsets: positions in the file that were written to.
    """
    touched = sorted(offsets)
    with zipfile.ZipFile(path) as archive:
        entries, position = archive.infolist(), archive.start_dir  # entries lie there in this order
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
    """Where the bytes of a record start, behind its local header."""
    lengths = archive[header + 26 : header + _LOCAL_HEADER_BYTES]
    return header + _LOCAL_HEADER_BYTES + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
