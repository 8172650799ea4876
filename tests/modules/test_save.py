"""A model with MPO layers written back: the same values, fitting names, a report that adds up."""

from __future__ import annotations

import copy
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpocompress
from mpocompress.compression.expand import expand
from mpocompress.errors import ModelError, MPOCompressError, OutputError, OutputExistsError
from mpocompress.layers.selection import LSTMChoice, Selection
from mpocompress.modules.compress import compress_module
from mpocompress.modules.save import save
from mpocompress.modules.updated_report import ADDED, SAVED
from mpocompress.mpo.mpo import MPO
from mpocompress.nn import MPOLinear, MPOWeight
from mpocompress.planning.targets import Truncation
from mpocompress.reports.compression import Report
from tests.inspecting import report_in
from tests.models import WORDS, Net, close, compressed, expanded, filled, load, same_report


@pytest.fixture(autouse=True)
def _modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test measures."""
    monkeypatch.setenv("MPOCOMPRESS_EXECUTION", "modelled")


class Wrapped(nn.Module):
    """A larger model, with tensors that were never compressed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.inner = inner
        self.top = nn.Linear(12, 64)

    def forward(self, words: Tensor) -> Tensor:
        y: Tensor = self.top(self.inner(words))
        return y


def sums(report: Report, model: nn.Module) -> None:
    """The totals are those of the tensors of a model, each counted once."""
    report.check()
    unique = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()
    assert report.totals.parameters == sum(tensor.numel() for tensor in unique)
    assert report.totals.size_bytes_after == sum(tensor.numel() * tensor.element_size() for tensor in unique)


