"""Compression with calibration inputs from end to end: what is gained, what is changed, and what is said of it."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mpocompress.calibration.calibrate import calibrate
from mpocompress.calibration.options import CalibrationInputs
from mpocompress.compression.compress import compress
from mpocompress.compression.plan import plan
from mpocompress.errors import CalibrationError, ModelError
from mpocompress.layers.selection import Selection
from mpocompress.modules.compress import compress_module
from mpocompress.planning.targets import Truncation
from mpocompress.reports.compression import Report
from tests.calibration.trial_models import Calls, inputs, numbers, saved, seeded, two_layers
from tests.draw import decaying
from tests.inspecting import report_in
from tests.models import OwnLinear, expanded, load

SMALL = Selection(min_side=8)
KEEP = Truncation(keep=0.4)


class Tagger(nn.Module):
    """Words in, a class for every one of them out."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12)
        self.lstm = nn.LSTM(12, 16, batch_first=True, **options)
        self.fc = nn.Linear(16 * (2 if self.lstm.bidirectional else 1), 10)

    def forward(self, words: Tensor) -> Tensor:
        y: Tensor = self.fc(self.lstm(self.embed(words))[0])
        return y


def words(count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 20, (6, 7), generator=generator) for _ in range(count)]


def trained(**options: Any) -> Tagger:
    """A tagger that has learnt to tell the sum of the last two words apart, so that its weights have structure."""
    torch.manual_seed(0)
    model = Tagger(**options)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        batch = torch.randint(0, 20, (16, 7))
        target = (batch + batch.roll(1, 1) * (torch.arange(7) > 0)) % 10
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch).flatten(0, 1), target.flatten()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return trained()


def shrunk_file(
    folder: Path, whole: nn.Module, batches: Any = None, truncation: Truncation = KEEP, **options: Any
) -> tuple[Path, Report]:
    """A model compressed with data."""
    options = {"selection": SMALL, "model": whole, "jobs": 1, "overwrite": True, **options}
    target = folder / "small.pt"
    given = inputs() if batches is None else batches
    report = compress(saved(folder, whole), target, truncation=truncation, calibration=given, **options)
    return target, report


def kl(model: nn.Module, other: nn.Module, batches: list[Tensor]) -> float:
    x = torch.cat(batches)
    with torch.no_grad():
        log_p, log_q = (m(x).double().flatten(0, -2).log_softmax(1) for m in (model, other))
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


@pytest.fixture(scope="module")
def deep() -> Tagger:
    return trained(num_layers=2)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.3, 0.5])
def test_outputs_change_less_than_without_data_at_the_same_size(tmp_path: Path, deep: Tagger, keep: float) -> None:
    batches, fresh = words(16), words(40)[16:]
    small, report = shrunk_file(tmp_path, deep, batches, Truncation(keep=keep))
    with_data = kl(deep, expanded(small, deep), fresh)
    plain = compress(tmp_path / "model.pt", small, truncation=Truncation(keep=keep), selection=SMALL, overwrite=True)
    without = kl(deep, expanded(small, deep), fresh)

    assert with_data < 0.5 * without  # a third or less of it was found
    limit = keep * report.totals.eligible_parameters
    assert report.totals.eligible_parameters_after <= limit
    assert plain.totals.eligible_parameters_after <= limit


TARGETS = (
    Truncation(max_bond=4),
    Truncation(keep=0.4),
    Truncation(max_params=1200),
    Truncation(energy=0.9),
    Truncation(max_error=0.5),
)
PAIRS = [
    pytest.param(truncation, sites, lstm, id=f"{truncation.target.kind}-{sites}-{lstm}")
    for row, truncation in enumerate(TARGETS)
    for column, sites in enumerate(("auto", "lowrank", 2))
    for lstm in [("joint", "separate")[(row + column) % 2]]
]
"""Every target with all sites and both forms of an LSTM, and all sites with both forms."""


