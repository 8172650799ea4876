"""safetensors files with headers that lie, and tensors with hostile names in every form."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.hostile.files import saved, weights
from tests.hostile.registry import Cases

cases = Cases()
names = Cases()

DATA = bytes(64 * 64 * 4)
GOOD: dict[str, Any] = {"fc.weight": {"dtype": "F32", "shape": [64, 64], "data_offsets": [0, len(DATA)]}}


def written(folder: Path, header: object, data: bytes = DATA) -> Path:
    """A file with this header: bytes as they are, all else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder / "model.safetensors"


def entry(**changes: object) -> dict[str, Any]:
    """A header whose one tensor says something else of itself."""
    return {"fc.weight": {**GOOD["fc.weight"], **changes}}


HEADERS: dict[str, object] = {
    "a header that is no JSON": b"{" * 50,
    "a header of 100,000 nested lists": b'{"a":' + b"[" * 100_000,
    "a header that is a list in an object": b'{"fc.weight": []}',
    "a header without its data": {"fc.weight": {"dtype": "F32", "shape": [64, 64]}},
    "a header with a comma too many": b'{"a": 1,}',
    "a header that is no UTF-8": b'{"\xff\xfe": {}}',
    "data beyond the end of the file": entry(data_offsets=[0, len(DATA) + 4], shape=[64 * 64 + 1]),
    "data that ends before it starts": entry(data_offsets=[len(DATA), 0]),
    "data at a negative offset": entry(data_offsets=[-4, len(DATA)]),
    "a shape that does not fit its data": entry(shape=[64, 65]),
    "a negative shape": entry(shape=[-64, -64]),
    "a shape that overflows": entry(shape=[2**62, 2**62]),
    "a shape of text": entry(shape=["64", "64"]),
    "a shape with a fraction": entry(shape=[64.5, 64]),
    "an unknown type": entry(dtype="F33"),
    "a type of text that is code": entry(dtype="__import__('os')"),
    "metadata that is a list": {**GOOD, "__metadata__": ["a"]},
    "metadata that is no text": {**GOOD, "__metadata__": {"a": 3}},
    "two tensors over the same data": {**GOOD, "b": GOOD["fc.weight"]},
    "a hole before the first tensor": entry(data_offsets=[64, len(DATA)], shape=[64 * 64 - 16]),
}

for title, header in HEADERS.items():

    @cases.refused(title, r"a safetensors file that cannot be decoded|unknown form")
    def lies(folder: Path, canary: Path, header: object = header) -> Path:
        return written(folder, header)


for length in (2**63, 2**64 - 1, 10**9, 100, 0):

    @cases.refused(f"a header length of {length}", "cannot be decoded|unknown form|truncated")
    def length_lies(folder: Path, canary: Path, length: int = length) -> Path:
        path = written(folder, GOOD)
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
        return path


@cases.refused("the same name twice, over other data", "cannot be decoded")
def duplicate(folder: Path, canary: Path) -> Path:
    one, other = (
        json.dumps(GOOD["fc.weight"]).replace("[0, 16384]", place) for place in ("[0, 16384]", "[16384, 32768]")
    )
    return written(folder, f'{{"fc.weight": {one}, "fc.weight": {other}}}'.encode(), DATA + DATA)


@cases.refused("data after the last tensor", "cannot be decoded")
def trailing(folder: Path, canary: Path) -> Path:
    return written(folder, GOOD, DATA + b"PK\x03\x04")


@cases.refused("cut off in its header", "truncated|unknown form|cannot be decoded")
def cut_in_header(folder: Path, canary: Path) -> Path:
    path = written(folder, GOOD)
    path.write_bytes(path.read_bytes()[:40])
    return path


@cases.refused("cut off in its data", "cannot be decoded")
def cut_in_data(folder: Path, canary: Path) -> Path:
    path = written(folder, GOOD)
    path.write_bytes(path.read_bytes()[:-1])
    return path


# Names that try to be more than names; in a torch file, in safetensors and as keys beside the state dict.

EVIL = {
    "climbs out of the folder": "../../../canary",
    "is an absolute path": "/canary",
    "speaks to the terminal": "\x1b]0;title\x07\x1b[31m",
    "starts a new line": "a\nError: x: y; z. w.\r\x0b\x85\u2028",
    "turns the text around": "\u202egnp.exe",
    "is a NUL": "a\0b",
    "is a format": "%s{0}{}%n",
    "is markup": "[bold red]x[/] [link=file:///etc]y[/link]",
    "is a pattern": "*[!a]?",
    "is 100,000 characters long": "x" * 100_000,
}

for title, evil in EVIL.items():

    @names.harmless(f"a tensor whose name {title}", "Wrote out.pt")
    def in_torch(folder: Path, canary: Path, evil: str = evil) -> Path:
        return saved(folder, {**weights(), f"{evil}.weight": torch.ones(64, 64)})

    @names.harmless(f"a tensor in safetensors whose name {title}", "Wrote out.pt")
    def in_safetensors(folder: Path, canary: Path, evil: str = evil) -> Path:
        save_file({**weights(), f"{evil}.weight": torch.ones(64, 64)}, folder / "model.safetensors")
        return folder / "model.safetensors"

    @names.harmless(f"a value of an optimizer whose name {title}", "optimizer state")
    def beside(folder: Path, canary: Path, evil: str = evil) -> Path:
        return saved(folder, {"model": weights(), evil: {"state": {}, "param_groups": []}})

    @names.refused(f"two state dicts, one of whose names {title}", "several state dicts")
    def of_two(folder: Path, canary: Path, evil: str = evil) -> Path:
        return saved(folder, {"a": weights(), evil: weights()})


@names.harmless("an empty name", "Wrote out.pt")
def empty_name(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), "": torch.ones(64, 64)})


@names.harmless("a name with half a character", "Wrote out.pt")
def half_a_character(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), "\ud800.weight": torch.ones(64, 64)})


@names.harmless("a name of 10 MB", "Wrote out.pt")
def long_name(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), "x" * 10_000_000: torch.ones(64, 64)})


@names.harmless("names that are no text", "Wrote out.pt")
def not_text(folder: Path, canary: Path) -> Path:
    other: dict[object, object] = {3: torch.ones(64, 64), None: 1, (1, 2): 2, 0.5: 3, b"a": 4}
    return saved(folder, other | dict[object, object](weights()))


@names.refused("a tensor with the name of scales of another", "fc.weight.core.1.scale")
def scale_name(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), "fc.weight.core.1.scale": torch.ones(3)})


@names.refused("a tensor with the name of a core of another", "fc.weight.core.0")
def name_of_a_core(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), "fc.weight.core.0": torch.ones(3)})


@names.harmless("10,000 empty tensors", "Wrote out.pt")
def many_names(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), **{f"t{number}": torch.ones(0) for number in range(10_000)}})
