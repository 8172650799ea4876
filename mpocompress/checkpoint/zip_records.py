"""The records of a torch zip: where each lies in the file, that it is whole, and which tensor memory is which."""

from __future__ import annotations

import mmap
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mpocompress.errors import CheckpointError
from mpocompress.text import shown, shown_size

MAX_PICKLE_BYTES = 192 * 2**20
_LOCAL_HEADER_BYTES = 30
_FETCH_AGAIN = "Fetch the file again, or save the model again with torch.save."


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One file inside the archive.

    Args:
        name: its name without the archive's folder, such as `data/0`.
        offset: where its bytes start in the file.
        size_bytes: how many there are.
        crc: the checksum the archive gives for them.
    """

    name: str
    offset: int
    size_bytes: int
    crc: int


class ZipRecords:
    """The records of one torch zip, their bytes mapped into memory.

    Args:
        path: a file that `sniff` found to be a torch zip.

    Raises:
        CheckpointError: records are compressed, encrypted, twice there, or lie outside the file, or the pickle is
            damaged or unreasonably large.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._checked: set[int] = set()
        with path.open("rb") as stream:
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._by_offset = self._scan()
            # torch.save can be told to leave checksums out; then all of them are zero.
            self._has_checksums = any(record.crc for record in self._by_offset.values())
            self._check_description()
        except BaseException:
            self.close()
            raise

    def check(self, offset: int) -> None:
        """Compare the bytes of a record with its checksum, once.

        Args:
            offset: where the record starts.

        Raises:
            CheckpointError: they differ.
        """
        if offset in self._checked:
            return
        record = self._by_offset[offset]
        if self._has_checksums and self._checksum(record) != record.crc:
            raise self._refusal(f"record {shown(record.name)} does not match its checksum", "its data is damaged")
        self._checked.add(offset)

    def locate(self, storages: Mapping[int, int]) -> dict[int, int]:
        """Find the record behind each piece of tensor memory, and that each is exactly as large as claimed.

        torch.load maps the file and hands out slices of the map without saying which record they came from: so all
        addresses lie in the map as the records do in the file, at one distance, which is what is looked for.

        Args:
            storages: address -> bytes, of every non-empty storage torch.load gave.

        Returns:
            Address -> offset of its record.

        Raises:
            CheckpointError: no distance fits: a storage claims another size than its record has.
        """
        if not storages:
            return {}
        records = [
            record for record in self._by_offset.values() if record.name.startswith("data/") and record.size_bytes
        ]
        lowest = min(storages)
        for candidate in sorted(record.offset for record in records)[: len(records) - len(storages) + 1]:
            base = lowest - candidate
            if base % mmap.ALLOCATIONGRANULARITY == 0 and all(
                self._size_at(address - base) == size for address, size in storages.items()
            ):
                return {address: address - base for address in storages}
        raise self._refusal("tensors claim another size than their records have", "it is damaged or made to do harm")

    def close(self) -> None:
        """Let go of the file."""
        self._bytes.close()

    def _scan(self) -> dict[int, Record]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise self._refusal("a zip archive that cannot be listed", "it is cut off or damaged") from error
        prefix = entries[0].filename.partition("/")[0] + "/"
        found: dict[int, Record] = {}
        names: set[str] = set()
        for entry in entries:
            record = self._record(entry, prefix)
            if record.name in names or record.offset in found:
                raise self._refusal(f"record {shown(record.name)} is there twice", "it is unclear which one counts")
            names.add(record.name)
            found[record.offset] = record
        return found

    def _check_description(self) -> None:
        for offset, record in self._by_offset.items():
            if record.name == "data.pkl" and record.size_bytes > MAX_PICKLE_BYTES:
                raise self._refusal(
                    f"{shown_size(record.size_bytes)} of description beside the tensors",
                    f"more than {shown_size(MAX_PICKLE_BYTES)} is never needed",
                )
            if not record.name.startswith("data/"):
                self.check(offset)

    def _record(self, entry: zipfile.ZipInfo, prefix: str) -> Record:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
            raise CheckpointError(
                where=str(self._path),
                found=f"record {shown(entry.filename)} is compressed or encrypted",
                why="torch.save stores records as they are, and only so can they be mapped into memory",
                action="Load the file with torch.load and save it again with torch.save.",
            )
        header = entry.header_offset
        lengths = self._bytes[header + 26 : header + _LOCAL_HEADER_BYTES]
        name_bytes, extra_bytes = int.from_bytes(lengths[:2], "little"), int.from_bytes(lengths[2:], "little")
        offset = header + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        if self._bytes[header : header + 4] != b"PK\x03\x04" or offset + entry.file_size > len(self._bytes):
            raise self._refusal(f"record {shown(entry.filename)} lies outside the file", "it is cut off or damaged")
        return Record(
            name=entry.filename.removeprefix(prefix), offset=offset, size_bytes=entry.file_size, crc=entry.CRC
        )

    def _size_at(self, offset: int) -> int | None:
        record = self._by_offset.get(offset)
        return None if record is None else record.size_bytes

    def _checksum(self, record: Record) -> int:
        with memoryview(self._bytes) as whole, whole[record.offset : record.offset + record.size_bytes] as data:
            return zlib.crc32(data)

    def _refusal(self, found: str, why: str) -> CheckpointError:
        return CheckpointError(where=str(self._path), found=found, why=why, action=_FETCH_AGAIN)
