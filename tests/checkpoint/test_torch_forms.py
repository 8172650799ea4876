"""Every form torch itself writes, read without running anything: the same tensors each time."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import CheckpointError
from tests.checkpoint.files import assert_same, contents, rezip, state_dict

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)


class Net(torch.nn.Module):
    """A small model of every kind of entry."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 3, num_layers=2)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 2, bias=False)])
        self.register_buffer("mean", torch.ones(3))
        self.register_buffer("scratch", torch.ones(5), persistent=False)
        self.tied = self.blocks[0]

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.lstm(value)
        result: torch.Tensor = self.blocks[1](self.blocks[0](hidden) + self.mean)
        return result


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def forgotten(make: Callable[[Any], None]) -> dict[str, torch.Tensor]:
    """Save a module whose class is gone afterwards; give its state dict."""
    module = types.ModuleType("a_module_that_is_gone")
    module.Net = type("Net", (Net,), {"__module__": module.__name__, "__qualname__": "Net"})  # type: ignore[attr-defined]
    module.__file__ = __file__  # the one-stream form looks for the source
    sys.modules[module.__name__] = module
    try:
        torch.manual_seed(0)
        net = module.Net()
        make(net)
    finally:
        del sys.modules[module.__name__]
    return dict(net.state_dict())


def _legacy(value: object, path: Path, protocol: int = 2) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)


