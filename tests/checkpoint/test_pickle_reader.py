from __future__ import annotations

import collections
import datetime
import io
import pickle
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpocompress.checkpoint.dtypes import BFLOAT16
from mpocompress.checkpoint.lazy_tensors import Device, Size
from mpocompress.checkpoint.pickles import reader as pickle_reader
from mpocompress.checkpoint.pickles.builders import builder
from mpocompress.checkpoint.pickles.reader import read_pickle
from mpocompress.checkpoint.pickles.values import Global, Instance
from mpocompress.checkpoint.tensors import materialise
from mpocompress.errors import CheckpointError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers()
)
_KEYS = st.text() | st.integers(-(2**62), 2**62) | st.tuples(st.text(), st.booleans())
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(_KEYS, inner)
        | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
        | st.sets(st.integers(0, 99))
        | st.frozensets(st.text())
    ),
    max_leaves=20,
)


def _read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data), "model.pt", build=builder("model.pt"), fetch=lambda name: name)


class Thing:
    """An object with state."""

    def __init__(self, **state: object) -> None:
        vars(self).update(state)


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self) -> None:
        self.a, self.b = 1, [2]


class Words(list[str]):
    pass


class Table(dict[str, int]):
    pass


@given(value=_VALUES, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_are_read_as_the_standard_library_reads_them(value: object, protocol: int) -> None:
    assert repr(_read(pickle.dumps(value, protocol))) == repr(pickle.loads(pickle.dumps(value, protocol)))


@given(data=st.binary(max_size=60))
def test_no_bytes_make_anything_but_a_value_or_our_error(data: bytes) -> None:
    try:
        _read(b"\x80\x02" + data)
    except CheckpointError as error:
        assert error.where == "model.pt"  # noqa: PT017


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_become_records_of_what_would_make_them(protocol: int) -> None:
    value = [Thing(a=1, b=[2]), Words(["x", "y"]), Table(one=1), PurePosixPath("a/b"), datetime.timedelta(3), Thing]
    thing, words, table, path, delta, kind = _read(pickle.dumps(value, protocol))
    assert thing.attributes == {"a": 1, "b": [2]}
    assert words.entries == ["x", "y"]
    assert table.items == {"one": 1}
    assert [made.class_name.rpartition(".")[2] for made in (thing, words, table)] == ["Thing", "Words", "Table"]
    assert path.arguments == PurePosixPath("a/b").__reduce__()[1]  # one argument from Python 3.13 on
    assert delta.class_name == "datetime.timedelta"
    assert kind == Global(f"{__name__}.Thing")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_the_state_of_slots_is_kept(protocol: int) -> None:
    assert _read(pickle.dumps(Slotted(), protocol)).attributes == {"a": 1, "b": [2]}


def test_methods_of_a_dict_are_not_replaced() -> None:
    read = _read(b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb.")
    assert list(read.items()) == []


def test_what_is_shared_stays_shared_and_may_refer_back() -> None:
    thing = Thing(inner=[1])
    vars(thing)["self"] = thing
    first, second = _read(pickle.dumps([thing, thing]))
    assert first is second
    assert first.attributes["self"] is first


def test_the_names_of_python_2_are_those_of_python_3() -> None:
    assert _read(b"c__builtin__\nset\n(lI1\naI2\na\x85R.") == {1, 2}
    assert _read(b"ccopy_reg\n_reconstructor\n(cnet\nNet\nc__builtin__\nobject\nNtR(dS'a'\nI1\nsb.").attributes == {
        "a": 1
    }


@pytest.mark.parametrize(
    "number",
    [np.float64(0.25), np.float32(0.5), np.int64(-3), np.bool_(True), np.float16(2.0), np.complex64(1j)],
    ids=lambda number: type(number).__name__,
)
def test_numbers_of_numpy_become_numbers(number: Any) -> None:
    read = _read(pickle.dumps(number))
    assert type(read) is type(number.item())
    assert read == number.item()


def test_values_of_torch_are_described_and_made_on_request() -> None:
    value = {"size": torch.Size([2, 3]), "device": torch.device("cuda", 1), "dtype": torch.bfloat16}
    described = _read(pickle.dumps(value))
    assert described == {"size": Size((2, 3)), "device": Device("cuda:1"), "dtype": BFLOAT16}
    converted = materialise(described)
    assert converted == value
    assert [type(entry) for entry in converted.values()] == [type(entry) for entry in value.values()]


@pytest.mark.parametrize("name", ["", "quantum", "cuda:", "cuda:01", "cuda:128", "cuda:-1", "cpu:0 ", "CUDA"])
def test_a_device_of_unknown_kind_is_data(name: str) -> None:
    read = _read(b"ctorch\ndevice\n(V" + name.encode() + b"\ntR.")
    assert isinstance(read, Instance)
    assert (read.class_name, read.arguments) == ("torch.device", (name,))


def test_a_state_dict_keeps_its_versions_and_nothing_else() -> None:
    state = torch.nn.Linear(2, 2).state_dict()
    state["weight"], state["bias"] = 1, 2
    vars(state)["other"] = "dropped"
    read = _read(pickle.dumps(state))
    assert vars(read) == {"_metadata": {"": {"version": 1}}}
    assert list(read.items()) == [("weight", 1), ("bias", 2)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has no end|pickle exhausted"),
        (b"\x80\x02]", "no end|exhausted"),
        (b"\x80\x02.", "values left on the stack"),
        (b"\x80\x02NN.", "values left on the stack"),
        (b"\x80\x02(N.", "values left on the stack"),
        (b"\x80\x02h\x07.", "7"),
        (b"\x80\x02}]NsN.", "list as a key"),
        (b"\x80\x02N]a.", "entries for a NoneType"),
        (b"\x80\x02](NNu.", "keys and values for a list"),
        (b"\x80\x02}(Nu.", "1 keys and values"),
        (b"\x80\x02NNR.", "not a tuple"),
        (b"\x80\x02ca\nb\n}b.", "state for a Global"),
        (b"\x80\x02]}b.", "state for a list"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
        (b"\x80\x04NN\x93.", "a name that is not text"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "expected 2147483647 bytes"),
        (b"\x80\x02\xff.", "opcode"),
        (b"\x80\x02I" + b"9" * 5000 + b"\n.", "digits"),
        (b"\x80\x02}" + b")" + b"\x85" * 100 + b"Ns.", "a long or deep tuple as a key"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.pt: a pickle that cannot be read .*({message})"):
        _read(data)


@pytest.mark.slow
def test_a_key_that_would_take_the_whole_stack_to_be_hashed_is_refused() -> None:
    with pytest.raises(CheckpointError, match="a long or deep tuple as a key"):
        _read(b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.")


@pytest.mark.parametrize("keys", [[2**70], [1 + 2j], [(1, 2.5)], [frozenset(["a", "b"])], [("a", ("b", 1))]])
def test_unusual_keys_are_read(keys: list[Any]) -> None:
    assert _read(pickle.dumps(dict.fromkeys(keys, 1))) == dict.fromkeys(keys, 1)


@pytest.mark.parametrize("make", [lambda n: 2**70 + n, lambda n: (n, -n)], ids=["huge", "pairs"])
def test_many_keys_that_could_be_made_to_collide_are_refused(make: Callable[[int], Any]) -> None:
    keys = [make(number) for number in range(9000)]
    with pytest.raises(CheckpointError, match="more than 8,192 tuples of numbers, or huge numbers, as keys"):
        _read(pickle.dumps(dict.fromkeys(keys, 1)))


def test_a_number_of_bytes_asks_for_no_memory() -> None:
    assert _read(b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.").class_name == "builtins.bytearray"


def test_a_memo_number_takes_no_memory() -> None:
    assert _read(b"\x80\x02Nr\xff\xff\xff\x7f0j\xff\xff\xff\x7f.") is None


def test_too_many_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_WORK", 1000)
    assert _read(pickle.dumps(["a"] * 400, 2)) == ["a"] * 400
    with pytest.raises(CheckpointError, match="more than 1,000 instructions and copies"):
        _read(pickle.dumps(["a"] * 1100, 2))


@pytest.mark.parametrize(
    "name", ["os.system", "posix.system", "builtins.exec", "subprocess.Popen", "importlib.import_module"]
)
def test_calls_that_mean_harm_are_refused_by_name(name: str) -> None:
    module, _, function = name.rpartition(".")
    with pytest.raises(CheckpointError, match=rf"calls {name}; no model needs this call"):
        _read(f"c{module}\n{function}\n(S'true'\ntR.".encode())


def test_nothing_is_looked_up_or_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def alarm(*_: object) -> None:
        raise AssertionError("called")

    monkeypatch.setattr(Thing, "__setstate__", alarm, raising=False)
    monkeypatch.setattr(Thing, "__new__", alarm)
    monkeypatch.setattr("builtins.__import__", alarm)
    data = f"\x80\x02c{__name__}\nThing\n)\x81}}X\x01\x00\x00\x00aNsb.".encode("latin-1")
    assert isinstance(read_pickle(io.BytesIO(data), "model.pt", build=builder("model.pt"), fetch=str), Instance)
