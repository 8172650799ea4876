"""Our own format, made to contradict itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from mpocompress import Truncation, compress
from tests.hostile.files import saved, weights
from tests.hostile.registry import Cases

cases = Cases()

Document = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@cache
def _made(dtype: str = "float32") -> tuple[str, Tensors]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        compress(
            saved(folder, weights()), folder / "s.pt", truncation=Truncation(max_bond=4), sites=3, dtype=dtype, jobs=1
        )
        read = torch.load(folder / "s.pt", weights_only=True)
        return read["mpocompress"], read["state_dict"]


def edited(folder: Path, edit: Callable[[Document, Tensors], object], dtype: str = "float32") -> Path:
    """A compressed file, its document and tensors changed by a function."""
    text, tensors = _made(dtype)
    document, tensors = json.loads(text), copy.copy(tensors)
    edit(document, tensors)
    return saved(folder, {"mpocompress": json.dumps(document), "state_dict": tensors, "extras": {}})


def matrix(**changes: object) -> Callable[[Document, Tensors], object]:
    """An edit of what the document says of its one matrix."""
    return lambda document, tensors: document["matrices"][0].update(changes)


def core(number: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Document, Tensors], object]:
    """An edit of one core."""

    def edit(document: Document, tensors: Tensors) -> None:
        name = f"fc.weight.core.{number}"
        tensors[name] = change(tensors[name])

    return edit


EDITS: dict[str, tuple[Callable[[Document, Tensors], object], str]] = {
    "bonds that do not chain": (core(1, lambda one: one[:-1]), r"fc\.weight"),
    "a core of other dims": (core(0, lambda one: one[:, :2]), r"fc\.weight"),
    "a core of three dims": (core(0, lambda one: one[0]), r"fc\.weight"),
    "a core that is not there": (lambda _, tensors: tensors.pop("fc.weight.core.2"), r"core\.2|fc\.weight"),
    "a core of whole numbers": (core(0, lambda one: one.int()), "the report says .*, floating point"),
    "a core of NaN": (core(0, lambda one: one * float("nan")), "NaN"),
    "sites that multiply to another shape": (matrix(row_dims=[4, 4, 5]), r"fc\.weight|figures|add up|matrices"),
    "2^40 x 2^40 from 33 KB": (
        lambda document, tensors: (
            document["matrices"][0].update(row_dims=[2**14, 2**13, 2**13], col_dims=[2**14, 2**13, 2**13]),
            tensors.update(
                {f"fc.weight.core.{n}": torch.ones(1).expand(1, 2 ** (14 - (n > 0)), 1, 1) for n in range(3)}
            ),
        ),
        r"fc\.weight|matrices|claims|parameters",
    ),
    "a matrix of a negative side": (matrix(row_dims=[-4, -4, 4]), "matrices|sites|row"),
    "a bond of zero": (matrix(bonds=[0, 4]), r"matrices\[0\]\.bonds\[0\]: expected `int` >= 1"),
    "bonds that are text": (matrix(bonds="44"), "matrices|bonds"),
    "bonds that are true": (matrix(bonds=[True, True]), "matrices|bonds"),
    "a parameter count that lies": (matrix(parameters=1), "add up|parameters"),
    "an error of NaN": (matrix(relative_error=float("nan")), "relative_error|finite|matrices|JSON|number"),
    "a norm of infinity": (matrix(squared_norm=float("inf")), "squared_norm|finite|matrices|JSON|number"),
    "an error of 1e999": (matrix(relative_error="1e999"), "relative_error|matrices"),
    "a member named twice": (matrix(members=["fc.weight", "fc.weight"]), "members|fc.weight"),
    "a member with the name of a tensor": (matrix(members=["fc.bias"]), "fc.bias|members"),
    "a type of weight that is none": (matrix(source_dtype="object"), "source_dtype|object"),
    "matrices that are a dict": (lambda document, _: document.update(matrices={}), "matrices: expected `array`, got"),
    "matrices that are text": (
        lambda document, _: document.update(matrices=["a"]),
        r"matrices\[0\]: expected `object`",
    ),
    "no matrices at all": (lambda document, _: document.pop("matrices"), "matrices"),
    "totals of text": (lambda document, _: document.update(totals="many"), "totals: expected `object`"),
    "totals of 10^400": (lambda document, _: document["totals"].update(parameters=10**400), r"totals\.parameters: "),
    "a layer of an unknown kind": (matrix(kind="gru"), "kind: expected one of lstm, lstm_cell, linear, conv1d"),
    "a target of an unknown kind": (
        lambda document, _: document["target"].update(kind="poetry"),
        "target.kind: 'poetry'",
    ),
    "an unknown major version": (lambda document, _: document.update(version=99), "99|version"),
    "a version of text": (lambda document, _: document.update(version="1; rm -rf"), "version"),
    "another format": (lambda document, _: document.update(format="other"), "format"),
    "an alias of itself": (lambda document, _: document.update(aliases={"a": "a"}), "alias|a"),
    "aliases in a circle": (lambda document, _: document.update(aliases={"a": "b", "b": "a"}), "alias|a"),
    "an alias of nothing": (lambda document, _: document.update(aliases={"a": "gone"}), "alias|gone"),
    "an alias with the name of a tensor": (lambda document, _: document.update(aliases={"fc.bias": "fc.weight"}), "fc"),
    "aliases that are a list": (lambda document, _: document.update(aliases=[["a", "b"]]), "aliases"),
    "a key that leads out": (lambda document, _: document["source"].update(key=3), "key|source"),
}

SHOWN_BY_INSPECT = {
    "bonds that do not chain",
    "a core of other dims",
    "a core of three dims",
    "a core that is not there",
    "a core of whole numbers",
    "a core of NaN",
    "a member with the name of a tensor",
    "an alias of itself",
    "aliases in a circle",
    "an alias of nothing",
    "an alias with the name of a tensor",
}
"""Edits that leave the document consistent: only a command that reads the tensors can refuse them."""

for title, (edit, says) in EDITS.items():

    @cases.refused(title, says, command="expand")
    def expanded(folder: Path, canary: Path, edit: Callable[[Document, Tensors], object] = edit) -> Path:
        return edited(folder, edit)


def scale(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Document, Tensors], object]:
    """An edit of the scales of the first core."""

    def edit(document: Document, tensors: Tensors) -> None:
        tensors["fc.weight.core.0.scale"] = change(tensors["fc.weight.core.0.scale"])

    return edit


INT8_EDITS: dict[str, tuple[Callable[[Document, Tensors], object], str]] = {
    "scales that are not there": (lambda _, tensors: tensors.pop("fc.weight.core.2.scale"), r"core\.2\.scale"),
    "scales of NaN": (scale(lambda one: one * float("nan")), "scales that are not all positive and finite"),
    "scales of zero": (scale(torch.zeros_like), "scales that are not all positive and finite"),
    "scales that overflow": (scale(lambda one: one * 1e40), "scales that are not all positive and finite"),
    "scales for other channels": (scale(lambda one: one[:1]), "scales of shapes .*, float32"),
    "scales over no memory": (scale(lambda one: one[:1].expand(2**40)), "claims|scales of shapes"),
    "scales in half": (scale(torch.Tensor.half), "scales of shapes .*, float32"),
    "codes of -128": (core(1, lambda one: one.clone().fill_(-128)), "codes below -127"),
    "cores of int32": (core(1, lambda one: one.int()), "the report says .*, int8"),
    "int8 that the report calls float32": (matrix(dtype="float32"), "floating point|rounding cores to float32"),
    "a dense weight that is to be int8": (matrix(source_dtype="int8"), "source_dtype: expected one of float16, "),
}

for title, (edit, says) in INT8_EDITS.items():

    @cases.refused(f"{title}, in int8", says, command="expand")
    def quantised(folder: Path, canary: Path, edit: Callable[[Document, Tensors], object] = edit) -> Path:
        return edited(folder, edit, "int8")


DOCUMENTS = {
    "no JSON": "{",
    "a list": "[]",
    "nested 100,000 deep": "[" * 100_000,
    "a number": "7",
    "empty": "",
    "an object without anything": "{}",
    "a number of 10,000 digits": '{"format": "mpocompress", "version": ' + "9" * 10_000 + "}",
    "the same key twice": '{"format": "mpocompress", "version": 1, "version": 1}',
}

for title, text in DOCUMENTS.items():
    for command in ("inspect", "expand", "compress"):

        @cases.refused(f"a document that is {title}, to {command}", r"model\.pt", command=command)
        def document(folder: Path, canary: Path, text: str = text) -> Path:
            return saved(folder, {"mpocompress": text, "state_dict": weights(), "extras": {}})


@cases.refused("a state dict that is a number", "'state_dict' or 'extras' is not a dict", command="inspect")
def state_number(folder: Path, canary: Path) -> Path:
    return saved(folder, {"mpocompress": "{}", "state_dict": 3})


@cases.refused("extras that are a number", "'state_dict' or 'extras' is not a dict", command="inspect")
def extras_number(folder: Path, canary: Path) -> Path:
    return saved(folder, {"mpocompress": "{}", "state_dict": {}, "extras": 3})


@cases.refused("a state dict with a number in it", r"entry a\\n of 'state_dict' is not an ordinary", command="inspect")
def entry_number(folder: Path, canary: Path) -> Path:
    return saved(folder, {"mpocompress": "{}", "state_dict": {"a\n": 3}})


@cases.refused("a document of 70 MB", "70.0 MB", command="inspect")
def large_document(folder: Path, canary: Path) -> Path:
    return saved(folder, {"mpocompress": " " * 70_000_000, "state_dict": weights(), "extras": {}})


@cases.refused("a file compressed twice", "already compressed")
def again(folder: Path, canary: Path) -> Path:
    return edited(folder, lambda document, tensors: None)


ALIASES = ["[", "[]", "[" * 100_000, '{"a": "gone"}', '{"fc.bias": "steps"}', '{"a": ["fc.bias"]}', '{"a": "a"}']

for aliases in ALIASES:

    @cases.refused(
        f"{len(aliases)} characters of aliases in safetensors that say {aliases[:20]}",
        "is not a JSON object|does not fit the tensors",
        command="inspect",
    )
    def header_aliases(folder: Path, canary: Path, aliases: str = aliases) -> Path:
        text, tensors = _made()
        save_file(tensors, folder / "model.safetensors", {"mpocompress": text, "mpocompress.aliases": aliases})
        return folder / "model.safetensors"