def _strided() -> dict[str, torch.Tensor]:
    """Views into one memory, as an LSTM on a GPU has them, a transposed weight, and a tied one."""
    memory = torch.arange(60.0)
    weight = memory[:24].view(6, 4)
    return {
        "a": weight,
        "b": memory[24:54].view(5, 6),
        "bt": memory[24:54].view(5, 6).t(),
        "c": memory[54:],
        "d": weight,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "nest", [lambda sd: sd, lambda sd: {"epoch": 3, "model": OrderedDict(sd)}], ids=["top", "nested"]
)
def test_every_protocol_is_read(protocol: int, zipped: bool, nest: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "model"
    torch.save(nest(state_dict()), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.container == ("torch-zip" if zipped else "torch-legacy")
        assert_same(contents(checkpoint), state_dict())


@pytest.mark.parametrize("save", [torch.save, _legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_every_dtype_is_read(save: Callable[..., None], dtype: torch.dtype, tmp_path: Path) -> None:
    state = {
        "odd": torch.ones(3, dtype=torch.int8),
        "w": torch.ones(4, 4),
        "x": torch.arange(6).reshape(2, 3).to(dtype),
    }
    save(state, tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert_same(contents(checkpoint), state)


@pytest.mark.parametrize("save", [torch.save, _legacy], ids=["zip", "legacy"])
def test_views_and_ties_are_read(save: Callable[..., None], tmp_path: Path) -> None:
    save(_strided(), tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert_same(contents(checkpoint), _strided())
        assert {name: info.alias_of for name, info in checkpoint.tensors.items() if info.alias_of} == {"d": "a"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_read(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"epoch": 3, "model": _strided()}, protocol))
    with open_checkpoint(tmp_path / "model.pkl") as checkpoint:
        assert (checkpoint.container, checkpoint.key, checkpoint.extras["epoch"]) == ("pickle", "model", 3)  # type: ignore[call-overload]
        assert_same(contents(checkpoint), _strided())


@pytest.mark.parametrize("save", [torch.save, _legacy], ids=["zip", "legacy"])
def test_a_whole_module_gives_its_state_dict_and_its_classes(save: Callable[..., None], tmp_path: Path) -> None:
    expected = forgotten(lambda net: save(net, tmp_path / "model.pt"))
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert list(checkpoint.tensors) == list(expected)
        assert_same(contents(checkpoint), expected)
        assert checkpoint.classes[""] == "a_module_that_is_gone.Net"
        assert checkpoint.classes["lstm"] == "torch.nn.modules.rnn.LSTM"
        assert checkpoint.classes["blocks.1"] == "torch.nn.modules.linear.Linear"
        assert checkpoint.tensors["tied.weight"].alias_of == "blocks.0.weight"
        (note,) = checkpoint.notes
        assert note.startswith(
            "the file is an object of class a_module_that_is_gone.Net: its weights are used, the rest"
        )


def test_modules_beside_settings_are_found(tmp_path: Path) -> None:
    expected = forgotten(lambda net: torch.save({"epoch": 3, "model": net, "ema": None}, tmp_path / "model.pt"))
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.key == "model"
        assert_same(contents(checkpoint), expected)
        assert checkpoint.extras == {"epoch": 3, "model": {}, "ema": None}


def test_a_module_inside_an_object_is_found(tmp_path: Path) -> None:
    def save(net: Any) -> None:
        trainer = types.SimpleNamespace(model=net, step=7, back=None)
        trainer.back = trainer
        torch.save(trainer, tmp_path / "model.pt")

    expected = forgotten(save)
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.key == "model"
        assert_same(contents(checkpoint), expected)
        assert "the file is an object of class types.SimpleNamespace: its model is used" in checkpoint.notes[1]


def test_a_list_of_class_state_dict_and_settings_is_read(tmp_path: Path) -> None:
    torch.save([(Net, state_dict(), {"hidden": 3})], tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.key == "0.1"
        assert_same(contents(checkpoint), state_dict())
        assert checkpoint.extras == [[None, {}, {"hidden": 3}]]
        assert checkpoint.notes == (f"0.0: a value of type class or function ({__name__}.Net) is not carried over",)


def test_scripted_and_traced_modules_are_read(tmp_path: Path) -> None:
    model = net()
    expected = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("tied")}
    example = torch.ones(2, 1, 4)
    for name, module in (
        ("scripted", torch.jit.script(model)),
        ("traced", torch.jit.trace(model, example, check_trace=False)),  # type: ignore[no-untyped-call]
    ):
        torch.jit.save(module, tmp_path / name)
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert checkpoint.container == "torchscript"
            actual = contents(checkpoint)
            assert_same({key: actual[key] for key in expected}, expected)
            assert checkpoint.classes["blocks.0"] == "torch.nn.modules.linear.Linear"


def test_an_exported_program_is_read(tmp_path: Path) -> None:
    model = net()
    torch.export.save(torch.export.export(model, (torch.ones(2, 1, 4),)), tmp_path / "model.pt2")
    with open_checkpoint(tmp_path / "model.pt2") as checkpoint:
        assert checkpoint.container == "torch-export"
        assert_same(contents(checkpoint), model.state_dict())
        assert checkpoint.classes["lstm"] == "torch.nn.modules.rnn.LSTM"


def test_tensors_saved_from_a_gpu_come_to_the_cpu(tmp_path: Path) -> None:
    torch.save(state_dict(), tmp_path / "cpu.pt")
    rezip(tmp_path / "cpu.pt", tmp_path / "model.pt", lambda data: data.replace(b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:3"))
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert_same(contents(checkpoint), state_dict())


def test_bytes_of_the_other_order_are_turned(tmp_path: Path) -> None:
    state = {**state_dict(), "z": torch.tensor([1 + 2j]), "flag": torch.tensor([True, False])}
    torch.save(state, tmp_path / "little.pt")
    units = {0: 4, 1: 4, 2: 8, 3: 4, 4: 1}
    source = tmp_path / "little.pt"
    for number, width in units.items():
        target = tmp_path / f"{number}.pt"
        rezip(source, target, lambda data, w=width: swapped(data, w), record=f"data/{number}")  # type: ignore[misc]
        source = target
    rezip(source, tmp_path / "big.pt", lambda _: b"big", record="byteorder")
    with open_checkpoint(tmp_path / "big.pt") as checkpoint:
        assert_same(contents(checkpoint), state)


def test_bytes_of_the_other_order_are_turned_beside_the_weights_too(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2, 2)}, "steps": torch.tensor([1, 2])}, tmp_path / "little.pt")
    rezip(tmp_path / "little.pt", tmp_path / "middle.pt", lambda data: swapped(data, 8), record="data/1")
    rezip(tmp_path / "middle.pt", tmp_path / "big.pt", lambda _: b"big", record="byteorder")
    with open_checkpoint(tmp_path / "big.pt") as checkpoint:
        assert isinstance(checkpoint.extras, dict)
        assert checkpoint.extras["steps"].tolist() == [1, 2]


def swapped(data: bytes, width: int) -> bytes:
    return b"".join(data[start : start + width][::-1] for start in range(0, len(data), width))


def _quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_quantized, "x is a quantized tensor"),
        (lambda: torch.ones(4, 4).to_sparse_csr(), "x is a sparse tensor"),
        (lambda: types.SimpleNamespace(a=torch.ones(3)), "x is an object of class types.SimpleNamespace with tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_state_dict_that_would_not_be_whole_is_refused(
    make: Callable[[], object], message: str, tmp_path: Path
) -> None:
    torch.save({"w": torch.ones(4, 4), "x": make()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.pt")


def test_odd_values_beside_the_state_dict_are_named_and_dropped(tmp_path: Path) -> None:
    import_free = types.SimpleNamespace(lr=0.1)
    torch.save({"model": state_dict(), "args": import_free, "path": Path("x"), "seed": 3}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.extras == {"model": {}, "seed": 3}
        assert [note.partition(":")[0] for note in checkpoint.notes] == ["args", "path"]
        assert checkpoint.notes[0] == "args: a value of type types.SimpleNamespace is not carried over"


# The one-stream form, section by section.


def _stream(state: dict[str, torch.Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _last_count(data: bytes, count: int, lie: int) -> bytes:
    """Change the last count of elements that is written before a piece of memory."""
    position = data.rindex(struct.pack("<q", count))
    return data[:position] + struct.pack("<q", lie) + data[position + 8 :]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: _last_count(data, 9, 10), "does not match its description"),
        (lambda data: _last_count(data, 9, -1), "does not match its description"),
        (lambda data: data[:-1], "but the file ends before that"),
        (lambda data: data.replace(b"M\xe9\x03.", b"M\xe8\x03.", 1), "a header that torch.save never writes"),
        (lambda data: data.replace(b"K\x09", b"K\x08", 1), "does not match its description|needs"),
    ],
    ids=["more", "negative", "cut off", "version", "fewer"],
)
def test_a_stream_that_lies_is_refused(edit: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(edit(_stream({"w": torch.ones(3, 3)})))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.pt")


def test_a_stream_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = _stream({"w": torch.ones(3, 3), "v": torch.ones(3, 3)})
    for length in range(0, len(whole), 7):
        (tmp_path / "model.pt").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path / "model.pt")


def test_only_when_allowed_is_a_pickle_run(tmp_path: Path) -> None:
    torch.save({"model": Net(), "when": types.SimpleNamespace(a=1)}, tmp_path / "model.pt")
    with (
        open_checkpoint(tmp_path / "model.pt") as inert,
        open_checkpoint(tmp_path / "model.pt", allow_pickle=True) as run,
    ):
        assert run.notes[0] == "the file was loaded by running the code that it names, as requested"
        assert run.notes[1:] == inert.notes
        assert run.classes == inert.classes
        assert_same(contents(run), contents(inert))


def test_what_fails_when_it_is_run_is_said(tmp_path: Path) -> None:
    forgotten(lambda net: torch.save(net, tmp_path / "model.pt"))
    with pytest.raises(CheckpointError, match=r"running it failed \(ModuleNotFoundError: .*a_module_that_is_gone"):
        open_checkpoint(tmp_path / "model.pt", allow_pickle=True)


class _Odd(torch.nn.Linear):
    """A layer with its own way of saving of its own."""

    def __getstate__(self) -> object:
        return (self.in_features, self.weight.detach())


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_module_that_is_saved_in_its_own_way_is_not_left_out_silently(allow_pickle: bool, tmp_path: Path) -> None:
    torch.save(torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "odd": _Odd(3, 3)}), tmp_path / "model.pt")
    message = "running it failed" if allow_pickle else r"odd is a module of class \S+_Odd with its own way of saving"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "model.pt", allow_pickle=allow_pickle)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    model = net()
    model._parameters["blocks.1.weight"] = torch.nn.Parameter(torch.ones(2, 2))
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"two tensors of the name blocks\.1\.weight"):
        open_checkpoint(tmp_path / "model.pt")


@pytest.mark.slow
def test_a_compiled_module_is_found(tmp_path: Path) -> None:
    torch.save(torch.compile(net()), tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert_same(contents(checkpoint), net().state_dict())


@pytest.mark.parametrize("make", [_quantized, lambda: torch.ones(4, 4).to_sparse_csr()], ids=["quantized", "sparse"])
def test_running_a_file_does_not_lift_the_refusals(make: Callable[[], object], tmp_path: Path) -> None:
    torch.save({"w": torch.ones(4, 4), "x": make()}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="x is a tensor of class Tensor, torch"):
        open_checkpoint(tmp_path / "model.pt", allow_pickle=True)


def test_running_a_file_keeps_the_versions_of_modules(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt", allow_pickle=True) as checkpoint:
        assert isinstance(checkpoint.extras, dict)
        assert vars(checkpoint.extras["model"]) == {"_metadata": {"": {"version": 1}}}


def test_a_copy_of_the_weights_deep_inside_takes_only_itself_along(tmp_path: Path) -> None:
    callbacks = {"EMA": {"decay": 0.9, "weights": state_dict()}, "best": {"score": 0.5}}
    torch.save({"state_dict": state_dict(), "callbacks": callbacks}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert checkpoint.extras == {
            "state_dict": {},
            "callbacks": {"EMA": {"decay": 0.9, "weights": None}, "best": {"score": 0.5}},
        }
        (note,) = checkpoint.notes
        assert note.startswith("callbacks.EMA.weights: another copy of the weights (128 bytes)")


def test_what_an_exported_program_leaves_behind_is_said(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),)), tmp_path / "model.pt2")
    with open_checkpoint(tmp_path / "model.pt2") as checkpoint:
        assert checkpoint.notes == ("its weights are read; the program and its constants are not carried over",)


@pytest.mark.parametrize("names", [b"]X\x01\x00\x00\x00aa(K\x01le.", b"]" * 5000 + b"a" * 4999 + b"."])
def test_a_list_of_pieces_that_are_no_names_is_refused(names: bytes, tmp_path: Path) -> None:
    whole = _stream({"w": torch.ones(3, 3)})
    start = whole.rindex(b"\x80\x02]")
    (tmp_path / "model.pt").write_bytes(whole[: start + 2] + names + whole[whole.index(b".", start) + 1 :])
    with pytest.raises(CheckpointError, match=r"no list of its storages|cannot be read"):
        open_checkpoint(tmp_path / "model.pt")
