"""The same model in every form it is saved in: the same cores bit by bit, or a refusal in words."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpocompress import Truncation, compress, expand
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import CheckpointError, OutputError
from mpocompress.reports.compression import Report
from tests.forms.every import FORMS
from tests.forms.model import CLASSES, state
from tests.forms.registry import Form
from tests.inspecting import report_in

pytestmark = pytest.mark.slow

FOUR = Truncation(max_bond=4)


def each(forms: Iterable[Form]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return pytest.mark.parametrize("form", [pytest.param(form, id=f"{form.group}: {form.title}") for form in forms])


def build(form: Form, folder: Path) -> Path:
    """Save the model in a form, in an empty folder; nothing of it can be imported afterwards."""
    (folder / "in").mkdir()
    source = form.made(folder / "in")
    assert "train_script" not in sys.modules
    return source


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """The files of a form.

    Args:
        source: The model in this form.
        small: The compressed file.
        dense: The compressed file expanded, in safetensors.
        report: What `compress` returned.
    """

    source: Path
    small: Path
    dense: Path
    report: Report


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Form], Compressed]:
    """Return a function that compresses and expands a form, once for all tests."""

    @cache
    def files(form: Form) -> Compressed:
        folder = tmp_path_factory.mktemp("form")
        source, small, dense = build(form, folder), folder / "small.pt", folder / "dense.safetensors"
        report = compress(source, small, truncation=FOUR, key=form.key, jobs=1)
        expand(small, dense)
        return Compressed(source=source, small=small, dense=dense, report=report)

    return files


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[torch.dtype], dict[str, Tensor]]:
    """Return a function that gives the compressed tensors of the model in a dtype, from a plain safetensors file."""
    folder = tmp_path_factory.mktemp("reference")

    @cache
    def tensors(dtype: torch.dtype) -> dict[str, Tensor]:
        source, target = folder / f"{dtype}.safetensors", folder / f"{dtype}.small.safetensors"
        save_file(state(dtype), source)
        compress(source, target, truncation=FOUR, jobs=1)
        return load_file(target)

    return tensors


def test_the_reference_is_compressed(reference: Callable[[torch.dtype], dict[str, Tensor]]) -> None:
    """Equal files would prove little if nothing in them was a core."""
    names = set(reference(torch.float32))
    weights = {name for name, tensor in state().items() if tensor.dim() == 2 and not name.startswith("embed")}

    assert names.isdisjoint(weights)
    assert {name.split(".")[0] for name in names if ".core." in name} == {"lstm", "fc", "out"}


def renamed(tensors: Mapping[str, Tensor], form: Form) -> dict[str, Tensor]:
    """Return the tensors that a file of this form has to hold, given those of the usual names."""
    return {form.prefix + name: tensor for name, tensor in tensors.items() if name.split(".")[0] not in form.without}


@each(form for form in FORMS if form.container)
def test_it_is_compressed_to_the_same_bits_and_comes_back_under_its_names(
    form: Form,
    compressed: Callable[[Form], Compressed],
    reference: Callable[[torch.dtype], dict[str, Tensor]],
) -> None:
    files = compressed(form)

    assert files.report.source.container == form.container
    assert report_in(files.small) == files.report
    for pattern in form.says:
        assert any(re.search(pattern, note) for note in files.report.notes), (pattern, files.report.notes)
    cores: dict[str, Tensor] = torch.load(files.small, weights_only=True)["state_dict"]
    for name, tensor in renamed(reference(form.dtype), form).items():
        assert (cores[name].dtype, cores[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(cores[name], tensor), name
    dense = load_file(files.dense)
    rebuilt = {name for matrix in files.report.compressed for name in matrix.members}
    for name, tensor in renamed(state(form.dtype), form).items():
        assert (dense[name].dtype, dense[name].shape) == (tensor.dtype, tensor.shape), name
        assert name in rebuilt or torch.equal(dense[name], tensor), name


IN_PLACE = [
    form for form in FORMS if form.container and form.container != "pickle" and form.group != "Folders and shards"
]
"""Forms that are one file, whose tensors lie in it as they are."""


@each(form for form in FORMS if form.container and form not in IN_PLACE)
def test_a_form_that_cannot_be_given_back_says_so(
    form: Form, tmp_path: Path, compressed: Callable[[Form], Compressed]
) -> None:
    files = compressed(form)

    with pytest.raises(OutputError, match=r"Expand (without an original|into a folder instead)"):
        expand(files.small, tmp_path / "back", like=files.source)

    assert not (tmp_path / "back").exists()


@each(IN_PLACE)
def test_it_comes_back_in_its_own_form(form: Form, tmp_path: Path, compressed: Callable[[Form], Compressed]) -> None:
    files = compressed(form)
    back = tmp_path / f"back{files.source.suffix}"

    expand(files.small, back, like=files.source)

    with open_checkpoint(files.source, key=form.key) as before, open_checkpoint(back, key=form.key) as after:
        assert (after.container, after.key, after.classes) == (before.container, before.key, before.classes)
        assert list(after.tensors) == list(before.tensors)
        for name, tensor in load_file(files.dense).items():
            assert torch.equal(after.tensor(name), tensor), name


@each(form for form in FORMS if form.classes)
def test_it_says_the_class_of_every_layer(form: Form, compressed: Callable[[Form], Compressed]) -> None:
    with open_checkpoint(compressed(form).source, key=form.key) as checkpoint:
        classes = {path: name.rpartition(".")[2] for path, name in checkpoint.classes.items() if path in CLASSES}

    assert classes == CLASSES


@each(form for form in FORMS if form.refused)
def test_it_is_refused_in_words(form: Form, tmp_path: Path) -> None:
    source = build(form, tmp_path)

    with pytest.raises(CheckpointError, match=re.escape(form.refused)) as caught:
        compress(source, tmp_path / "small.pt", truncation=FOUR, key=form.key, jobs=1)

    error = caught.value
    assert form.refused in error.found
    assert form.advice in error.action
    assert str(error) == f"{error.where}: {error.found}; {error.why}. {error.action}"
    assert not (tmp_path / "small.pt").exists()
