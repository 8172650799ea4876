"""Cores in int8 from end to end: every container, kind of layer and reader, and files that were tampered with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import mpocompress
from mpocompress.compression.compress import compress
from mpocompress.compression.expand import expand
from mpocompress.compression.plan import plan
from mpocompress.errors import CheckpointError, FormatError
from mpocompress.layers.selection import LSTMChoice, Selection
from mpocompress.modules.save import save
from mpocompress.modules.updated_report import ROUNDED
from mpocompress.mpo.quantisation import channels
from mpocompress.planning.targets import Truncation
from mpocompress.reports.compression import Report
from mpocompress.reports.matrix import ROUNDING_TOLERANCE
from tests.checkpoint.folders import make_folder, split, weight_map, weights
from tests.draw import decaying
from tests.inspecting import report_in
from tests.models import BOND, WORDS, Net, close, compressed, expanded, filled, load

FOUR = Truncation(max_bond=4)
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test measures."""
    monkeypatch.setenv("MPOCOMPRESS_EXECUTION", "modelled")


class Conv1D(nn.Module):
    """As transformers has it: the weight holds (inputs, outputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(decaying(24, 40, 3, 0.8).float())
        self.bias = nn.Parameter(torch.zeros(40))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


def stored(path: Path) -> State:
    """The tensors of a file, by the libraries' own readers."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    tensors: State = torch.load(path, weights_only=True)["state_dict"]
    return tensors


def check_sizes(report: Report, tensors: State) -> None:
    """What the report says of names, shapes, types and bytes, held against the tensors of the file."""
    for matrix in report.compressed:
        cores, scales = ([tensors[name] for name in names] for names in (matrix.core_names, matrix.scale_names))
        assert (matrix.dtype, len(scales)) == ("int8", len(cores))
        assert {core.dtype for core in cores} == {torch.int8}
        assert [tuple(scale.shape) for scale in scales] == [(count,) for count in channels(matrix.bonds)]
        assert {scale.dtype for scale in scales} == {torch.float32}
        assert matrix.parameters == sum(core.numel() for core in cores)
        assert abs(matrix.rounding_weight) < ROUNDING_TOLERANCE["int8"] * matrix.squared_norm
    scaled = sum(tensor.numel() for name, tensor in tensors.items() if name.endswith(".scale"))
    assert scaled == sum(sum(channels(matrix.bonds)) for matrix in report.compressed) > 0
    assert report.totals.parameters == sum(tensor.numel() for tensor in tensors.values()) - scaled
    assert report.totals.size_bytes_after == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("lstm", ["joint", "separate"])
def test_a_loaded_model_is_the_expanded_one(tmp_path: Path, suffix: str, lstm: LSTMChoice) -> None:
    net = filled(Net())
    small = compressed(tmp_path, net, suffix=suffix, lstm=lstm, dtype="int8")
    model, twin = load(small, Net()).eval(), expanded(small, net)

    check_sizes(report_in(small), stored(small))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.int64}
    assert not any(name.endswith(".scale") for name in model.state_dict())
    for path in ("fc", "own", "head"):
        assert torch.equal(model.get_submodule(path).weight.dense(), twin.get_submodule(path).weight)
    if lstm == "separate":
        assert torch.equal(model.lstm.weight_hh_l1_reverse.dense(), twin.lstm.weight_hh_l1_reverse)
    close(model(WORDS), twin(WORDS))


@torch.no_grad()
def test_the_error_that_is_reported_is_that_of_the_expanded_weights(tmp_path: Path) -> None:
    before = {"fc.weight": decaying(96, 80, 0, 0.9).float(), "head.weight": decaying(80, 96, 1, 0.9).double()}
    torch.save(before, tmp_path / "m.pt")

    report = compress(tmp_path / "m.pt", tmp_path / "s.pt", truncation=FOUR, sites=3, dtype="int8", jobs=1)
    expand(tmp_path / "s.pt", tmp_path / "d.pt")

    after = torch.load(tmp_path / "d.pt", weights_only=True)
    for matrix in report.compressed:
        old, new = before[matrix.name].double(), after[matrix.name].double()
        assert after[matrix.name].dtype == before[matrix.name].dtype
        assert matrix.relative_error == pytest.approx(float((old - new).norm() / old.norm()), rel=1e-5)
        added = matrix.relative_error**2 * matrix.squared_norm - sum(matrix.discarded_weights)
        assert matrix.rounding_weight == pytest.approx(added, abs=1e-12)
        assert matrix.rounding_weight > 1e-6 * matrix.squared_norm, "it is not that of float32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_models_come_back_half(tmp_path: Path, dtype: torch.dtype, suffix: str) -> None:
    net = filled(Net()).to(dtype)
    small = compressed(tmp_path, net, suffix=suffix, dtype="int8")
    report = report_in(small)

    check_sizes(report, stored(small))
    assert report.totals.size_bytes_after < report.totals.size_bytes_before / 2
    model, twin = load(small, Net().to(dtype)), expanded(small, net)
    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    assert twin.fc.weight.dtype == dtype
    # Cores with entries up to about 1 are rounded to a half type before they are multiplied out, not after.
    torch.testing.assert_close(model.fc.weight.dense(), twin.fc.weight, rtol=0, atol=16 * torch.finfo(dtype).eps)


