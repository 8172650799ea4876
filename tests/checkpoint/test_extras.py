"""What is kept beside the tensors, value by value."""

from __future__ import annotations

import types
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch

from mpocompress.checkpoint.contents.structure import NOTHING, plain_part
from mpocompress.checkpoint.reader import open_checkpoint
from tests.checkpoint.files import state_dict


def _opened(tmp_path: Path, value: object) -> tuple[Any, tuple[str, ...]]:
    torch.save(value, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        return checkpoint.extras, checkpoint.notes


def test_one_odd_value_does_not_take_its_neighbours_along(tmp_path: Path) -> None:
    settings = {"lr": 0.1, "loss": torch.nn.MSELoss(), "sizes": [1, types.SimpleNamespace(), 3], "pair": (1, print)}
    extras, notes = _opened(tmp_path, {"state_dict": state_dict(), "hyper_parameters": settings})
    assert extras["hyper_parameters"] == {"lr": 0.1, "sizes": [1, None, 3], "pair": (1, None)}
    assert notes == (
        "hyper_parameters.loss: a value of type torch.nn.modules.loss.MSELoss is not carried over",
        "hyper_parameters.sizes.1: a value of type types.SimpleNamespace is not carried over",
        "hyper_parameters.pair.1: a value of type class or function (builtins.print) is not carried over",
    )


def test_many_odd_values_are_counted_after_the_first(tmp_path: Path) -> None:
    odd = [types.SimpleNamespace(number=number) for number in range(25)]
    extras, notes = _opened(tmp_path, {"state_dict": state_dict(), "odd": odd})
    assert extras["odd"] == [None] * 25
    assert len(notes) == 11
    assert notes[-1] == "odd: 15 more values in it are not carried over"


def test_keys_that_are_no_plain_values_go(tmp_path: Path) -> None:
    value = {"state_dict": state_dict(), "table": {1: "a", print: "b", (1, "x"): "c", torch.float16: "d"}, print: 3}
    extras, notes = _opened(tmp_path, value)
    assert extras["table"] == {1: "a", (1, "x"): "c", torch.float16: "d"}
    assert list(extras) == ["state_dict", "table"]
    assert sorted(notes) == [
        "table, a key: a value of type class or function (builtins.print) is not carried over",
        "the file: an entry whose key is no plain value is not carried over",
    ]


def test_the_versions_of_modules_stay_only_if_they_are_plain(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 2).state_dict()
    assert vars(_opened(tmp_path, {"model": state})[0]["model"]) == {"_metadata": {"": {"version": 1}}}
    state._metadata[""]["odd"] = types.SimpleNamespace()  # type: ignore[attr-defined]
    assert vars(_opened(tmp_path, {"model": state})[0]["model"]) == {}


def test_what_is_plain_is_the_same_object_and_sharing_stays() -> None:
    shared = [1, object()]
    value = {"a": shared, "b": shared, "c": {"plain": Counter("aab")}}
    plain, dropped = plain_part(value, "x")
    assert isinstance(plain, dict)
    assert plain["a"] is plain["b"]
    assert plain["c"] is value["c"]
    assert dropped == (("x.a.1", "object"),)
    assert plain_part({"a": [1]}, "x") == ({"a": [1]}, ())
    assert plain_part(object(), "x")[0] is NOTHING
    assert type(plain_part(OrderedDict(a=object()), "x")[0]) is OrderedDict


def test_what_unfolds_to_billions_is_walked_once() -> None:
    value: Any = [object()]
    for _ in range(60):
        value = [value, value]
    assert len(plain_part(value, "x")[1]) == 1