@pytest.mark.slow
@pytest.mark.parametrize(("truncation", "sites", "lstm"), PAIRS)
def test_every_target_is_met_and_what_is_reported_is_what_loads(
    tmp_path: Path, tagger: Tagger, truncation: Truncation, sites: Any, lstm: Any
) -> None:
    batches = words()
    selection = Selection(min_side=8, lstm=lstm)
    small, report = shrunk_file(tmp_path, tagger, batches, truncation, sites=sites, selection=selection)
    twin = expanded(small, tagger)
    calibration = report.calibration

    assert calibration is not None
    held_out = [batches[3], batches[7]]
    assert calibration.divergence == pytest.approx(kl(tagger, twin, held_out), rel=1e-4, abs=1e-7)
    assert (calibration.kind, calibration.held_out_samples, calibration.samples) == ("classification", 12, 36)
    loaded = load(small, copy.deepcopy(tagger)).eval()
    torch.testing.assert_close(loaded(batches[0]), twin(batches[0]), rtol=1e-4, atol=1e-4)
    report.check()
    assert Report.from_json(report.to_json()) == report
    assert (report_in(small).matrices, report_in(small).calibration) == (report.matrices, calibration)
    assert not calibration.uncalibrated
    if truncation.target.kind == "bond":
        assert max(bond for matrix in report.compressed for bond in matrix.bonds) <= 4
    if truncation.target.kind == "keep":
        assert report.totals.eligible_parameters_after <= 0.4 * report.totals.eligible_parameters
    if truncation.target.kind == "max_params":
        assert report.totals.parameters <= 1200
    for matrix in report.compressed:
        assert matrix.weighted_error is not None
        assert matrix.discarded_weights == ()
        assert matrix.sensitivity is not None
        assert matrix.sensitivity >= 0.0


@pytest.mark.slow
def test_biases_alone_move_beside_the_weights(tmp_path: Path) -> None:
    model = trained(num_layers=2, bidirectional=True)
    small, report = shrunk_file(tmp_path, model, words(), Truncation(max_bond=3))
    before, after = model.state_dict(), expanded(small, model).state_dict()
    members = {member for matrix in report.compressed for member in matrix.members}
    moved = {matrix.corrected_bias for matrix in report.compressed}
    changed = {name for name in before if not before[name].equal(after[name])}

    assert moved == {
        "lstm.bias_ih_l0",
        "lstm.bias_ih_l0_reverse",
        "lstm.bias_ih_l1",
        "lstm.bias_ih_l1_reverse",
        "fc.bias",
    }
    assert changed == members | moved
    assert "embed.weight" not in changed
    reasons = {tensor.name: tensor.reason for tensor in report.skipped}
    assert reasons["fc.bias"] == "a bias, corrected by the mean error of its layer"


def test_tied_weights_and_biases_stay_as_they_are(tmp_path: Path) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)))
    model[2].bias = model[0].bias  # type: ignore[index]
    model[4].weight = model[2].weight  # type: ignore[index]
    small, report = shrunk_file(tmp_path, model, truncation=Truncation(max_bond=2))
    after = expanded(small, model).state_dict()

    assert [(matrix.name, matrix.corrected_bias) for matrix in report.compressed] == [
        ("0.weight", ""),
        ("2.weight", ""),
    ]
    assert all(after[name].equal(model.state_dict()[name]) for name in after if name.endswith("bias"))
    assert after["2.weight"].equal(after["4.weight"])


def test_a_layer_that_never_runs_gets_its_own_share_and_is_named(tmp_path: Path) -> None:
    model = Calls(
        lambda m, x: m.last(m.first(x).tanh()),
        first=nn.Linear(12, 24),
        last=nn.Linear(24, 12),
        unused=nn.LSTM(12, 16),
    )
    _, report = shrunk_file(
        tmp_path, model, truncation=Truncation(keep=0.5), selection=Selection(min_side=8, lstm="separate")
    )
    by_name = {matrix.name: matrix for matrix in report.matrices}

    assert report.calibration is not None
    reason = "was not run on the calibration batches"
    assert report.calibration.uncalibrated == {"unused.weight_ih_l0": reason, "unused.weight_hh_l0": reason}
    unused = [by_name[f"unused.weight_{side}_l0"] for side in ("ih", "hh")]
    assert all(matrix.weighted_error is None for matrix in unused)
    share = 0.5 * sum(matrix.dense_parameters for matrix in unused)
    assert sum(matrix.parameters for matrix in unused) <= share
    assert report.totals.eligible_parameters_after <= 0.5 * report.totals.eligible_parameters
    assert by_name["first.weight"].weighted_error is not None


def test_what_is_lost_without_data_is_measured_too(tmp_path: Path) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 12), OwnLinear(12, 10)))
    batches = inputs()
    small, report = shrunk_file(tmp_path, model, batches, Truncation(bond_by_layer={"1": 2}))
    original, compressed = (
        m(torch.cat([batches[3], batches[7]])).detach().double() for m in (model, expanded(small, model))
    )

    assert report.calibration is not None
    assert list(report.calibration.uncalibrated) == ["1.weight"]
    assert [matrix.name for matrix in report.compressed] == ["1.weight"]
    assert report.calibration.divergence == pytest.approx(
        float((original - compressed).square().sum() / original.square().sum()), rel=1e-4
    )


