"""A model compressed in memory: what a file would become, in a copy that shares nothing with the model."""

from __future__ import annotations

import copy
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpocompress
from mpocompress.errors import CheckpointError, ExecutionError, ModelError, SelectionError, SitesError, TargetError
from mpocompress.layers.selection import LSTMChoice, Selection
from mpocompress.modules import compress as compressing
from mpocompress.nn import MPOLSTM, MPOLinear, MPOWeight
from mpocompress.planning.targets import Truncation
from mpocompress.reports.compression import Report
from tests.inspecting import report_in
from tests.models import BOND, WORDS, Net, compressed, filled, load, same_report, state_of

SMALL = Selection(min_side=8)


def compress_module(model: nn.Module, truncation: Truncation, **options: Any) -> tuple[Any, Report]:
    """As the library does; whatever the type checker thinks of what the model has become."""
    return compressing.compress_module(model, truncation=truncation, **options)


@pytest.fixture(autouse=True)
def _modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test measures."""
    monkeypatch.setenv("MPOCOMPRESS_EXECUTION", "modelled")


@torch.no_grad()
@pytest.mark.parametrize(
    "target", [{"max_bond": BOND}, {"energy": 0.9}, {"max_error": 0.3}, {"keep": 0.4}, {"max_params": 9000}], ids=str
)
def test_it_becomes_what_the_file_becomes(tmp_path: Path, target: dict[str, Any]) -> None:
    net = filled(Net())
    truncation = Truncation(**target)
    small = compressed(tmp_path, net, truncation=truncation)
    before = state_of(net)

    model, report = compress_module(net, truncation, selection=SMALL, jobs=1)

    stored = report_in(small)
    same_report(report, stored)
    assert report.target == stored.target
    assert [(tensor.name, tensor.shape) for tensor in report.skipped] == [
        (tensor.name, tensor.shape) for tensor in stored.skipped
    ]
    wanted = load(small, Net()).eval()
    assert list(model.state_dict()) == list(wanted.state_dict())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in wanted.state_dict().items())
    assert torch.equal(model(WORDS), wanted(WORDS))
    assert state_of(net) == before
    totals = ("dense_parameters", "parameters", "size_bytes_before", "size_bytes_after")
    assert [getattr(report.totals, name) for name in totals] == [getattr(stored.totals, name) for name in totals]


@pytest.mark.parametrize("lstm", ["joint", "separate"])
def test_the_new_model_shares_nothing_with_the_given_one(lstm: LSTMChoice) -> None:
    net = filled(Net()).train()
    net.lstm.eval()
    net.fc.requires_grad_(False)
    before = state_of(net)

    model, _ = compress_module(net, Truncation(max_bond=BOND), selection=Selection(min_side=8, lstm=lstm))

    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(1)
    assert state_of(net) == before
    assert not {id(module) for module in model.modules()} & {id(module) for module in net.modules()}
    assert (model.training, model.lstm.training) == (True, False)
    assert not any(tensor.requires_grad for tensor in model.fc.parameters())


def test_replaced_weights_are_never_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[tuple[int, ...]] = []
    plain: Any = nn.Parameter.__deepcopy__

    def counted(self: nn.Parameter, memo: Any) -> Any:
        copied.append(tuple(self.shape))
        return plain(self, memo)

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", counted)

    compress_module(filled(Net()), Truncation(max_bond=BOND), selection=SMALL)

    assert {len(shape) for shape in copied if shape != (9, 16)} == {1}


def test_layers_tied_and_shared_stay_so_in_the_new_model() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 24), nn.Linear(16, 24)
            self.second.weight = self.first.weight
            self.left = nn.LSTM(16, 24)
            self.right = self.left

    net = filled(Tied())

    model, report = compress_module(net, Truncation(max_bond=BOND), selection=SMALL)

    assert model.first.weight is model.second.weight
    assert isinstance(model.first.weight, MPOWeight)
    assert model.left is model.right
    assert report.aliases["second.weight"] == "first.weight"
    assert len(report.compressed) == len({matrix.name for matrix in report.compressed}) <= 3


def test_views_of_one_memory_are_tied_by_value() -> None:
    net = filled(nn.ModuleDict({"a": nn.Linear(16, 24), "b": nn.Linear(16, 24)}))
    net["b"].weight = nn.Parameter(net["a"].weight.data)

    model: Any = compress_module(net, Truncation(max_bond=BOND), selection=SMALL)[0]

    assert model["a"].weight is not model["b"].weight
    assert torch.equal(model["a"].weight.dense(), model["b"].weight.dense())


def test_the_model_itself_may_be_the_layer() -> None:
    lstm = filled(nn.LSTM(16, 24))

    model, report = compress_module(lstm, Truncation(max_bond=BOND), selection=SMALL)

    assert isinstance(model, MPOLSTM)
    assert (report.source.file, report.source.container) == ("LSTM", "memory")


def test_only_what_was_selected_is_replaced() -> None:
    model, _ = compress_module(
        filled(Net()),
        Truncation(max_bond=BOND),
        selection=Selection(min_side=8, include=("fc",)),
        execution="materialised",
    )

    assert isinstance(model.fc, MPOLinear)
    assert model.fc.execution == "materialised"
    assert [type(layer) for layer in (model.lstm, model.cell)] == [nn.LSTM, nn.LSTMCell]


def test_classes_decide_what_a_layer_is() -> None:
    """By name and shape this would be a Linear layer."""
    net = nn.ModuleDict({"fc": nn.Linear(16, 24), "table": nn.Embedding(32, 16)})

    _, report = compress_module(filled(net), Truncation(max_bond=4), selection=SMALL)

    assert [(matrix.name, matrix.kind_from) for matrix in report.compressed] == [("fc.weight", "recorded class")]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_cores_are_rounded_and_stay_in_the_dtype_of_the_weight(tmp_path: Path, dtype: str) -> None:
    net = filled(Net())
    small = compressed(tmp_path, net, dtype=dtype)

    model, report = compress_module(net, Truncation(max_bond=BOND), selection=SMALL, dtype=dtype)

    same_report(report, report_in(small))
    wanted = load(small, Net()).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_half_models_stay_half() -> None:
    model, report = compress_module(filled(Net()).bfloat16(), Truncation(max_bond=BOND), selection=SMALL)

    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert {matrix.dtype for matrix in report.compressed} == {"bfloat16"}


def test_the_digest_tells_models_apart_and_nothing_else() -> None:
    def digest(net: nn.Module) -> str:
        return compress_module(net, Truncation(max_bond=2), selection=SMALL)[1].source.sha256

    net = filled(nn.Sequential(nn.Linear(16, 24)))
    other, tied = copy.deepcopy(net), copy.deepcopy(net)
    other[0].bias.data[3] += 1
    names = nn.Sequential(OrderedDict(a=copy.deepcopy(net[0])))

    assert digest(net) == digest(tied)
    assert len({digest(net), digest(other), digest(names)}) == 3
    assert len(digest(net)) == 64


def test_progress_is_told_and_the_folder_for_temporary_files_is_left_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    steps: list[Any] = []

    compress_module(
        filled(Net()), Truncation(max_bond=BOND), selection=SMALL, progress=lambda *step: steps.append(step)
    )

    assert steps
    assert list(tmp_path.iterdir()) == []


class OwnCell(nn.Module):
    """An LSTM cell of one's own, with the names of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.zeros(96, 16))
        self.weight_hh = nn.Parameter(torch.zeros(96, 24))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        y: Tensor = nn.functional.linear(x, self.weight_ih) + nn.functional.linear(h, self.weight_hh)
        return y


