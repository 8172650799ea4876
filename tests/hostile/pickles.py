"""Pickles that would run something, that never end, or that would fill the memory."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tests.hostile.files import Calls, beside, call, described_by, name, saved, text, weights
from tests.hostile.registry import Cases

cases = Cases()


def script(canary: Path) -> str:
    """Python that makes the canary sing."""
    return f"open({str(canary)!r}, 'w').close()"


# What would run something is made into a value that does nothing, and said.


@cases.refused("os.system as a value", r"calls posix\.system; no model needs this call")
def system(folder: Path, canary: Path) -> Path:
    return saved(folder, {"x": Calls(os.system, f"touch {canary}"), "model": weights()})


for function in (eval, exec, compile, __import__):

    @cases.refused(f"builtins.{function.__name__} as a value", rf"calls builtins\.{function.__name__}; no model")
    def builtin(folder: Path, canary: Path, function: Any = function) -> Path:
        return saved(folder, {"x": Calls(function, script(canary), "x", "exec"), "model": weights()})


@cases.refused("a program started by subprocess", r"calls subprocess\.check_call")
def program(folder: Path, canary: Path) -> Path:
    value = {"x": Calls(subprocess.check_call, ["touch", str(canary)]), "model": weights()}
    return saved(folder, value, pickle_protocol=4)


@cases.refused("a module imported by name", r"calls importlib\.import_module; no model needs this call")
def imported(folder: Path, canary: Path) -> Path:
    (folder / "evil_module.py").write_text(script(canary))
    return saved(folder, {"x": Calls(importlib.import_module, "evil_module"), "model": weights()})


@cases.harmless("a class of a module that runs when imported", r"x: a value of type evil_module\.Thing")
def module_beside(folder: Path, canary: Path) -> Path:
    (folder / "evil_module.py").write_text(script(canary))
    return beside(folder, call("evil_module", "Thing"))


@cases.harmless("code fetched by torch.hub", r"x: a value of type torch\.hub\.load")
def hub(folder: Path, canary: Path) -> Path:
    (folder / "hubconf.py").write_text(f"def evil():\n    {script(canary)}")
    return beside(folder, name("torch.hub", "load") + b"(" + text(".") + text("evil") + b"X\0\0\0\0X\5\0\0\0localtR")


@cases.harmless("torch.load of a second file", r"x: a value of type torch\.\S*load")
def loads_another(folder: Path, canary: Path) -> Path:
    (folder / "inner.pt").write_bytes(pickle.dumps(Calls(exec, script(canary))))
    return beside(folder, call("torch", "load", "inner.pt"))


@cases.refused("a state for an object that would run it", r"calls builtins\.exec")
def with_state(folder: Path, canary: Path) -> Path:
    return saved(folder, {"x": Calls(Exception, state={"a": Calls(exec, script(canary))}), "model": weights()})


@cases.refused("a function hidden in an OrderedDict", r"calls builtins\.exec")
def hidden(folder: Path, canary: Path) -> Path:
    return beside(
        folder, name("collections", "OrderedDict") + b"(]" + call("builtins", "exec", script(canary)) + b"atR"
    )


@cases.refused("the old instruction INST", r"calls posix\.system")
def inst(folder: Path, canary: Path) -> Path:
    return beside(folder, b"(" + text(f"touch {canary}") + b"iposix\nsystem\n")


@cases.refused("the old instruction OBJ", r"calls posix\.system")
def obj(folder: Path, canary: Path) -> Path:
    return beside(folder, b"(" + name("posix", "system") + text(f"touch {canary}") + b"o")


@cases.refused("NEWOBJ on a function", r"calls posix\.system")
def newobj(folder: Path, canary: Path) -> Path:
    return beside(folder, name("posix", "system") + b"(" + text(f"touch {canary}") + b"t\x81")


@cases.refused("a name put together on the stack", r"calls posix\.system")
def stack_global(folder: Path, canary: Path) -> Path:
    return beside(folder, text("posix") + text("system") + b"\x93(" + text(f"touch {canary}") + b"tR")


@cases.harmless("a dotted name that reaches into a module", r"x: a value of type \S*os\.system")
def dotted(folder: Path, canary: Path) -> Path:
    return beside(folder, text("torch.serialization") + text("os.system") + b"\x93(" + text(f"touch {canary}") + b"tR")


@cases.harmless(
    "parts of torch that are loaded when they are named", r"x\.0: a value of type class or function \(torch\._inductor"
)
def lazy_parts(folder: Path, canary: Path) -> Path:
    return beside(folder, b"(" + b"".join(name("torch", part) for part in ("_inductor", "onnx", "has_mps")) + b"l")


@cases.harmless("a tensor rebuilt by a function of its own", r"x: a value of type|x: .*not carried over")
def rebuilt_by(folder: Path, canary: Path) -> Path:
    arguments = name("posix", "system") + name("torch", "Tensor") + b"(" + text(f"touch {canary}") + b"t}"
    return beside(folder, name("torch._tensor", "_rebuild_from_type_v2") + b"(" + arguments + b"tR")


@cases.refused("the whole file is one call of os.system", r"calls posix\.system")
def only_a_call(folder: Path, canary: Path) -> Path:
    return saved(folder, Calls(os.system, f"touch {canary}"))


@cases.refused("a bare pickle that calls os.system", r"calls posix\.system")
def bare(folder: Path, canary: Path) -> Path:
    (folder / "model.pkl").write_bytes(pickle.dumps(Calls(os.system, f"touch {canary}"), 4))
    return folder / "model.pkl"


@cases.refused("a pickle of protocol 0 that calls os.system", "unknown form|no state dict|in place of a dict")
def oldest(folder: Path, canary: Path) -> Path:
    (folder / "model.pkl").write_bytes(f"cposix\nsystem\n(Vtouch {canary}\ntR.".encode())
    return folder / "model.pkl"


for number, part in enumerate(["version", "system", "values", "names of the storages"]):

    @cases.refused(
        f"the legacy form with a call in its {part}", r"calls posix|a header that torch.save never|no list of"
    )
    def legacy(folder: Path, canary: Path, number: int = number) -> Path:
        evil = pickle.dumps(Calls(os.system, f"touch {canary}"), 2)
        said: list[object] = [1001, {"little_endian": True}, {"epoch": 3}, []]
        parts = [pickle.dumps(one, 2) for one in said]
        parts[number] = evil
        (folder / "model.pt").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"".join(parts))
        return folder / "model.pt"


# Instructions that do not fit what they work on.

MALFORMED = {
    "an entry of the extension registry": b"\x82\x01",
    "a four byte entry of the extension registry": b"\x84\x01\0\0\0",
    "a state for a name": name("collections", "OrderedDict") + b"}b",
    "a state for a number": b"K\x01}b",
    "a value out of an empty stack": b"0000000000",
    "a mark that was never set": b"t",
    "a memo that was never put": b"h\xfe",
    "a memo at 2**31": b"j\0\0\0\x80",
    "entries for a number": b"K\x01(K\x02e",
    "a list as a key": b"}](N" + b"]Nu",
    "arguments that are no tuple": name("collections", "OrderedDict") + b"]R",
    "a name that is a number": b"K\x01K\x02\x93",
    "a persistent id of no known kind": b"U\x04evilQ",
    "a persistent id that is a list": b"]Q",
    "a storage of no number of elements": b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuU\x02xxtQ",
    "a storage of a negative size": b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\xff\xff\xff\xfftQ",
    "a storage that is not there": b"(U\x07storagectorch\nFloatStorage\nU\x0299U\x03cpuK\x04tQ",
    "a storage named by a path": b"(U\x07storagectorch\nFloatStorage\nU\x0f../../../secretU\x03cpuK\x04tQ",
    "a text of a declared 4 GB": b"X\xff\xff\xff\xffabc",
    "bytes of a declared exabyte": b"\x8e\0\0\0\0\0\0\0\x10abc",
    "a bytearray of a declared exabyte": b"\x96\0\0\0\0\0\0\0\x10abc",
    "a number of a declared 2 GB": b"\x8b\xff\xff\xff\x7fabc",
    "a number of a negative length": b"\x8b\xff\xff\xff\xffabc",
    "a text that is no UTF-8": b"X\x02\0\0\0\xff\xff",
    "a number of 100,000 digits": b"L" + b"9" * 100_000 + b"L\n",
    "a number that is none": b"I0x\n",
    "an out-of-band buffer": b"\x97",
    "an unknown instruction": b"\xf0",
    "an end in the middle": b"K\x01.",
}

for title, data in MALFORMED.items():

    @cases.refused(title, r"model\.pt: .*; .*(damaged|harm|twice|cannot)")
    def malformed(folder: Path, canary: Path, data: bytes = data) -> Path:
        return beside(folder, data)


@cases.refused("a pickle without its end", "truncated|damaged")
def no_end(folder: Path, canary: Path) -> Path:
    return described_by(folder, b"\x80\x02}")


@cases.refused("an empty description", "truncated|damaged")
def empty(folder: Path, canary: Path) -> Path:
    return described_by(folder, b"")


# What never ends, or grows out of all bounds.


@cases.refused("a dict that contains itself", "contains itself")
def itself(folder: Path, canary: Path) -> Path:
    value: dict[str, Any] = {"model": weights()}
    value["list"] = [value]
    return saved(folder, value)


@cases.harmless("an object that contains itself", r"x: a value of type a\.B .*is not carried over")
def object_in_itself(folder: Path, canary: Path) -> Path:
    return beside(folder, call("a", "B") + b"r\0\1\0\0}" + text("me") + b"j\0\1\0\0sb")


DEEP = {
    "lists": b"]" * 200_000 + b"a" * 199_999,
    "tuples": b")" + b"\x85" * 200_000,
    "dicts": b"}X\x01\0\0\0a" * 200_000 + b"N" + b"s" * 200_000,
}

for kind, data in DEEP.items():

    @cases.refused(f"{kind} 200,000 deep", "nested more than 100 deep")
    def deep(folder: Path, canary: Path, data: bytes = data) -> Path:
        return beside(folder, data)


@cases.harmless("objects 50,000 deep", r"x: a value of type a\.B .*is not carried over")
def deep_objects(folder: Path, canary: Path) -> Path:
    return beside(folder, name("a", "B") * 50_000 + b"N" + b"\x85R" * 50_000)  # each the argument of the next


@cases.refused("tuples 200,000 deep as a key", "cannot be read|nested|as a key|damaged|harm")
def deep_key(folder: Path, canary: Path) -> Path:
    return beside(folder, b"})" + b"\x85" * 200_000 + b"Ns")


@cases.refused("tuples that double 60 times as a key", "cannot be read|nested|as a key|damaged|harm")
def doubled_key(folder: Path, canary: Path) -> Path:
    return beside(folder, b"})" + b"2\x86" * 60 + b"Ns")


@cases.harmless("lists that double 60 times", "fc.weight")
def doubled(folder: Path, canary: Path) -> Path:
    return beside(folder, b"]" + b"".join(_doubling(60)))


def _doubling(times: int) -> list[bytes]:
    """A list of the list before it, twice, again and again."""
    steps = []
    for step in range(times):
        before, after = ((0x100 + step + more).to_bytes(4, "little") for more in (0, 1))
        steps += [b"r" + before, b"0](j" + before + b"j" + before + b"er" + after]
    return steps


@cases.refused("keys made to collide", "cannot be read|as a key|damaged|harm|keys")
def colliding(folder: Path, canary: Path) -> Path:
    """The hashes of -1 and -2 are the same, and so are those of all tuples of them."""
    keys = b"".join(b"(" + b"".join(numbers) + b"tN" for numbers in product((b"j\0\1\0\0", b"j\1\1\0\0"), repeat=17))
    return beside(folder, b"J\xff\xff\xff\xffr\0\1\0\x000J\xfe\xff\xff\xffr\1\1\0\x000}(" + keys + b"u")


@cases.refused("a large list copied again and again", "cannot be read|more than|damaged|harm")
def copied(folder: Path, canary: Path) -> Path:
    source = b"](" + b"N" * 1_000_000 + b"er\0\1\0\0" + name("builtins", "list") + b"r\1\1\0\0"
    copies = b"j\1\1\0\0j\0\1\0\0\x85R" * 500
    return beside(folder, b"](" + source + copies + b"e")


@cases.refused("a large state given to many objects", "cannot be read|more than|damaged|harm")
def given(folder: Path, canary: Path) -> Path:
    entries = b"".join(b"K" + bytes([number % 256]) + b"N" for number in range(256))
    wide = b"".join(b"M" + number.to_bytes(2, "little") + b"N" for number in range(256, 65_536))
    state = b"}(" + entries + wide + b"ur\0\1\0\0"
    return beside(folder, b"](" + state + (name("a", "B") + b")Rj\0\1\0\0b") * 5_000 + b"e")


@cases.refused("15 million empty sets", "cannot be read|more than|damaged|harm")
def sets(folder: Path, canary: Path) -> Path:
    return beside(folder, b"](" + b"\x8f" * 15_000_000 + b"e")


# Tensors that are not what they say.


@cases.refused(
    "a tensor that claims a million by a million of one element", "claims 4.0 TB and its storage has 4 bytes"
)
def stride_zero(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), "w": torch.zeros(1).expand(10**6, 10**6)})


@cases.refused("such a tensor beside the state dict", "claims 4.0 TB")
def stride_zero_beside(folder: Path, canary: Path) -> Path:
    return saved(folder, {"model": weights(), "x": [torch.zeros(1).expand(10**6, 10**6)]})


@cases.harmless("a small repeated tensor", "fc.weight")
def small_stride_zero(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), "mask": torch.zeros(1).expand(100, 100)})


def tensor(offset: bytes, size: bytes, stride: bytes) -> bytes:
    """The instructions of a tensor over the 64 elements of the bias of `weights`, record 1, as its size is given."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x011U\x03cpuK@tQ"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage + offset + size + stride + b"\x89}tR"