def test_gru_next_to_lstm(tmp_path: Path) -> None:
    model = seeded(
        lambda: Calls(
            lambda m, x: m.fc(m.gru(m.lstm(x)[0])[0]), lstm=nn.LSTM(12, 16), gru=nn.GRU(16, 16), fc=nn.Linear(16, 8)
        )
    )
    small, report = shrunk_file(tmp_path, model)

    assert report.calibration is not None
    assert not any("gru" in member for matrix in report.compressed for member in matrix.members)
    x = inputs()[0]
    torch.testing.assert_close(
        load(small, copy.deepcopy(model)).eval()(x), expanded(small, model)(x), rtol=1e-4, atol=1e-4
    )


def test_a_single_linear_layer_is_enough(tmp_path: Path) -> None:
    model = seeded(lambda: nn.Linear(12, 10))
    small, report = shrunk_file(tmp_path, model, truncation=Truncation(max_bond=4))

    assert report.calibration is not None
    assert report.calibration.refit_mix == 1.0
    assert report.calibration.divergence is not None
    assert report.calibration.divergence < 0.01  # the inputs lie near a plane of 3 directions
    assert expanded(small, model)(inputs()[0]).shape == (6, 10)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_wrapped_names_change_nothing_else(tmp_path: Path, prefix: str) -> None:
    model = seeded(two_layers)
    plain, wrapped = tmp_path / "plain.pt", tmp_path / "wrapped.pt"
    torch.save(model.state_dict(), plain)
    torch.save({prefix + name: path for name, path in model.state_dict().items()}, wrapped)
    reports = [
        compress(
            path,
            tmp_path / f"small{number}.pt",
            truncation=KEEP,
            selection=SMALL,
            model=model,
            calibration=inputs(),
            jobs=1,
        )
        for number, path in enumerate((plain, wrapped))
    ]

    plain_figures, wrapped_figures = (
        [(m.bonds, m.weighted_error, m.sensitivity) for m in report.matrices] for report in reports
    )
    assert plain_figures == wrapped_figures
    assert reports[1].matrices[0].corrected_bias == f"{prefix}0.bias"
    assert plain_figures[0][0] != ()


@pytest.mark.parametrize("truncation", [KEEP, Truncation(max_bond=3)])
def test_one_calibration_for_many_budgets_is_a_new_one_for_each(tmp_path: Path, truncation: Truncation) -> None:
    model = seeded(two_layers)
    source = saved(tmp_path, model)
    calibration = calibrate(source, inputs(), model)
    files = []
    for name, source_of_inputs in (("one", calibration), ("two", calibration), ("fresh", inputs())):
        target = tmp_path / f"{name}.safetensors"
        if name == "two":
            compress(
                source, tmp_path / "other.pt", truncation=Truncation(keep=0.7), selection=SMALL, calibration=calibration
            )
        compress(
            source, target, truncation=truncation, selection=SMALL, model=model, calibration=source_of_inputs, jobs=1
        )
        files.append(target.read_bytes())

    assert files[0] == files[1] == files[2]


def test_a_kept_calibration_needs_no_model(tmp_path: Path, deep: Tagger) -> None:
    stored = tmp_path / "kept.safetensors"
    _, first = shrunk_file(tmp_path, deep, words(), save_calibration=stored)
    small, report = shrunk_file(tmp_path, deep, stored, model=None)
    calibration = report.calibration

    assert calibration is not None
    assert (calibration.divergence, calibration.unrelated_divergence, calibration.agreement) == (None, None, None)
    assert (calibration.refit_mix, calibration.held_out_samples) == (1.0, 0)
    assert calibration.output_change is None
    assert (calibration.kind, calibration.samples) == ("classification", 36)
    assert [matrix.bonds for matrix in report.matrices] == [matrix.bonds for matrix in first.matrices]
    assert "the outputs were not compared" in report.verdict()[0]
    plain = compress(tmp_path / "model.pt", tmp_path / "plain.pt", truncation=KEEP, selection=SMALL, jobs=1)
    without = kl(deep, expanded(tmp_path / "plain.pt", deep), words(20)[8:])
    assert kl(deep, expanded(small, deep), words(20)[8:]) < without
    assert plain.calibration is None


