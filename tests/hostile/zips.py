"""Zip archives whose directory lies, whose records are damaged, or that hold far too much."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path

import torch

from tests.checkpoint.files import flip_byte, rezip
from tests.hostile.files import archive, edited, saved, weights
from tests.hostile.registry import Cases

cases = Cases()

CENTRAL = b"PK\x01\x02"
LOCAL = b"PK\x03\x04"
END = b"PK\x05\x06"


def rewritten(folder: Path) -> Path:
    """A good file whose zip was written by Python, without padding and zip64 records, which is easier to edit."""
    torch.save(weights(), folder / "good")
    rezip(folder / "good", folder / "model.pt")
    (folder / "good").unlink()
    return folder / "model.pt"


def patched(path: Path, record: str, mark: bytes, offset: int, value: bytes) -> Path:
    """A zip with a field of one record's header replaced: local or central, by its mark."""
    data = bytearray(path.read_bytes())
    name = record.encode()
    header_bytes = 30 if mark == LOCAL else 46
    start = data.find(mark)
    while data[start + header_bytes : start + header_bytes + len("good/" + record)] != b"good/" + name:
        start = data.find(mark, start + 1)
        assert start >= 0
    data[start + offset : start + offset + len(value)] = value
    path.write_bytes(data)
    return path


@cases.refused("a storage that claims more than its record", "claim|reaches beyond|smaller|another size|has")
def claims_more(folder: Path, canary: Path) -> Path:
    return edited(folder, weights(), b"cpuq\x06M\x00\x10", b"cpuq\x06M\x00\x20")


@cases.refused("a storage without its record", "record|damaged|listed")
def without_record(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist() if not name.endswith("data/0")}
    return archive(folder, records)


