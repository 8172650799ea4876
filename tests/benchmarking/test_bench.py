"""What is measured is what is said: the same layer dense and compressed, and figures that add up. None is a speed."""

from __future__ import annotations

import copy
import json
import os
import statistics
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor, nn

import mpocompress
from mpocompress.benchmarking import contenders
from mpocompress.benchmarking.comparison import Conditions, measure_case
from mpocompress.benchmarking.contenders import (
    dense_contenders,
    int8_contender,
    largest_difference,
    one_step_contenders,
    time_contenders,
)
from mpocompress.benchmarking.dense_twin import dense_state
from mpocompress.benchmarking.example_inputs import check_inputs, given_inputs, guessed_inputs, make_inputs
from mpocompress.benchmarking.layers import random_inputs
from mpocompress.benchmarking.stored_layers import load_pair, stored_layers
from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.errors import BenchmarkError, FormatError, InputsError, ModelError, ReportError, SelectionError
from mpocompress.nn import MPOLSTM, MPOLinear, MPOWeight
from mpocompress.nn.execution import VARIABLE
from mpocompress.reports.benchmark import Case, ContenderResult
from mpocompress.user.batches import call_model
from tests.inspecting import report_in

FASHION = Path(__file__).resolve().parents[2] / "examples" / "fashion" / "fashion.pt"
SCHEMA = json.loads(files("mpocompress").joinpath("reports", "schema", "bench-1.json").read_text())

# Both sum the same products in another order; sums of a hundred terms of size 1 in float32.
TOLERANCE = 1e-4