@torch.no_grad()
def test_a_conv1d_and_a_tied_weight_come_back(tmp_path: Path) -> None:
    def build() -> Any:
        net = nn.ModuleDict({"conv": Conv1D(), "one": nn.Linear(24, 40, bias=False), "two": nn.Linear(24, 40)})
        net["two"].weight = net["one"].weight
        return net

    net = filled(build())
    small = compressed(tmp_path, net, dtype="int8")
    model, twin = load(small, build()), expanded(small, net)

    report = report_in(small)
    assert {matrix.name: matrix.transposed for matrix in report.compressed} == {
        "conv.weight": True,
        "one.weight": False,
    }
    check_sizes(report, stored(small))
    assert torch.equal(model["conv"].weight.dense(), twin["conv"].weight)
    assert torch.equal(model["one"].weight.dense(), twin["two"].weight)
    assert model["one"].weight is model["two"].weight


def test_in_a_folder_scales_are_in_the_shard_of_their_core(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", split(weights(), 3))

    report = compress(tmp_path / "model", tmp_path / "small", truncation=FOUR, dtype="int8", jobs=1)
    expand(tmp_path / "small", tmp_path / "dense")
    compress(tmp_path / "model", tmp_path / "small.pt", truncation=FOUR, dtype="int8", jobs=1)
    expand(tmp_path / "small.pt", tmp_path / "dense.pt")

    shards, original = weight_map(tmp_path / "small"), weight_map(tmp_path / "model")
    for matrix in report.compressed:
        assert len({shards[name] for name in (*matrix.core_names, *matrix.scale_names)}) == 1
    tensors = {
        name: tensor for file in (tmp_path / "small").glob("*.safetensors") for name, tensor in stored(file).items()
    }
    check_sizes(report, tensors)
    assert weight_map(tmp_path / "dense") == original
    dense = {
        name: tensor for file in (tmp_path / "dense").glob("*.safetensors") for name, tensor in stored(file).items()
    }
    wanted = torch.load(tmp_path / "dense.pt", weights_only=True)
    assert dense.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in dense.items())


def test_the_form_of_the_original_comes_back(tmp_path: Path) -> None:
    net = filled(nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 24)))
    small = compressed(tmp_path, net, whole=True, dtype="int8")

    expand(small, tmp_path / "like.pt", like=tmp_path / "model.pt")
    expand(small, tmp_path / "dense.pt")

    again = torch.load(tmp_path / "like.pt", weights_only=False).state_dict()
    plain = torch.load(tmp_path / "dense.pt", weights_only=True)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in again.items())


@torch.no_grad()
def test_a_loaded_model_is_trained_and_saved_in_floating_point(tmp_path: Path) -> None:
    small = compressed(tmp_path, filled(Net()), dtype="int8")
    model = load(small, Net()).eval()
    assert all(core.requires_grad for core in model.fc.weight.cores)

    report = save(model, tmp_path / "again.pt")

    assert {matrix.dtype for matrix in report.compressed} == {"float32"}
    assert [matrix.rounding_weight for matrix in report.compressed] == [0.0] * len(report.compressed)
    assert ROUNDED in report.notes
    tensors = stored(tmp_path / "again.pt")
    assert set(tensors) == set(model.state_dict())
    assert report.totals.size_bytes_after == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    again = load(tmp_path / "again.pt", Net()).eval()
    assert torch.equal(again(WORDS), model(WORDS))
    assert save(again, tmp_path / "again.pt", overwrite=True) == report, "nothing is said twice"
    assert ROUNDED not in save(load(compressed(tmp_path, filled(Net())), Net()), tmp_path / "float.pt").notes