@cases.refused("a record that is there twice", "is listed twice")
def twice(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    with zipfile.ZipFile(path, "a") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target.writestr("good/data/0", bytes(64 * 64 * 4))
    return path


@cases.refused("two descriptions", "is listed twice")
def two_descriptions(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    with zipfile.ZipFile(path, "a") as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        target.writestr("good/data.pkl", b"\x80\x02}.")
    return path


@cases.refused("compressed records", "is compressed or encrypted")
def compressed(folder: Path, canary: Path) -> Path:
    torch.save(weights(), folder / "good")
    rezip(folder / "good", folder / "model.pt", deflate=True)
    (folder / "good").unlink()
    return folder / "model.pt"


@cases.harmless("a record that no tensor uses, compressed a thousand times", "fc.weight")
def bomb(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr("good/data/7", bytes(50_000_000))
    return path


@cases.refused("a record marked as encrypted", "is compressed or encrypted")
def encrypted(folder: Path, canary: Path) -> Path:
    return patched(rewritten(folder), "data/0", CENTRAL, 8, b"\x01\0")


@cases.harmless("a method of compression in the local header only", "fc.weight")
def local_method(folder: Path, canary: Path) -> Path:
    return patched(rewritten(folder), "data/0", LOCAL, 8, b"\x08\0")


@cases.harmless("another name in the local header", "fc.weight")
def local_name(folder: Path, canary: Path) -> Path:
    return patched(rewritten(folder), "data/0", LOCAL, 30, b"evil/")


@cases.refused("a local header that leads into another record", "disagree|local|damaged|outside|twice|checksum")
def local_extra(folder: Path, canary: Path) -> Path:
    return patched(rewritten(folder), "data/0", LOCAL, 28, b"\x40\0")


@cases.refused("two records at one place", "twice|overlap|disagree|another name|claim")
def same_place(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    with zipfile.ZipFile(path) as source:
        place = source.getinfo("good/data/0").header_offset
    return patched(path, "data/1", CENTRAL, 42, struct.pack("<I", place))


@cases.refused("a size that reaches to the end of the file and beyond", "outside the file|listed|damaged|claim|archive")
def beyond(folder: Path, canary: Path) -> Path:
    return patched(rewritten(folder), "data/0", CENTRAL, 20, struct.pack("<II", 2**31 - 1, 2**31 - 1))


@cases.refused("sizes that differ, compressed and not", "compressed|differ|outside|damaged|claim|disagree")
def two_sizes(folder: Path, canary: Path) -> Path:
    return patched(rewritten(folder), "data/0", CENTRAL, 20, struct.pack("<I", 5))


@cases.refused("a place before the start of the file", "damaged|outside|archive")
def before_start(folder: Path, canary: Path) -> Path:
    return patched(rewritten(folder), "data/0", CENTRAL, 42, struct.pack("<I", 2**32 - 2))


@cases.refused("a directory of more entries than there are", "damaged|truncated|archive")
def entries_lie(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    data = bytearray(path.read_bytes())
    start = data.rfind(END)
    data[start + 12 : start + 16] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    return path


@cases.refused("a zip64 directory far outside of the file", "damaged|truncated|archive")
def zip64_place(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    data = path.read_bytes()
    start = data.rfind(END)
    directory = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 9, 9, 2**62, 2**62)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start, 1)
    path.write_bytes(data[:start] + directory + locator + data[start:])
    return path


@cases.refused("a zip64 size of a record of an exabyte", "outside the file|damaged|truncated|archive|claim")
def zip64_size(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    data = bytearray(path.read_bytes())
    start = data.find(CENTRAL)
    while data[start + 46 : start + 57] != b"good/data/0":
        start = data.find(CENTRAL, start + 1)
    extra = struct.pack("<HHQQ", 1, 16, 2**60, 2**60)
    data[start + 20 : start + 28] = b"\xff" * 8
    data[start + 30 : start + 32] = struct.pack("<H", len(extra))
    data[start + 57 : start + 57] = extra
    end = data.rfind(END)
    size = struct.unpack_from("<I", data, end + 12)[0]
    data[end + 12 : end + 16] = struct.pack("<I", size + len(extra))
    path.write_bytes(data)
    return path


for record in ("data.pkl", "byteorder"):

    @cases.refused(f"a flipped bit in {record}", f"record {record} does not match its checksum")
    def flipped(folder: Path, canary: Path, record: str = record) -> Path:
        flip_byte(saved(folder, weights()), record)
        return folder / "model.pt"


@cases.refused("a flipped bit in a tensor", "record data/0 does not match its checksum")
def flipped_tensor(folder: Path, canary: Path) -> Path:
    flip_byte(saved(folder, weights()), "data/0")
    return folder / "model.pt"


@cases.refused("a zip cut off in its directory", "without its end|truncated")
def cut_off(folder: Path, canary: Path) -> Path:
    path = saved(folder, weights())
    path.write_bytes(path.read_bytes()[:-60])
    return path


@cases.refused("a zip of 300,000 empty records", "records|twice|zip archive")
def many_records(folder: Path, canary: Path) -> Path:
    count = 300_000
    local, central = io.BytesIO(), io.BytesIO()
    for number in range(count):
        name = b"a/%d" % number
        central.write(
            struct.pack(
                "<4s4B4HL2L5H2L", CENTRAL, 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, len(name), *(0,) * 5, local.tell()
            )
            + name
        )
        local.write(struct.pack("<4s2B4HL2L2H", LOCAL, 20, 0, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name)
    directory = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, central.tell(), local.tell())
    place = local.tell() + central.tell()
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, place, 1)
    end = struct.pack("<4s4H2LH", END, 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    (folder / "model.pt").write_bytes(local.getvalue() + central.getvalue() + directory + locator + end)
    return folder / "model.pt"


@cases.harmless("records that no tensor uses", "fc.weight")
def unused(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("good/data/unused", b"x" * 5000)
    return path


@cases.harmless("records named to land elsewhere", "fc.weight")
def named_elsewhere(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    with zipfile.ZipFile(path, "a") as target:
        for name in ("../../canary", str(canary), "good/../../../canary", "C:\\canary"):
            target.writestr(name, b"x")
    return path


@cases.harmless("code among the records", "fc.weight")
def code_beside(folder: Path, canary: Path) -> Path:
    path = rewritten(folder)
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("good/code/__init__.py", f"open({str(canary)!r}, 'w').close()")
    return path