@torch.no_grad()
def test_a_cell_of_ones_own_needs_its_weights_apart() -> None:
    net = filled(nn.ModuleDict({"cell": OwnCell()}))
    with pytest.raises(
        ModelError,
        match=r"^cell: a tests\.\S*OwnCell, which has a forward of its own; its weights cannot become one joint "
        r"matrix\. Compress with lstm='separate', or exclude the layer\.$",
    ):
        compress_module(net, Truncation(max_bond=BOND), selection=SMALL)

    model, report = compress_module(net, Truncation(max_bond=12), selection=Selection(min_side=8, lstm="separate"))

    assert len(report.compressed) == 2
    x, h = torch.randn(3, 16), torch.randn(3, 24)
    assert model.cell(x, h).shape == (3, 96)
    weight, wanted = model.cell.weight_hh.dense(), net["cell"].weight_hh
    assert float((weight - wanted).norm() / wanted.norm()) == pytest.approx(
        report.compressed[1].relative_error, rel=1e-4
    )


class OwnLSTM(nn.LSTM):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)  # type: ignore[has-type, unused-ignore] # torch 2.10


class Renames(nn.Sequential):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {f"net.{name}": tensor for name, tensor in super().state_dict(*args, **options).items()}


class NotCopied(nn.Sequential):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("there is only one of me")