TENSORS = {
    "a tensor that starts beyond its memory": (b"K\x41", b"K\x01\x85", b"K\x01\x85"),
    "a tensor that ends beyond its memory": (b"K\x00", b"K\x41\x85", b"K\x01\x85"),
    "a tensor whose strides lead beyond its memory": (b"K\x00", b"K\x02\x85", b"K\x40\x85"),
    "a tensor that starts at a negative offset": (b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"),
    "a tensor with a negative stride": (b"K\x04", b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
    "a tensor with a negative size": (b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "a tensor of more sizes than strides": (b"K\x00", b"K\x01K\x01\x86", b"K\x01\x85"),
    "a tensor of 10,000 dims": (b"K\x00", b"(" + b"K\x01" * 10_000 + b"t", b"(" + b"K\x01" * 10_000 + b"t"),
    "a tensor whose size is text": (b"K\x00", b"U\x01a\x85", b"K\x01\x85"),
    "a tensor whose size is no whole number": (b"K\x00", b"G?\xf0\0\0\0\0\0\0\x85", b"K\x01\x85"),
    "a tensor whose size overflows": (b"K\x00", b"\x8a\x08" + b"\xff" * 7 + b"\x7fK\x04\x86", b"K\x00K\x00\x86"),
    "a tensor whose offset overflows": (b"\x8a\x09" + b"\xff" * 8 + b"\0", b"K\x01\x85", b"K\x01\x85"),
}

for title, parts in TENSORS.items():

    @cases.refused(title, r"model\.pt: .*; .*(damaged|harm|exhaust)")
    def odd_tensor(folder: Path, canary: Path, parts: tuple[bytes, bytes, bytes] = parts) -> Path:
        return beside(folder, tensor(*parts))


@cases.harmless("a sparse tensor with entries outside of it", "not carried over|carried over")
def sparse(folder: Path, canary: Path) -> Path:
    indices = torch.tensor([[10**9]])
    wrong = torch.sparse_coo_tensor(indices, torch.ones(1), (3,), check_invariants=False)
    return saved(folder, {"x": wrong, "model": weights()})


@cases.harmless("NaN in a weight", "NaN or Inf", code=3)
def not_a_number(folder: Path, canary: Path) -> Path:
    return saved(folder, {**weights(), "bad.weight": torch.full((64, 64), float("nan"))})


@cases.harmless("Inf in a weight", "NaN or Inf", code=3)
def infinite(folder: Path, canary: Path) -> Path:
    bad = torch.ones(64, 64)
    bad[3, 4] = float("inf")
    return saved(folder, {**weights(), "bad.weight": bad})
