"""The user's own model: how it is named, what of it is run, and how it is laid over a checkpoint."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from mpocompress.errors import ModelError
from mpocompress.layers.model_classes import match_classes
from mpocompress.user.code import model_builder

CODE = """
import torch
from torch import nn
from beside import WIDTH

class MyLSTM(nn.LSTM):
    pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = MyLSTM(WIDTH, 64)
        self.words = nn.Embedding(90, 64)
        self.fc = nn.Linear(64, 80)
        print("made")

def build():
    return Net()

made = Net()
number = 3

def broken():
    raise RuntimeError("no weights here")

def leaves():
    raise SystemExit(2)

def needs(argument):
    return Net()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "users_net.py").write_text(CODE)
    (tmp_path / "beside.py").write_text("WIDTH = 64\n")
    (tmp_path / "bad_syntax.py").write_text("def build(:\n")
    monkeypatch.chdir(tmp_path)
    for name in ("users_net", "beside"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def shapes(module: nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {prefix + name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


class Mine(nn.Linear):
    pass


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 8)
        self.mine = Mine(8, 9)
        self.own = nn.ParameterList([torch.zeros(3, 3)])


WANTED = {"rnn": "torch.nn.modules.rnn.LSTM", "mine": "torch.nn.modules.linear.Linear"}


@pytest.mark.parametrize("spec", ["users_net.py:build", "users_net.py:Net", "users_net.py:made", "users_net:build"])
def test_a_model_is_named_by_its_file_or_module(folder: Path, spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = list(sys.path)
    found = match_classes(spec, {"rnn.weight_hh_l0": (256, 64), "fc.weight": (80, 64), "words.weight": (90, 64)})

    assert found.classes == {
        "rnn": "torch.nn.modules.rnn.LSTM",
        "fc": "torch.nn.modules.linear.Linear",
        "words": "torch.nn.modules.sparse.Embedding",
    }
    assert found.notes == (f"{spec} was imported and run.",)
    out, err = capsys.readouterr()
    assert (out, "made" in err) == ("", True), "what the model prints must not get into a JSON document"
    assert sys.path == path


def test_a_file_called_like_a_library_does_not_hide_it(folder: Path) -> None:
    """The dataclass in it needs its own module to be found."""
    (folder / "statistics.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom torch import nn\n"
        "@dataclasses.dataclass\nclass Sizes:\n    width: int = 4\n"
        "def build():\n    return nn.Linear(Sizes().width, 5)\n"
    )
    before = sys.modules.get("statistics")

    assert match_classes("statistics.py:build", {"weight": (5, 4)}).classes == {"": "torch.nn.modules.linear.Linear"}
    assert sys.modules.get("statistics") is before


def test_running_a_model_leaves_the_random_numbers_of_the_caller_alone(folder: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)

    match_classes("users_net.py:build", {"fc.weight": (80, 64)})

    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("users_net.py", r"users_net.py: no name after a colon; .* Write file.py:name or package.module:name"),
        (":build", r":build: no file or module before the colon"),
        ("none.py:build", r"none.py:build: FileNotFoundError: no file none.py; the model could not be built"),
        ("no_such_module:build", r"no_such_module:build: .*ModuleNotFoundError: No module named 'no_such_module'"),
        ("bad_syntax.py:build", r"bad_syntax.py:build: .*SyntaxError: "),
        (
            "users_net.py:nothing",
            r"no 'nothing' in users_net.py; .* Use one of its names: torch, nn, WIDTH and \d+ more",
        ),
        ("users_net.py:broken", r"users_net.py, line 24: RuntimeError: no weights here; the model could not be built"),
        ("users_net.py:leaves", r"users_net.py, line 27: SystemExit: 2; the model could not be built"),
        ("users_net.py:needs", r"TypeError: needs\(\) missing 1 required .* name a function without arguments"),
        ("users_net.py:number", r"users_net.py:number: a int; a model is a torch.nn.Module"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_in_words(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        match_classes(spec, {"fc.weight": (80, 64)})


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "a.b.c."])
def test_a_checkpoint_may_have_a_prefix(prefix: str) -> None:
    found = match_classes(Net(), shapes(Net(), prefix))

    assert {
        path.removeprefix(prefix): name for path, name in found.classes.items() if not path.endswith("own")
    } == WANTED
    assert found.notes == ()


@pytest.mark.parametrize("wrapped", ["net", "model"])
def test_the_model_may_have_a_prefix(wrapped: str) -> None:
    outer = nn.Sequential(OrderedDict({wrapped: Net()}))

    assert match_classes(outer, shapes(Net())).classes["rnn"] == WANTED["rnn"]


def test_compiled_parts_in_the_middle_of_a_name_are_seen_through() -> None:
    found = match_classes(Net(), {"rnn._orig_mod.weight_hh_l0": (32, 8), "mine.weight": (9, 8)})

    assert found.classes == {"rnn._orig_mod": WANTED["rnn"], "mine": WANTED["mine"]}


def test_a_model_can_be_given_as_paths_and_classes() -> None:
    given: Mapping[str, str | type] = {"rnn": nn.LSTM, "mine": "torch.nn.Linear"}
    found = match_classes(given, {"module.rnn.weight_hh_l0": (32, 8), "module.mine.weight": (9, 8), "module.x": (3, 3)})

    assert found.classes == {"module.rnn": WANTED["rnn"], "module.mine": "torch.nn.Linear"}
    assert found.notes == ("the given model has 2 of the 3 weights of the checkpoint; not module.x.",)


def test_weights_of_another_shape_do_not_fit() -> None:
    found = match_classes(Net(), {**shapes(Net()), "mine.weight": (10, 8)})

    assert "mine" not in found.classes
    assert found.notes == ("the given model has 3 of the 4 weights of the checkpoint; not mine.weight.",)


def test_another_model_is_an_error() -> None:
    with pytest.raises(
        ModelError,
        match=re.escape(
            "the given model: a model with weight, bias; no weight of the checkpoint has its name and shape; "
        ),
    ):
        match_classes(nn.Linear(3, 3), {"encoder.weight": (9, 9)})


def test_a_lazy_layer_that_was_never_run_has_no_shape_to_fit() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 5))

    assert match_classes(model, {"0.weight": (4, 9), "1.weight": (5, 4)}).classes == {
        "1": "torch.nn.modules.linear.Linear"
    }


def test_tied_weights_are_found_under_all_their_names() -> None:
    words, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = words.weight
    model = nn.ModuleDict({"words": words, "head": head})

    assert set(match_classes(model, {"words.weight": (5, 4), "head.weight": (5, 4)}).classes) == {"words", "head"}


def test_an_error_raised_by_this_package_names_the_line_of_the_user_that_led_to_it(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import mpocompress\n\ndef build():\n    return mpocompress.Truncation()\n")

    with pytest.raises(ModelError, match=r"net\.py, line 4: TargetError"):
        model_builder(f"{tmp_path / 'net.py'}:build")()