def test_it_is_benched_and_looked_at_like_any_other(tmp_path: Path) -> None:
    small = compressed(tmp_path, filled(Net()), dtype="int8")

    assert report_in(small) == report_in(small)
    with mpocompress.open_checkpoint(small) as checkpoint:
        assert checkpoint.tensor("fc.weight.core.0").dtype == torch.int8
    benched = mpocompress.bench(small, layers=("fc",), batches=(1,), repeats=1)
    (case,) = benched.results[0].cases
    contenders = [contender for contender in case.contenders if contender.kind == "compressed"]
    assert all((contender.largest_difference or 0.0) < 1e-4 for contender in contenders)
    assert any("stored as int8" in note for note in benched.notes)
    with pytest.raises(CheckpointError, match="the checkpoint is already compressed"):
        plan(small)


@pytest.mark.parametrize("allowed", [0.3, 0.03, 0.012])
def test_bonds_make_room_for_what_rounding_adds(tmp_path: Path, allowed: float) -> None:
    torch.save({"a.weight": decaying(128, 128, 0, 0.7).float()}, tmp_path / "m.pt")
    target = Truncation(max_error=allowed)

    wide = compress(tmp_path / "m.pt", tmp_path / "w.pt", truncation=target, sites="lowrank", jobs=1)
    report = compress(tmp_path / "m.pt", tmp_path / "s.pt", truncation=target, sites="lowrank", dtype="int8", jobs=1)

    (matrix,), (float_one,) = report.compressed, wide.compressed
    assert matrix.relative_error <= allowed
    assert matrix.bonds >= float_one.bonds
    assert (matrix.bonds > float_one.bonds) == (allowed == 0.012)


def test_an_error_that_int8_cannot_keep_leaves_the_matrix_dense(tmp_path: Path) -> None:
    torch.save({"a.weight": decaying(96, 80, 0, 0.6).float()}, tmp_path / "m.pt")

    report = compress(
        tmp_path / "m.pt", tmp_path / "s.pt", truncation=Truncation(energy=0.999999), dtype="int8", jobs=1
    )

    assert report.matrices[0].reason == "no smaller MPO in int8 keeps a relative error of 0.001"
    assert (report.matrices[0].dtype, report.matrices[0].scale_names) == ("float32", ())
    assert not any(name.endswith(".scale") for name in stored(tmp_path / "s.pt"))


@pytest.mark.parametrize("size", [1e300, 1e-300])
def test_what_int8_with_float32_scales_cannot_hold_is_kept_dense(tmp_path: Path, size: float) -> None:
    """The squares of the smaller fit into float64 just so."""
    weight = decaying(96, 80, 0, 0.6)
    torch.save({"a.weight": weight * size**0.45, "b.weight": weight}, tmp_path / "m.pt")

    report = compress(tmp_path / "m.pt", tmp_path / "s.pt", truncation=FOUR, dtype="int8", jobs=1)

    assert [matrix.dtype for matrix in report.matrices] == ["float64", "int8"]
    assert "cannot be stored as int8" in report.matrices[0].reason


def test_bytes_of_scales_decide_whether_cores_are_worth_it(tmp_path: Path) -> None:
    """Of a 2 x 3 weight in float16, 12 bytes, a bond of 1 leaves 5 codes of one byte and 2 scales of four."""
    torch.save({"a.weight": decaying(2, 64, 0).half(), "b.weight": decaying(2, 3, 1).half()}, tmp_path / "m.pt")
    truncation, selection = Truncation(max_bond=1), Selection(min_side=2)
    options: Any = {"selection": selection, "sites": "lowrank", "dtype": "int8", "jobs": 1}

    report = compress(tmp_path / "m.pt", tmp_path / "s.pt", truncation=truncation, **options)
    (planned,) = plan(tmp_path / "m.pt", truncations=[truncation], **options).choices

    assert (
        [matrix.parameters for matrix in report.matrices]
        == [matrix.parameters for matrix in planned.matrices]
        == [66, 6]
    )
    assert [matrix.reason for matrix in report.matrices] == [matrix.reason for matrix in planned.matrices]
    assert report.matrices[1].reason == "in int8 its cores take no fewer bytes than the dense weight in float16"
    check_sizes(report, stored(tmp_path / "s.pt"))


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("taken", ["fc.weight.core.0.scale", "fc.weight.core.1.scale"])
def test_the_name_of_a_scale_is_never_that_of_another_tensor(tmp_path: Path, taken: str, dtype: str | None) -> None:
    torch.save({"fc.weight": decaying(64, 64, 0).float(), taken: torch.ones(3)}, tmp_path / "m.pt")

    with pytest.raises(
        CheckpointError, match=rf"^{taken}: a tensor of this name .*; the name is reserved for the cores of fc"
    ):
        compress(tmp_path / "m.pt", tmp_path / "s.pt", truncation=FOUR, sites="lowrank", dtype=dtype, jobs=1)
    assert not (tmp_path / "s.pt").exists()


