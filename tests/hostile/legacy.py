"""The form of torch before 1.6, damaged and lying in each of its parts."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from pathlib import Path

from tests.hostile.files import saved, weights
from tests.hostile.registry import Cases

cases = Cases()


def whole(folder: Path) -> bytes:
    """A good file."""
    data = saved(folder, weights(), _use_new_zipfile_serialization=False).read_bytes()
    (folder / "model.pt").unlink()
    return data


def written(folder: Path, data: bytes) -> Path:
    """A file of these bytes."""
    (folder / "model.pt").write_bytes(data)
    return folder / "model.pt"


def parts(data: bytes) -> list[int]:
    """Where each pickle of a file ends: magic number, version, system, values, names of the storages."""
    stream = io.BytesIO(data)
    ends = []
    for _ in range(5):
        for _ in pickletools.genops(stream):
            pass
        ends.append(stream.tell())
    return ends


for number, part in enumerate(["magic number", "version", "system", "values", "names of the storages"]):

    @cases.refused(f"cut off in its {part}", "truncated|damaged|unknown form|bare|no state dict|dict of tensors")
    def cut_in(folder: Path, canary: Path, number: int = number) -> Path:
        data = whole(folder)
        ends = [0, *parts(data)]
        return written(folder, data[: (ends[number] + ends[number + 1]) // 2 + 1])

    @cases.refused(f"cut off after its {part}", "truncated|damaged|unknown form|bare|no state dict|dict of tensors")
    def cut_after(folder: Path, canary: Path, number: int = number) -> Path:
        data = whole(folder)
        return written(folder, data[: parts(data)[number]])


@cases.refused("cut off in a tensor", "truncated|damaged")
def cut_in_tensor(folder: Path, canary: Path) -> Path:
    return written(folder, whole(folder)[:-100])


def lengths(data: bytes | bytearray) -> tuple[int, int]:
    """Where the numbers of elements stand: of the first storage and of the second."""
    first = parts(bytes(data))[4]
    return first, first + 8 + 4 * struct.unpack_from("<q", data, first)[0]


LIES = {
    "more elements than the file has": 2**40,
    "fewer elements than the tensor needs": 3,
    "a negative number of elements": -1,
    "the largest number of elements": 2**63 - 1,
}

for title, count in LIES.items():

    @cases.refused(f"a storage of {title}", "damaged|truncated|elements")
    def lie(folder: Path, canary: Path, count: int = count) -> Path:
        data = bytearray(whole(folder))
        struct.pack_into("<q", data, lengths(data)[0], count)
        return written(folder, bytes(data))


@cases.refused("a name of a storage that is not there", "damaged|truncated|storage")
def missing_name(folder: Path, canary: Path) -> Path:
    data = whole(folder)
    ends = parts(data)
    names = pickle.loads(data[ends[3] : ends[4]])
    return written(folder, data[: ends[3]] + pickle.dumps(names[:1], 2) + data[ends[4] :])


@cases.refused("names of storages that are no list", "damaged|truncated|storage|cannot be read")
def names_no_list(folder: Path, canary: Path) -> Path:
    data = whole(folder)
    ends = parts(data)
    return written(folder, data[: ends[3]] + pickle.dumps(7, 2) + data[ends[4] :])


@cases.refused("a storage named twice", "damaged|twice|storage|truncated|elements")
def named_twice(folder: Path, canary: Path) -> Path:
    data = whole(folder)
    ends = parts(data)
    names = pickle.loads(data[ends[3] : ends[4]])
    return written(folder, data[: ends[3]] + pickle.dumps([names[0]] * 2, 2) + data[ends[4] :])


@cases.refused("another version", "a header that torch.save never writes")
def other_version(folder: Path, canary: Path) -> Path:
    data = whole(folder)
    ends = parts(data)
    return written(folder, data[: ends[0]] + pickle.dumps(4242, 2) + data[ends[1] :])