@torch.no_grad()
@pytest.mark.parametrize("lstm", ["joint", "separate"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_saved_is_what_was_loaded(tmp_path: Path, suffix: str, lstm: LSTMChoice) -> None:
    small = compressed(tmp_path, filled(Net()), suffix=suffix, lstm=lstm)
    model = load(small, Net()).eval()
    again = tmp_path / f"again{suffix}"

    report = save(model, again)

    assert report_in(again) == report
    before = report_in(small)
    same_report(report, before)
    assert (report.source, report.target, report.aliases) == (before.source, before.target, before.aliases)
    assert report.skipped == before.skipped
    assert report.notes == (*before.notes, SAVED)
    assert {**vars_of(report.totals), "file_size_bytes_after": 0} == {
        **vars_of(before.totals),
        "file_size_bytes_after": 0,
    }
    sums(report, model)
    assert torch.equal(load(again, Net()).eval()(WORDS), model(WORDS))
    close(expanded(again, Net())(WORDS), model(WORDS))
    content = again.read_bytes()
    assert save(load(again, Net()), again, overwrite=True) == report, "nothing is said twice"
    assert again.read_bytes() == content


def vars_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_dtype_is_that_of_the_file(tmp_path: Path, dtype: torch.dtype) -> None:
    small = compressed(tmp_path, filled(Net()))
    model = load(small, Net()).to(dtype).eval()

    report = save(model, tmp_path / "again.pt")

    assert {matrix.dtype for matrix in report.compressed} == {str(dtype).removeprefix("torch.")}
    assert {matrix.source_dtype for matrix in report.compressed} == {"float32"}
    sums(report, model)
    again = load(tmp_path / "again.pt", Net().to(dtype)).eval()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    expand(tmp_path / "again.pt", tmp_path / "dense.pt")
    dense = torch.load(tmp_path / "dense.pt")
    assert (dense["fc.weight"].dtype, dense["fc.bias"].dtype) == (torch.float32, dtype)
    wide = load(tmp_path / "again.pt", Net()).eval()
    assert {tensor.dtype for tensor in wide.parameters()} == {torch.float32}


def test_cores_that_were_rounded_can_be_widened(tmp_path: Path) -> None:
    """What rounding added to the error is no part of the report of another dtype."""
    small = compressed(tmp_path, filled(Net()), dtype="bfloat16")

    report = save(load(small, Net()), tmp_path / "again.pt")

    for new, old in zip(report.compressed, report_in(small).compressed, strict=True):
        assert (old.dtype, new.dtype, new.rounding_weight) == ("bfloat16", "float32", 0.0)
        assert new.relative_error**2 * new.squared_norm == pytest.approx(sum(new.discarded_weights))


@torch.no_grad()
def test_a_trained_model_is_saved_as_it_is_now(tmp_path: Path) -> None:
    model = load(compressed(tmp_path, filled(Net())), Net()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with torch.enable_grad():
        for _ in range(3):
            optimizer.zero_grad()
            model(WORDS).square().mean().backward()
            optimizer.step()
    model.eval()

    report = save(model, tmp_path / "tuned.safetensors")

    assert SAVED in report.notes
    again = load(tmp_path / "tuned.safetensors", Net()).eval()
    assert torch.equal(again(WORDS), model(WORDS))
    close(expanded(tmp_path / "tuned.safetensors", Net())(WORDS), model(WORDS))
    assert not torch.equal(again(WORDS), load(tmp_path / "small.pt", Net()).eval()(WORDS))


@torch.no_grad()
def test_a_part_of_a_larger_model_gets_its_names(tmp_path: Path) -> None:
    small = compressed(
        tmp_path, filled(Net()), selection=Selection(min_side=8, lstm="joint"), truncation=Truncation(keep=0.3)
    )
    inner = load(small, Net())
    model = Wrapped(inner).eval()

    report = save(model, tmp_path / "whole.pt")

    before = report_in(small)
    same_report(before, report, lambda name: f"inner.{name}")
    assert [matrix.layer for matrix in report.matrices] == [f"inner.{matrix.layer}" for matrix in before.matrices]
    reasons = {tensor.name: tensor.reason for tensor in report.skipped}
    assert {name for name, reason in reasons.items() if reason == ADDED} == {"scale", "top.weight", "top.bias"}
    assert {name.removeprefix("inner."): reason for name, reason in reasons.items() if reason != ADDED} == {
        tensor.name: tensor.reason for tensor in before.skipped
    }
    sums(report, model)
    again = load(tmp_path / "whole.pt", Wrapped(Net())).eval()
    assert torch.equal(again(WORDS), model(WORDS))


@torch.no_grad()
def test_a_part_of_the_loaded_model_is_saved_alone(tmp_path: Path) -> None:
    model = load(compressed(tmp_path, filled(Net()), prefix="module."), Net()).eval()

    report = save(model.lstm, tmp_path / "lstm.pt")
    alone = save(model.own, tmp_path / "own.safetensors")

    assert {matrix.name for matrix in report.compressed} >= {"weight_joint_l0", "weight_ih_l1"} & {
        matrix.name for matrix in report.compressed
    }
    assert {matrix.layer for matrix in report.compressed} == {""}
    sums(report, model.lstm)
    again = load(tmp_path / "lstm.pt", nn.LSTM(16, 24, num_layers=2, bidirectional=True, batch_first=True)).eval()
    x = torch.randn(2, 3, 16)
    assert torch.equal(again(x)[0], model.lstm(x)[0])
    assert [matrix.members for matrix in alone.compressed] == [("weight",)]


def test_what_stayed_dense_is_still_told(tmp_path: Path) -> None:
    net = filled(nn.Sequential(OrderedDict(a=nn.Linear(32, 32), b=nn.Linear(32, 32))))
    small = compressed(tmp_path, net, truncation=Truncation(max_bond=4, bond_by_layer={"b": 1000}))
    assert [bool(matrix.reason) for matrix in report_in(small).matrices] == [False, True]

    report = save(Wrapped(load(small, copy.deepcopy(net))), tmp_path / "again.pt")

    assert [(matrix.name, matrix.layer, bool(matrix.reason)) for matrix in report.matrices] == [
        ("inner.a.weight", "inner.a", False),
        ("inner.b.weight", "inner.b", True),
    ]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(16, 24) for _ in range(3))
        self.second.weight = self.first.weight
        self.second.bias = self.first.bias
        self.left = nn.LSTM(16, 24)
        self.right = self.left
        self.other = nn.LSTM(16, 24)
        self.other.weight_ih_l0, self.other.weight_hh_l0 = self.left.weight_ih_l0, self.left.weight_hh_l0


@pytest.mark.parametrize("lstm", ["joint", "separate"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tied_tensors_stay_tied(tmp_path: Path, suffix: str, lstm: LSTMChoice) -> None:
    small = compressed(tmp_path, filled(Tied()), suffix=suffix, lstm=lstm)
    model = load(small, Tied())

    report = save(model, tmp_path / f"again{suffix}")

    before = report_in(small)
    assert dict(report.aliases) == dict(before.aliases)
    with mpocompress.open_checkpoint(tmp_path / f"again{suffix}") as stored:
        assert stored.tensors["second.bias"].alias_of == "first.bias"
    assert report.totals.parameters == before.totals.parameters
    again = load(tmp_path / f"again{suffix}", Tied())
    assert again.second.weight is again.first.weight
    assert again.second.bias is again.first.bias
    assert again.left is again.right
    name = "weight_joint_l0" if lstm == "joint" else "weight_hh_l0"
    assert getattr(again.other, name) is getattr(again.left, name)
    twin = expanded(tmp_path / f"again{suffix}", Tied())
    assert torch.equal(twin.other.weight_hh_l0, twin.left.weight_hh_l0)


@torch.no_grad()
def test_single_cores_that_are_tied_are_written_as_copies(tmp_path: Path) -> None:
    def build() -> Any:
        return filled(nn.Sequential(nn.Linear(16, 24), nn.Linear(16, 24)))

    model: Any = load(compressed(tmp_path, build()), build())
    model[1].weight.core[0] = model[0].weight.core[0]
    model.register_parameter("odd", model[0].weight.core[1])

    for suffix in (".pt", ".safetensors"):
        report = save(model, tmp_path / f"again{suffix}")
        assert report.aliases == {}
        twin = build()
        twin.register_parameter("odd", nn.Parameter(torch.zeros_like(model.odd)))
        again = load(tmp_path / f"again{suffix}", twin)
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
        expand(tmp_path / f"again{suffix}", tmp_path / f"dense{suffix}")


@torch.no_grad()
def test_copies_and_pickles_can_be_saved_as_well(tmp_path: Path) -> None:
    model = load(compressed(tmp_path, filled(Net())), Net())
    wanted = save(model, tmp_path / "first.pt")
    content = (tmp_path / "first.pt").read_bytes()

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert save(twin, tmp_path / "again.pt", overwrite=True) == wanted
        assert (tmp_path / "again.pt").read_bytes() == content


class DistributedDataParallel(nn.parallel.DistributedDataParallel):
    """Without the process group that it wants."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


def compiled(model: nn.Module) -> Any:
    return torch.compile(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        DistributedDataParallel,
        lambda model: torch.compile(DistributedDataParallel(model)),
        lambda model: DistributedDataParallel(compiled(model)),
    ],
    ids=range(5),
)
def test_what_torch_puts_around_a_model_is_not_in_the_names(tmp_path: Path, wrap: Any) -> None:
    model = load(compressed(tmp_path, filled(Net())), Net())
    wanted = save(model, tmp_path / "first.pt")

    assert save(wrap(model), tmp_path / "again.pt") == wanted


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_part_that_is_compiled_has_plain_names(tmp_path: Path) -> None:
    model: Any = load(compressed(tmp_path, filled(Net())), Net())
    wanted = save(model, tmp_path / "first.pt")
    model.fc = torch.compile(model.fc)

    assert save(model, tmp_path / "again.pt") == wanted


def test_a_compressed_module_is_saved_without_any_file_before(tmp_path: Path) -> None:
    small, report = compress_module(filled(Net()), truncation=Truncation(max_bond=6), selection=Selection(min_side=8))

    saved = save(small, tmp_path / "small.safetensors")

    same_report(saved, report)
    assert saved.source == report.source
    again = load(tmp_path / "small.safetensors", Net()).eval()
    assert torch.equal(again(WORDS), small(WORDS))


class Counting(nn.Linear):
    """Keeps things beside its tensors."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.extra: Any = {"count": 3, "odd": object()}

    def get_extra_state(self) -> Any:
        return self.extra

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


def test_the_extra_state_of_modules_is_saved_as_far_as_a_file_holds_it(tmp_path: Path) -> None:
    def build() -> Any:
        return nn.ModuleDict({"fc": nn.Linear(16, 24), "count": Counting(2, 2)})

    net = build()
    torch.save({"run": {"weights": nn.ModuleDict({"fc": net["fc"]}).state_dict()}}, tmp_path / "model.pt")
    mpocompress.compress(
        tmp_path / "model.pt", tmp_path / "small.pt", truncation=Truncation(max_bond=4), selection=Selection(min_side=8)
    )
    model = load(tmp_path / "small.pt", build(), strict=False)

    report = save(model, tmp_path / "again.pt")
    beside = save(model, tmp_path / "again.safetensors")

    odd = "count._extra_state.odd is not stored: a plain file cannot hold a value of type object"
    assert report.notes[-1] == odd
    again: Any = load(tmp_path / "again.pt", build())
    assert again["count"].extra == {"count": 3}
    assert beside.notes[-2:] == (odd, "not stored, because a safetensors file cannot hold them: count._extra_state")
    assert load(tmp_path / "again.safetensors", build(), strict=False)


def hide(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    del state["fc.weight.core.1"]


def refused(model: nn.Module, path: Path, message: str, kind: type[Exception] = ModelError) -> None:
    with pytest.raises(kind, match=message):
        save(model, path)
    assert not path.exists()


def test_what_cannot_be_saved_is_said_in_words(tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    loaded: Any = load(compressed(tmp_path, filled(Net())), Net())
    refused(
        Net(),
        target,
        r"^Net: no MPO layer; only a model with MPO layers can be saved\. Pass a model from `load` or "
        r"`compress_module`; save any other with torch\.save\.$",
    )
    refused(loaded.fc.weight, target, r"^MPOWeight: a single weight; only a model with MPO layers can be saved\.")
    mpo = MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)])
    refused(
        nn.Sequential(loaded, MPOLinear(MPOWeight(mpo))),
        target,
        r"^1\.weight: cores that came from no compressed file or model; there is no report of the "
        r"compression\. Save the model with torch\.save, or compress the whole model\.$",
    )
    loaded.fc.weight.core[0].data[0, 0, 0, 0] = float("inf")
    refused(
        loaded, target, r"^fc\.weight: cores that hold NaN or Inf; a compressed file must not hold them\. Return to"
    )
    mixed: Any = load(tmp_path / "small.pt", Net())
    mixed.fc.weight.core[0] = nn.Parameter(mixed.fc.weight.core[0].half())
    refused(
        mixed,
        target,
        r"^fc\.weight: cores of float16, float32; they must all be of one of float16, bfloat16, float32, float64\.",
    )
    other: Any = load(tmp_path / "small.pt", Net())
    other.fc.weight.sites = mpo.sites
    refused(
        other, target, r"^fc\.weight: cores with other sites than when they were loaded; the report does not describe "
    )
    hidden: Any = load(tmp_path / "small.pt", Net())
    hidden.register_state_dict_post_hook(hide)
    refused(
        hidden,
        target,
        r"^fc\.weight: cores that are not in the state dict under their names; they could not be read",
    )
    lazy = load(tmp_path / "small.pt", Net())
    lazy.more = nn.LazyLinear(3)
    refused(
        lazy,
        target,
        r"^more\.weight: a parameter without a size; its layer is lazy and was never run\. Run the model once, or load",
    )
    sparse = load(tmp_path / "small.pt", Net())
    sparse.register_buffer("more", torch.eye(3).to_sparse())
    refused(
        sparse,
        target,
        r"^Net: more is a quantized, nested or sparse tensor; only dense tensors with data can be stored\.",
        MPOCompressError,
    )


def test_parts_of_different_compressions_do_not_make_one_file(tmp_path: Path) -> None:
    net = filled(nn.Sequential(nn.Linear(16, 24)))
    first = load(compressed(tmp_path, net), copy.deepcopy(net))
    same = load(tmp_path / "small.pt", copy.deepcopy(net))
    other = load(compressed(tmp_path, net, bond=3), copy.deepcopy(net))

    refused(
        nn.Sequential(first, other),
        tmp_path / "out.pt",
        r"^1\.0\.weight: cores from model\.pt, beside others from model\.pt; a file has the report of one "
        r"compression\. Save "
        r"the parts of the model to separate files\.$",
    )
    report = save(nn.Sequential(first, same), tmp_path / "out.pt")
    assert [matrix.name for matrix in report.compressed] == ["0.0.weight", "1.0.weight"]
    again = load(tmp_path / "out.pt", nn.Sequential(copy.deepcopy(net), copy.deepcopy(net)))
    x = torch.randn(2, 16)
    assert torch.equal(again[0](x), first(x))


def test_an_output_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    model = load(compressed(tmp_path, filled(Net())), Net())
    (tmp_path / "out.pt").write_text("mine")

    with pytest.raises(OutputExistsError, match=re.escape("out.pt: the file exists")):
        save(model, tmp_path / "out.pt")
    with pytest.raises(OutputError, match="no folder"):
        save(model, tmp_path / "none" / "out.pt")
    assert (tmp_path / "out.pt").read_text() == "mine"
    save(model, tmp_path / "out.pt", overwrite=True)
    assert report_in(tmp_path / "out.pt").compressed


def test_a_model_is_saved_over_the_file_it_came_from(tmp_path: Path) -> None:
    """Nothing of the file is mapped any more."""
    for suffix in (".pt", ".safetensors"):
        small = compressed(tmp_path, filled(Net()), suffix=suffix)
        model = load(small, Net()).eval()
        wanted = model(WORDS)

        save(model, small, overwrite=True)

        assert torch.equal(model(WORDS), wanted)
        assert torch.equal(load(small, Net()).eval()(WORDS), wanted)