def test_a_plan_from_a_kept_calibration_adds_the_sensitivities(tmp_path: Path, deep: Tagger) -> None:
    stored = tmp_path / "kept.safetensors"
    _, report = shrunk_file(tmp_path, deep, words(), save_calibration=stored)

    planned = plan(tmp_path / "model.pt", truncations=[KEEP], selection=SMALL, calibration=stored, jobs=1)

    (choice,) = planned.choices
    assert choice.problem == ""
    # The report measures the final cores, the plan adds what was measured when the bonds were chosen.
    assert choice.divergence == pytest.approx(sum(matrix.sensitivity or 0.0 for matrix in report.compressed), rel=1e-2)
    assert any("the sum of the sensitivities" in note for note in planned.checkpoint.notes)


USER = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))

def batches():
    for _ in range(6):
        yield torch.rand(6, 12), torch.rand(6, 10)

def inputs():
    return [one for one, _ in batches()]

def wrong():
    return [torch.rand(6, 5)]

def loss(output, target):
    return (output - target).square().mean()
"""


def test_everything_may_be_named_as_text(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(USER)
    given = CalibrationInputs(batches=f"{mine}:batches", loss=f"{mine}:loss", kind="regression", samples=30)
    _, report = shrunk_file(tmp_path, seeded(two_layers), given, model=f"{mine}:Net")

    assert report.calibration is not None
    assert report.calibration.kind_from == "as asked"
    assert (report.calibration.samples, report.calibration.held_out_samples) == (24, 6)
    assert [note.rpartition(":")[2] for note in report.notes] == [
        "Net was imported and run.",
        "batches was imported and run.",
        "loss was imported and run.",
    ]
    _, report = shrunk_file(tmp_path, seeded(two_layers), f"{mine}:inputs", model=f"{mine}:Net")
    assert report.calibration is not None


def test_of_one_batch_it_is_said_that_nothing_was_held_out(tmp_path: Path) -> None:
    _, report = shrunk_file(tmp_path, seeded(two_layers), inputs(1))

    assert report.calibration is not None
    assert report.calibration.held_out_samples == 0
    assert any(note.startswith("There was only one calibration batch") for note in report.notes)
    assert report.verdict()[0].startswith("On the calibration inputs themselves the outputs changed")


@pytest.mark.parametrize("dtype", ["int8", "float16", "bfloat16", "float64"])
def test_cores_are_stored_in_any_dtype(tmp_path: Path, tagger: Tagger, dtype: str) -> None:
    batches = words()
    small, report = shrunk_file(tmp_path, tagger, batches, dtype=dtype)
    stored = {matrix.dtype for matrix in report.compressed}

    assert stored <= ({"int8", "float16"} if dtype == "int8" else {dtype})
    assert report.calibration is not None
    wanted = kl(tagger, expanded(small, tagger), [batches[3], batches[7]])
    assert report.calibration.divergence == pytest.approx(wanted, rel=1e-3, abs=1e-7)


def test_int8_gives_way_where_it_costs_too_much(tmp_path: Path) -> None:
    """Inputs of very different sizes: rounding to the largest of a channel loses what matters."""
    model = seeded(lambda: nn.Linear(48, 48))
    scales = torch.logspace(0, 4, 48)
    with torch.no_grad():
        model.weight.copy_(decaying(48, 48, 0, 0.3).float() / scales)  # type: ignore[operator]
    batches = [numbers(60, 48, seed=seed) * scales for seed in range(5)]
    _, report = shrunk_file(tmp_path, model, batches, Truncation(max_bond=12), dtype="int8")

    assert [matrix.dtype for matrix in report.compressed] == ["float16"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_of_other_dtypes_keep_them(tmp_path: Path, dtype: torch.dtype) -> None:
    model = seeded(two_layers).to(dtype)
    small, report = shrunk_file(tmp_path, model, [tensor.to(dtype) for tensor in inputs()])

    assert report.compressed
    assert {tensor.dtype for tensor in expanded(small, model).state_dict().values()} == {dtype}
    assert {tensor.dtype for name, tensor in torch.load(small)["state_dict"].items() if name.endswith("bias")} == {
        dtype
    }
    assert report.calibration is not None
    assert report.calibration.divergence is not None


@pytest.mark.slow
@pytest.mark.parametrize("truncation", [KEEP, Truncation(max_bond=3)])
def test_a_module_in_memory_is_compressed_as_its_file(tmp_path: Path, tagger: Tagger, truncation: Truncation) -> None:
    before = copy.deepcopy(tagger.state_dict())
    small, report = shrunk_file(tmp_path, tagger, words(), truncation)
    compressed, other = compress_module(tagger, truncation=truncation, selection=SMALL, calibration=words(), jobs=1)
    loaded = load(small, copy.deepcopy(tagger)).eval()

    assert [(m.bonds, m.weighted_error, m.sensitivity, m.corrected_bias) for m in report.matrices] == [
        (m.bonds, m.weighted_error, m.sensitivity, m.corrected_bias) for m in other.matrices
    ]
    assert other.calibration == report.calibration
    x = words()[0]
    assert compressed.eval()(x).equal(loaded(x))
    assert all(tensor.equal(before[name]) for name, tensor in tagger.state_dict().items())


def test_outputs_that_stop_being_finite_are_reported_as_such(tmp_path: Path) -> None:
    """They can, however near the weights are."""
    model = seeded(lambda: nn.Linear(12, 10))
    weight = model.weight.detach().clone()  # type: ignore[operator]
    whole = Calls(Exact(weight), fc=model)
    small, report = shrunk_file(tmp_path, whole, truncation=Truncation(max_bond=2))

    assert report.calibration is not None
    assert report.calibration.divergence == 1e100
    assert report.matrices[0].sensitivity == 1e100
    assert "changed too much to be useful: some are not finite, or have another shape." in report.verdict()[0]
    assert report_in(small).calibration == report.calibration


class Exact:
    """Gives NaN unless the weight is exactly the one it was made with."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.fc(x)
        return y if m.fc.weight.equal(self.weight) else y * torch.nan