def linear() -> nn.Linear:
    return nn.Linear(16, 24)


def hooked() -> nn.Module:
    net = nn.Sequential(linear())
    net[0].register_forward_hook(lambda *_: None)
    return net


def tied_half() -> nn.Module:
    net = nn.ModuleDict({"a": nn.LSTM(16, 24), "b": nn.LSTM(16, 24)})
    net["b"].weight_ih_l0 = net["a"].weight_ih_l0
    return net


@pytest.mark.parametrize(
    ("build", "options", "kind", "message"),
    [
        (
            lambda: OwnLSTM(16, 24),
            {},
            ModelError,
            r"^the model: a tests\.\S*OwnLSTM, an nn\.LSTM with its own forward or its own",
        ),
        (hooked, {}, ModelError, r"^0: an nn\.Linear with hooks; they would be lost"),
        (tied_half, {}, ModelError, r"only one of which is tied to this layer; .* compress with lstm='separate'"),
        (
            lambda: nn.Sequential(linear()).to("meta"),
            {},
            ModelError,
            r"^0\.weight: a tensor without data \(device meta\)",
        ),
        (
            lambda: nn.Sequential(nn.LazyLinear(3)),
            {},
            ModelError,
            r"^0\.weight: a parameter without a size; its layer is lazy",
        ),
        (
            lambda: Renames(linear()),
            {},
            ModelError,
            r"^net\.0\.weight: a name in the state dict that no module has; its parameter cannot be identified",
        ),
        (
            lambda: NotCopied(linear()),
            {},
            ModelError,
            (
                r"^NotCopied: copying it failed \(RuntimeError: there is only one of me\); the compressed "
                r"model is a copy, and the given one is not changed\. Compress a file with its state dict, and load "
                r"that file\.$"
            ),
        ),
        (nn.ReLU, {}, CheckpointError, r"^ReLU: 0 tensors, none of them a weight that can be compressed"),
        (lambda: nn.Sequential(linear()), {"selection": Selection(include=("x",))}, SelectionError, r"x"),
        (
            lambda: nn.Sequential(linear()),
            {"dtype": "int4"},
            TargetError,
            r"^dtype: got 'int4'; it must be one of float16, bfloat16,",
        ),
        (
            lambda: nn.Sequential(linear()),
            {"jobs": 0},
            TargetError,
            r"^jobs: got 0; it must be an integer of 1 or more",
        ),
        (lambda: nn.Sequential(linear()), {"sites": 0}, SitesError, r"sites"),
        (lambda: nn.Sequential(linear()), {"execution": "fast"}, ExecutionError, r"'fast'"),
    ],
    ids=range(13),
)
def test_what_cannot_be_compressed_is_refused_before_anything_changes(
    build: Any, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    net = build()
    before = [(name, id(module)) for name, module in net.named_modules()]

    with pytest.raises(kind, match=message):
        compress_module(net, Truncation(max_bond=2), **{"selection": Selection(min_side=8, lstm="joint"), **options})

    assert [(name, id(module)) for name, module in net.named_modules()] == before


def test_a_model_is_not_compressed_twice() -> None:
    model, _ = mpocompress.compress_module(nn.Sequential(linear()), truncation=Truncation(max_bond=2), selection=SMALL)

    with pytest.raises(
        ModelError,
        match=r"^0\.weight: the model has cores already; compressing them again would add a second error\. Pass",
    ):
        compress_module(model, Truncation(max_bond=2), selection=SMALL)