def put(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[State], object]:
    """An edit of one tensor."""
    return lambda state: state.update({name: value(state[name].clone())})


CORE, SCALE = "fc.weight.core.0", "fc.weight.core.0.scale"
EDITS: dict[str, tuple[Callable[[State], object], str]] = {
    "no scale": (lambda state: state.pop(SCALE), r"^bad\.pt: no tensor 'fc\.weight\.core\.0\.scale'; the report says"),
    "a scale of NaN": (
        put(SCALE, lambda tensor: tensor.fill_(torch.nan)),
        r"scales that are not all positive and finite",
    ),
    "a scale of Inf": (
        put(SCALE, lambda tensor: tensor.index_fill(0, torch.tensor([1]), torch.inf)),
        "scales that are not",
    ),
    "a scale of 0": (put(SCALE, lambda tensor: tensor.index_fill(0, torch.tensor([2]), 0)), "scales that are not all"),
    "a scale below 0": (put(SCALE, torch.neg), "scales that are not all positive"),
    "a scale that makes Inf": (put(SCALE, lambda tensor: tensor.fill_(3e38)), "cores that hold NaN or Inf"),
    "a code of -128": (put(CORE, lambda tensor: tensor.fill_(-128)), "codes below -127"),
    "scales of another number": (
        put(SCALE, lambda tensor: tensor[:3]),
        r"scales of shapes .*; cores in int8 have .*, float32",
    ),
    "scales for every entry": (put(SCALE, lambda tensor: tensor.expand(2, 4)), "scales of shapes"),
    "scales in float64": (put(SCALE, torch.Tensor.double), "scales of shapes"),
    "scales in int8": (put(SCALE, lambda tensor: tensor.to(torch.int8)), "scales of shapes"),
    "floating cores": (put(CORE, torch.Tensor.float), r"cores of shapes .*; the report says .*, int8"),
    "unsigned cores": (put(CORE, lambda tensor: tensor.view(torch.uint8)), r"the report says .*, int8"),
    "a core of another shape": (put(CORE, lambda tensor: tensor[:, :2]), r"fc\.weight: cores of shapes"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_was_tampered_with_is_refused(tmp_path: Path, edit: str) -> None:
    net = filled(nn.Sequential())
    net.add_module("fc", nn.Linear(24, 40))
    change, message = EDITS[edit]
    content = torch.load(compressed(tmp_path, net, bond=4, dtype="int8"), weights_only=True)
    change(content["state_dict"])
    torch.save(content, tmp_path / "bad.pt")
    before = copy.deepcopy(net.state_dict())

    for read in (
        lambda: expand(tmp_path / "bad.pt", tmp_path / "dense.pt"),
        lambda: load(tmp_path / "bad.pt", net),
        lambda: mpocompress.bench(tmp_path / "bad.pt", batches=(1,), repeats=1),
    ):
        with pytest.raises(FormatError, match=message) as caught:
            read()
        assert caught.value.action.startswith("The file is damaged or was edited")
    assert not (tmp_path / "dense.pt").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_scale_beside_a_floating_core_is_refused(tmp_path: Path) -> None:
    net = filled(nn.Sequential(nn.Linear(24, 40)))
    small = compressed(tmp_path, net, suffix=".safetensors")
    with safe_open(small, "pt") as file:
        metadata = file.metadata()
    save_file({**stored(small), "0.weight.core.1.scale": torch.ones(BOND)}, tmp_path / "bad.safetensors", metadata)

    message = (
        r"^bad\.safetensors, 0\.weight: scales of shapes \[\(6,\)\]; cores in float32 have none\. The file is damaged"
    )
    with pytest.raises(FormatError, match=message):
        expand(tmp_path / "bad.safetensors", tmp_path / "dense.pt")
    with pytest.raises(FormatError, match=message):
        load(tmp_path / "bad.safetensors", net)