class Net(nn.Module):
    """Most layers that are compressed, one with a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(64, 64, num_layers=2, bidirectional=True, batch_first=True)
        self.projected = nn.LSTM(128, 96, proj_size=64, batch_first=True)
        self.cell = nn.LSTMCell(64, 64, bias=False)
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 96, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.projected(self.rnn(x)[0])[0][:, -1]
        hidden, _ = self.cell(x)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        out: Tensor = self.head(hidden)
        return out


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed file of `Net`."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bench")
    torch.save(Net().state_dict(), folder / "model.pt")
    truncation = mpocompress.Truncation(max_bond=4)
    mpocompress.compress(folder / "model.pt", folder / "small.pt", truncation=truncation, sites="lowrank")
    return folder / "small.pt"


def bench(source: Path, **options: Any) -> mpocompress.BenchReport:
    return mpocompress.bench(source, **{"repeats": 1, "batches": (2,), "lengths": (3,), **options})


def test_layers_are_put_together_from_names_and_shapes(small: Path) -> None:
    with open_checkpoint(small) as checkpoint:
        report = report_in(small)
        layers = {layer.path: layer for layer in stored_layers(report, checkpoint.tensors, where="small.pt")}
        dense = {path: load_pair(layer, checkpoint, report).dense for path, layer in layers.items()}

    assert list(layers) == ["rnn", "projected", "cell", "blocks.0", "blocks.1", "blocks.2", "head"]
    rnn, projected, cell, head = (dense[name] for name in ("rnn", "projected", "cell", "head"))
    assert isinstance(rnn, nn.LSTM)
    assert (rnn.input_size, rnn.hidden_size, rnn.num_layers, rnn.bidirectional, rnn.bias) == (64, 64, 2, True, True)
    assert isinstance(projected, nn.LSTM)
    assert (projected.hidden_size, projected.proj_size) == (96, 64)
    assert isinstance(cell, nn.LSTMCell)
    assert (cell.input_size, cell.hidden_size, cell.bias) == (64, 64, False)
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (64, 96)
    assert "bias" not in head.state_dict()


def test_the_dense_twin_has_the_weights_that_expand_gives(small: Path, tmp_path: Path) -> None:
    mpocompress.expand(small, tmp_path / "dense.pt")
    expanded = torch.load(tmp_path / "dense.pt", weights_only=True)
    with open_checkpoint(small) as checkpoint:
        report = report_in(small)
        for layer in stored_layers(report, checkpoint.tensors, where="small.pt"):
            for name, tensor in load_pair(layer, checkpoint, report).dense.state_dict().items():
                assert torch.equal(tensor, expanded[f"{layer.path}.{name}"])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_weights_are_measured_in_float32_and_that_is_said(tmp_path: Path, kind: str) -> None:
    torch.save({"fc.weight": torch.randn(64, 64).to(getattr(torch, kind))}, tmp_path / "model.pt")
    mpocompress.compress(tmp_path / "model.pt", tmp_path / "small.pt", truncation=mpocompress.Truncation(max_bond=4))

    report = bench(tmp_path / "small.pt")

    assert report.notes == (f"Layers are measured in float32; their cores are stored as {kind}.",)
    assert report.results[0].cases[0].contenders[0].size_bytes == 4 * 64 * 64


def test_a_tie_to_a_compressed_weight_is_followed(tmp_path: Path) -> None:
    state = {f"rnn.{name}": tensor for name, tensor in nn.LSTM(64, 64, 2).state_dict().items()}
    state["rnn.weight_hh_l1"] = state["rnn.weight_hh_l0"]
    state["rnn.bias_hh_l1"] = state["rnn.bias_hh_l0"]
    torch.save(state, tmp_path / "model.pt")
    mpocompress.compress(
        tmp_path / "model.pt",
        tmp_path / "small.pt",
        truncation=mpocompress.Truncation(max_bond=4),
        selection=mpocompress.Selection(lstm="separate"),
    )
    with open_checkpoint(tmp_path / "small.pt") as checkpoint:
        report = report_in(tmp_path / "small.pt")
        (layer,) = stored_layers(report, checkpoint.tensors, where="small.pt")
        dense = load_pair(layer, checkpoint, report).dense.state_dict()

    assert torch.equal(dense["weight_hh_l1"], dense["weight_hh_l0"])
    assert torch.equal(dense["bias_hh_l1"], state["rnn.bias_hh_l0"])


@pytest.mark.slow
def test_everything_is_measured_once_and_what_runs_alike_is_counted(small: Path) -> None:
    report = bench(small, batches=(1, 2), lengths=(3, 1))

    assert [one.layers for one in report.results] == [
        ("rnn",),
        ("projected",),
        ("cell",),
        ("blocks.0", "blocks.1", "blocks.2"),
        ("head",),
    ]
    sizes = [[(case.batch, case.length) for case in one.cases] for one in report.results]
    assert sizes[:2] == [[(1, 3), (1, 1), (2, 3), (2, 1)]] * 2
    assert sizes[2:] == [[(1, None), (2, None)]] * 3


@pytest.mark.slow
def test_all_contenders_compute_the_same(small: Path) -> None:
    for benched in bench(small, lengths=(3, 1)).results:
        for case in benched.cases:
            names = [one.name for one in case.contenders]
            assert names[-4:] == ["dynamic int8", "auto", "factorised", "materialised"]
            assert ("dense, cell, native" in names) == (case.length == 1 and benched.layers == ("rnn",))
            for one in case.contenders:
                if one.kind != "int8":
                    assert one.largest_difference is not None
                    assert one.largest_difference <= TOLERANCE


@pytest.mark.slow
def test_figures_add_up_in_the_document_that_follows_its_schema(small: Path) -> None:
    report = bench(small, repeats=3)
    document = json.loads(report.to_json(indent=2))

    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    assert document["machine"]["threads"] == 1
    for benched in document["results"]:
        for case in benched["cases"]:
            timed = {one["name"]: one for one in case["contenders"]}
            best = min(one["median_s"] for one in timed.values() if one["kind"] == "dense")
            assert timed[case["best_dense"]]["median_s"] == best
            for one in timed.values():
                if not one["unavailable"]:
                    assert len(one["times_s"]) == 3
                    assert one["median_s"] == statistics.median(one["times_s"])
                    assert (one["fastest_s"], one["slowest_s"]) == (min(one["times_s"]), max(one["times_s"]))
                    assert one["times_faster"] == best / one["median_s"]
                else:
                    assert one["median_s"] is one["times_faster"] is None


@pytest.mark.slow
def test_int8_says_why_where_torch_has_none(small: Path) -> None:
    reasons = {
        benched.layers[0]: one.unavailable
        for benched in bench(small).results
        for one in benched.cases[0].contenders
        if one.kind == "int8"
    }

    assert reasons == {
        "rnn": "",
        "projected": "torch does not quantise an LSTM with a projection",
        "cell": "torch does not quantise an LSTM without bias",
        "blocks.0": "",
        "head": "",
    }


def test_int8_replaces_a_layer_that_is_the_model_itself_and_leaves_it_alone() -> None:
    layer, inputs = nn.Linear(64, 64), torch.randn(2, 64)
    kept = copy.deepcopy(layer.state_dict())

    timed = time_contenders(
        (*dense_contenders(layer, lambda one: one(inputs)), int8_contender(layer, lambda one: one(inputs))), repeats=1
    )

    assert timed[-1].size_bytes == 64 * 64 + 4 * 64
    assert 1e-6 < (timed[-1].largest_difference or 0) < 0.1
    assert all(torch.equal(kept[name], tensor) for name, tensor in layer.state_dict().items())


def test_int8_gives_the_words_of_torch_and_does_not_count_as_run() -> None:
    module = nn.Conv1d(2, 2, 1)
    assert int8_contender(module, lambda one: one(torch.ones(1, 2, 3))).unavailable == "torch replaced no layer"
    refused = int8_contender(nn.Linear(2, 2), lambda one: one.weight.shape)
    assert refused.unavailable.startswith("AttributeError: ")


def test_one_step_of_an_lstm_is_that_of_its_cells() -> None:
    options: dict[str, Any]
    for options in ({}, {"num_layers": 2, "bidirectional": True}, {"bias": False}):
        lstm = nn.LSTM(5, 4, **options)
        feed, more = random_inputs(lstm, 3, 1, "cpu")
        assert len(more) == len(dense_contenders(lstm, feed))
        for cell in more:
            assert (largest_difference(cell.run(), feed(lstm)) or 0) <= TOLERANCE
    assert one_step_contenders(nn.LSTM(5, 4, proj_size=2), *[torch.ones(1, 1, 1)] * 3) == ()
    assert random_inputs(nn.LSTM(5, 4), 3, 2, "cpu")[1] == ()


@pytest.mark.slow
def test_memory_is_what_a_mode_holds_for_this_size_alone(small: Path) -> None:
    for benched in bench(small, batches=(1, 16), layers=("blocks.0", "rnn")).results:
        first, second = benched.cases
        sizes = [{one.name: one.size_bytes for one in case.contenders} for case in (first, second)]
        kept = sizes[0]["dense, native"] - 4 * benched.dense_parameters
        assert sizes[0]["factorised"] >= kept + 4 * benched.parameters
        assert sizes[0]["materialised"] >= sizes[0]["dense, native"]
        assert sizes[1]["materialised"] >= sizes[1]["dense, native"]  # it may run in another way for another size


def test_what_was_prepared_for_another_size_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(64, 64)
    mpo = mpocompress.decompose(layer.weight, truncation=mpocompress.Truncation(max_bond=4))
    small = MPOLinear.replacing(layer, MPOWeight(mpo), execution="factorised").eval()
    conditions = Conditions(batches=(), lengths=(), repeats=1, device="cpu", progress=None)
    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setenv(VARIABLE, "materialised")
        small(torch.ones(2, 64))
    before = contenders.module_bytes(small)

    case = measure_case(
        layer, {"factorised": small}, lambda one: one(torch.ones(2, 64)), batch=2, length=None, conditions=conditions
    )

    assert case.contenders[-1].size_bytes < before - 4 * 64 * 32


@pytest.mark.slow
def test_threads_and_the_environment_are_put_back(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "materialised")
    before = torch.get_num_threads()

    report = bench(small, layers=("head",), threads=2)

    assert report.machine.threads == 2
    assert torch.get_num_threads() == before
    assert os.environ[VARIABLE] == "materialised"
    sizes = {one.name: one.size_bytes for one in report.results[0].cases[0].contenders}
    assert sizes["factorised"] != sizes["materialised"]


def test_progress_is_told_for_every_size(small: Path) -> None:
    told: list[tuple[str, int, int]] = []

    bench(small, layers=("head", "cell"), batches=(1, 2), progress=lambda *words: told.append(words))

    assert told == [("measuring", done, 4) for done in range(5)]


def test_a_large_model_is_not_measured_for_hours(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpocompress.benchmarking.layers.MOST_LAYERS", 2)

    report = bench(small)

    assert [one.layers[0] for one in report.results] == ["rnn", "projected"]
    (note,) = report.notes
    assert note == (
        "Of 5 different layers, the 2 with the most parameters were measured, but not "
        "cell, blocks.0, head; select a layer by its name to measure it."
    )


@pytest.mark.parametrize("glob", ["blocks*", "blocks.1", "blocks.1.weight", "*.1.*"])
def test_layers_are_chosen_by_their_names_or_those_of_tensors(small: Path, glob: str) -> None:
    (benched,) = bench(small, layers=(glob,)).results

    assert "blocks.1" in benched.layers


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"layers": ("zz*",)},
            SelectionError,
            r"small.pt, layer pattern 'zz\*': matches no compressed layer; a pattern",
        ),
        (
            {"batches": ()},
            BenchmarkError,
            r"batches: got \(\); it must be a sequence of one or more values, each an integer of 1 or more\. Pass",
        ),
        ({"lengths": (0,)}, BenchmarkError, r"lengths: got \(0,\); it must be a sequence of one or more"),
        ({"threads": 0}, BenchmarkError, "threads: got 0; it must be an integer of 1 or more"),
        ({"repeats": 1.5}, BenchmarkError, "repeats: got 1.5"),
        ({"device": "tpu"}, BenchmarkError, "device: got 'tpu'; it must be one of cpu, cuda. Pass"),
        ({"inputs": len}, BenchmarkError, "inputs: inputs without a model; without a model, layers get random inputs"),
        (
            {"model": Net(), "layers": ("a",)},
            BenchmarkError,
            "layers: layers together with a model; a model is measured",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    small: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bench(small, **options)


def test_a_card_that_is_not_there_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BenchmarkError, match="device: cuda, but torch finds no GPU; the benchmark cannot run"):
        bench(small, device="cuda")


def test_a_file_without_a_compressed_layer_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.randn(64, 64)}, tmp_path / "model.pt")
    mpocompress.compress(tmp_path / "model.pt", tmp_path / "same.pt", truncation=mpocompress.Truncation(max_bond=999))

    with pytest.raises(BenchmarkError, match=r"same.pt: no compressed layer; the benchmark compares compressed layers"):
        bench(tmp_path / "same.pt")


def test_an_ordinary_file_and_a_damaged_one_are_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the checkpoint is not compressed; it has no compression report"):
        bench(small.with_name("model.pt"))
    changes: tuple[tuple[Callable[[Any], object], str], ...] = (
        (lambda state: state.pop("rnn.bias_hh_l1"), r"rnn: tensors bias_hh_l0 .* do not match a layer of kind lstm"),
        (lambda state: state["head.weight.core.0"].fill_(torch.nan), r"head.weight: cores that hold NaN or Inf"),
        (lambda state: state.pop("head.weight.core.1"), r"no tensor 'head.weight.core.1'"),
    )
    for change, message in changes:
        content = torch.load(small, weights_only=True)
        change(content["state_dict"])
        torch.save(content, tmp_path / "broken.pt")
        with pytest.raises(FormatError, match=message):
            bench(tmp_path / "broken.pt")


def timed(name: str, *times: float, kind: Any = "dense", unavailable: str = "") -> ContenderResult:
    return ContenderResult(name=name, kind=kind, times_s=times, unavailable=unavailable)


def test_a_report_that_does_not_hold_together_is_refused() -> None:
    makes: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: timed("a"), "a: times (), reason ''; a contender that ran has positive times, and one that did not"),
        (lambda: timed("a", 0.0), "times (0.0,)"),
        (lambda: timed("a", 1.0, unavailable="no"), "reason 'no'"),
        (lambda: Case(batch=1, length=2, contenders=()), "batch 1, length 2: contenders none"),
        (
            lambda: Case(batch=1, length=None, contenders=(timed("a", 1.0),) * 2),
            "contenders a, a; names must",
        ),
        (
            lambda: Case(batch=1, length=None, contenders=(timed("a", unavailable="no"),)),
            "a dense contender must have run",
        ),
    )
    for make, message in makes:
        with pytest.raises(ReportError) as refused:
            make()
        assert message in str(refused.value)


def test_faster_is_against_the_best_dense_path_of_the_same_case() -> None:
    slow, fast, cores = timed("a", 4.0), timed("b", 1.0, 2.0, 9.0), timed("auto", 0.5, kind="compressed")
    off = timed("int8", kind="int8", unavailable="no")
    case = Case(batch=1, length=None, contenders=(slow, fast, off, cores))

    assert (case.best_dense, case.baseline.times_s) == (fast.name, fast.times_s)
    assert [contender.times_faster for contender in case.contenders] == [0.5, 1.0, None, 4.0]


def test_differences_are_found_in_nests_and_what_is_not_finite_is_said() -> None:
    ones, zeros = torch.ones(2), torch.zeros(2)
    assert largest_difference({"a": [ones, (zeros, 3)]}, {"a": [zeros, (zeros, 4)]}) == 1.0
    assert largest_difference(ones, torch.full((2,), torch.inf)) is None
    assert largest_difference(ones, torch.ones(3)) is None
    assert largest_difference("text", ones) is None


# --- the whole model of a user


def test_a_whole_model_is_measured_with_guessed_inputs(small: Path) -> None:
    report = bench(small, model=Net(), batches=(1, 2))

    (benched,) = report.results
    jsonschema.validate(json.loads(report.to_json()), SCHEMA)
    assert report.model == "Net"
    assert (benched.kind, len(benched.layers), benched.matrices) == ("model", 7, ())
    assert benched.parameters == report_in(small).totals.eligible_parameters_after
    assert report.notes == (
        (
            "The model was called with random numbers of shape (batch, length, 64), as its first layer, rnn (LSTM), "
            "accepts."
        ),
    )
    for case in benched.cases:
        assert [one.name for one in case.contenders if one.kind == "compressed"] == [
            "auto",
            "factorised",
            "materialised",
        ]
        assert max(one.largest_difference or 0 for one in case.contenders if one.kind != "int8") <= TOLERANCE
    assert "with a projection" in benched.cases[0].contenders[2].unavailable


def test_a_model_and_its_inputs_can_be_named_by_where_they_are(small: Path, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom tests.benchmarking.test_bench import Net as build\n\n\n"
        "def batch(batch, length):\n    return {'x': torch.ones(batch, length, 64)}\n"
    )
    net = tmp_path / "net.py"

    report = bench(small, model=f"{net}:build", inputs=f"{net}:batch")

    assert report.notes == (f"The model was called with the inputs of {net}:batch.",)


def test_a_model_that_does_not_take_the_inputs_says_where_it_failed(small: Path) -> None:
    with pytest.raises(InputsError) as refused:
        bench(small, model=Net(), inputs=lambda batch, length: torch.ones(batch, length, 7))

    assert "Net: test_bench.py, line " in str(refused.value)
    assert "the model does not accept the inputs, the given inputs. Give a function of a batch size" in str(
        refused.value
    )


def test_a_state_dict_is_made_dense_again() -> None:
    lstm, fc = nn.LSTM(64, 64), nn.Linear(64, 64)
    weight_ih, weight_hh, bias = (lstm.state_dict()[name] for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"))
    weight = torch.cat([weight_ih, weight_hh], dim=1)
    joint = mpocompress.decompose(weight, truncation=mpocompress.Truncation(max_bond=128))
    linear = mpocompress.decompose(fc.weight, truncation=mpocompress.Truncation(max_bond=4))
    dense = nn.ModuleDict({"a": lstm, "b": fc})
    small = nn.ModuleDict(
        {
            "a": MPOLSTM.replacing(lstm, {"weight_joint_l0": MPOWeight(joint)}),
            "b": MPOLinear.replacing(fc, MPOWeight(linear)),
        }
    )

    state = dense_state(small, dense)

    assert set(state) == set(dense.state_dict())
    # The bond is full, so that the joint matrix is the weights themselves, rounded twice.
    torch.testing.assert_close(state["a.weight_hh_l0"], weight_hh, atol=1e-5, rtol=0)
    torch.testing.assert_close(state["a.weight_ih_l0"], weight_ih, atol=1e-5, rtol=0)
    assert torch.equal(state["b.weight"], linear.to_matrix())
    assert torch.equal(state["a.bias_ih_l0"], bias)


class Bag(nn.Module):
    """A model whose own parameter comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(
    ("model", "shape", "dtype"),
    [
        (nn.LSTM(8, 16), (5, 2, 8), torch.float32),
        (nn.GRU(8, 16, batch_first=True), (2, 5, 8), torch.float32),
        (nn.Sequential(nn.ReLU(), nn.Linear(8, 16).half()), (2, 8), torch.float16),
        (nn.LSTMCell(8, 16), (2, 8), torch.float32),
        (nn.Sequential(nn.Embedding(7, 16), nn.LSTM(16, 16)), (2, 5), torch.int64),
    ],
)
def test_inputs_are_guessed_from_the_first_layer_that_has_weights(
    model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    maker = guessed_inputs(model)
    made = make_inputs(maker, 2, 5, "cpu")

    assert isinstance(made, Tensor)
    assert (tuple(made.shape), made.dtype) == (shape, dtype)
    assert torch.equal(made, maker.make(2, 5))  # type: ignore[arg-type]
    assert maker.has_length == (5 in shape)


def test_what_inputs_may_be() -> None:
    model = nn.Bilinear(2, 2, 1)
    one = torch.ones(1, 2)
    for made in ((one, one), {"input1": one, "input2": one}):
        assert call_model(model, made).shape == (1, 1)  # type: ignore[attr-defined]
    copied = make_inputs(given_inputs(lambda *_: {"a": [one, (one,)], "b": 3}), 1, 1, "cpu")
    assert copied["b"] == 3  # type: ignore[index]


def raising(batch: int, length: int) -> object:
    raise ValueError(f"no {batch}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: guessed_inputs(nn.Conv2d(1, 1, 1)),
            "Conv2d: its first layer with weights is the model itself, a Conv2d",
        ),
        (lambda: guessed_inputs(nn.Sequential(nn.LayerNorm(4))), "its first layer with weights is 0, a LayerNorm"),
        (
            lambda: guessed_inputs(Bag()),
            "Bag: its first layer with weights is the model itself, a Bag; inputs can be derived",
        ),
        (lambda: guessed_inputs(nn.ReLU()), "the model itself, a ReLU"),
        (lambda: given_inputs("net.py"), "net.py: no name after a colon; a function that returns the inputs is needed"),
        (lambda: given_inputs("none.py:a"), "FileNotFoundError: no file none.py; the inputs could not be made"),
        (
            lambda: given_inputs("math:pi"),
            "math:pi: a float; inputs of several sizes are needed. Name a function of a batch size and a length",
        ),
        (lambda: given_inputs("math:zz"), "math:zz: no 'zz' in math; a function that returns the inputs is needed"),
        (lambda: given_inputs("math:gcd").make(1, "a"), "TypeError: 'str' object"),  # type: ignore[arg-type]
        (
            lambda: make_inputs(given_inputs(max), 1, 2, "cpu"),
            "inputs: a int; a model is called with a tensor",
        ),
        (lambda: make_inputs(given_inputs(raising), 1, 2, "cpu"), r"ValueError: no 1; the inputs could not"),
        (
            lambda: check_inputs(nn.Linear(2, 2), torch.ones(1, 3), guessed_inputs(nn.Linear(3, 2))),
            r"the model does not accept the inputs, random numbers of shape \(batch, 3\), as a Linear accepts\. Give",
        ),
    ],
)
def test_inputs_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputsError, match=message):
        make()


def test_a_model_that_is_none_is_refused(small: Path) -> None:
    with pytest.raises(ModelError, match=r"none.py: no name after a colon"):
        bench(small, model="none.py")


def test_the_device_of_a_card_has_its_own_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "device_of", lambda module: torch.device("cuda"))
    names = [one.name for one in dense_contenders(nn.Linear(2, 2), lambda one: None)]
    assert names == ["dense, cuDNN", "dense, native"]
    monkeypatch.setattr(contenders, "device_of", lambda module: torch.device("cpu"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert [one.name for one in dense_contenders(nn.Linear(2, 2), lambda one: None)] == ["dense, native"]