def test_a_model_without_some_of_the_weights_is_refused(tmp_path: Path) -> None:
    model = seeded(two_layers)
    source = saved(tmp_path, {name: tensor for name, tensor in model.state_dict().items() if name != "2.bias"})
    with pytest.raises(
        ModelError, match=r"Sequential: 2\.bias, which the checkpoint does not have in that shape; the model"
    ):
        compress(source, tmp_path / "small.pt", truncation=KEEP, selection=SMALL, model=model, calibration=inputs())
    assert not (tmp_path / "small.pt").exists()


NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(x)
"""


def test_batches_the_model_does_not_take_are_told_with_the_users_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(NET)
    source = saved(tmp_path, {"fc.weight": numbers(10, 12), "fc.bias": numbers(10)})
    with pytest.raises(
        CalibrationError, match=r"Net: mine\.py, line 11: RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    ):
        compress(
            source,
            tmp_path / "small.pt",
            truncation=KEEP,
            selection=SMALL,
            model=f"{mine}:Net",
            calibration=[torch.ones(2, 5)],
        )


def test_nothing_is_written_when_the_batches_fail(tmp_path: Path) -> None:
    def failing() -> Any:
        yield torch.ones(2, 12)
        raise KeyError("mine")

    stored = tmp_path / "kept.safetensors"
    with pytest.raises(KeyError, match="mine"):
        shrunk_file(tmp_path, seeded(two_layers), failing(), save_calibration=stored)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_layers_whose_inputs_are_dead_are_compressed_all_the_same(tmp_path: Path) -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 10)))
    with torch.no_grad():
        model[0].bias.fill_(-1000.0)  # type: ignore[index]
    _, report = shrunk_file(tmp_path, model, truncation=Truncation(max_bond=2))

    assert report.calibration is not None
    assert report.calibration.divergence == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("classification", r"a KL divergence of .* nats, the same answer for [\d.]+%\."),
        ("embedding", r"[\d.]+% of the divergence between unrelated outputs\."),
        ("regression", r"[\d.]+% of the divergence between unrelated outputs\."),
    ],
)
def test_the_verdict_says_how_far_outputs_moved(tmp_path: Path, kind: Any, how: str) -> None:
    _, report = shrunk_file(tmp_path, seeded(two_layers), CalibrationInputs(batches=inputs(), kind=kind))
    verdict = " ".join(report.verdict())

    assert report.calibration is not None
    assert report.calibration.kind == kind
    assert re.match(r"On held-out calibration inputs the outputs .*: " + how, verdict)


def test_the_same_calibration_goes_to_a_module_in_memory(tmp_path: Path) -> None:
    model = seeded(two_layers)
    with pytest.raises(CalibrationError, match="calibration: a calibration that was made with other weights"):
        compress_module(model, truncation=KEEP, selection=SMALL, calibration=foreign(tmp_path))


def foreign(folder: Path) -> Any:
    torch.manual_seed(1)
    model = two_layers()
    return calibrate(saved(folder, model), inputs(), model)
