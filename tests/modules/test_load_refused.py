"""What cannot be loaded is said in words, and leaves the model as it was: the same objects, with the same values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpocompress.errors import CheckpointError, ExecutionError, FormatError, ModelError, MPOCompressError
from mpocompress.layers.selection import Selection
from tests.models import Gru, Net, OwnLinear, compressed, filled, load, state_of

Build = Callable[[], nn.Module]


def refused(source: Any, model: nn.Module, message: str, kind: type[Exception] = ModelError, **options: Any) -> None:
    """Check the message, and that nothing has changed."""
    before = state_of(model)
    with pytest.raises(kind, match=message):
        load(source, model, **options)
    assert state_of(model) == before


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(tmp_path_factory.mktemp("net"), filled(Net()), lstm="joint")


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed(tmp_path_factory.mktemp("net"), filled(Net()), lstm="separate")


def changed(**parts: Any) -> Build:
    """A model with other parts."""

    def build() -> nn.Module:
        model = Net()
        for name, part in parts.items():
            setattr(model, name, part() if callable(part) else part)
        return model

    return build


class OwnLSTM(nn.LSTM):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)  # type: ignore[has-type, unused-ignore] # torch 2.10


class Scaled(nn.LSTM):
    """Runs as its base, but has more than that."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("scale", torch.ones(()))


class OwnCell(nn.LSTMCell):
    def forward(self, *args: Any) -> Any:
        return super().forward(*args)


def META() -> nn.Module:  # noqa: N802
    return Net().to("meta")


SIZES: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": True}
JOINT = (
    r"a joint matrix of cell\.weight_ih and cell\.weight_hh, and a tests\.\S*OwnCell, which has a forward of its own; "
)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            Gru,
            (
                r"^lstm: an nn\.GRU; the file has cores for an nn\.LSTM here, which no other recurrent layer takes\. "
                r"Pass the model that was compressed, or exclude the layer when compressing\.$"
            ),
        ),
        (
            changed(lstm=lambda: OwnLSTM(16, 24, **SIZES)),
            (
                r"^lstm: a tests\.\S*OwnLSTM, an nn\.LSTM with its own forward or its own tensors; an MPO layer "
                r"would not"
            ),
        ),
        (
            changed(lstm=lambda: Scaled(16, 24, **SIZES)),
            r"^lstm: .*Scaled, an nn\.LSTM with its own forward or its own",
        ),
        (changed(cell=lambda: OwnCell(48, 24)), rf"^cell: {JOINT}only nn\.LSTM and nn\.LSTMCell can have weight_joint"),
        (
            changed(fc=lambda: nn.Linear(24, 20)),
            (
                r"^fc\.weight: shape \(20, 24\) in the model, \(24, 24\) in the file, and 1 more that differ; a "
                r"tensor must have the same shape in both\. Build the model with the sizes that were compressed\.$"
            ),
        ),
        (changed(embed=lambda: nn.Embedding(8, 16)), r"^embed\.weight: shape \(8, 16\) in the model, \(9, 16\) in the"),
        (
            changed(cell=nn.Identity),
            (
                r"^cell: an nn\.Identity without a parameter weight_ih; the cores of cell\.weight_ih have no "
                r"parameter to replace\. Pass a model of the kind that was compressed\.$"
            ),
        ),
        (
            lambda: nn.ModuleDict({"lstm": Net().lstm}),
            r"^cell\.weight_ih: no such module in the model; the cores of cell\.weight_ih have no parameter to ",
        ),
        (
            changed(more=lambda: nn.Linear(2, 2), norm=nn.Identity),
            (
                r"^small\.pt: only in the model: more\.weight, more\.bias; only in the file: norm\.weight, norm\.bias, "
                r"norm\.running_mean, norm\.running_var, norm\.num_batches_tracked; every tensor must be in both\. "
                r"Build the model that was compressed, or load with strict=False to leave these unchanged\.$"
            ),
        ),
        (
            changed(norm=lambda: nn.ModuleDict({str(n): nn.Linear(2, 2) for n in range(4)})),
            r"only in the model: norm\.0\.weight, norm\.0\.bias, .* and 3 more; only in the file: norm\.weight",
        ),
        (
            changed(lstm=lambda: torch.jit.script(nn.LSTM(16, 24, **SIZES))),
            r"^lstm: a TorchScript module; its parameters cannot be replaced\. Script the model after this\.$",
        ),
        (
            META,
            (
                r"^embed\.weight: a tensor without data \(device meta\); there is no device for the new weights\. "
                r"Allocate the model first, for example with model\.to_empty\(device='cpu'\)\.$"
            ),
        ),
    ],
    ids=range(12),
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit.script
def test_another_model_is_refused(small: Path, build: Build, message: str) -> None:
    model = build()
    if build is META or isinstance(model.lstm, torch.jit.ScriptModule):  # nothing to compare
        with pytest.raises(ModelError, match=message):
            load(small, model)
        return
    refused(small, model, message)


def test_shapes_and_compressed_layers_have_to_fit_without_strict_too(small: Path) -> None:
    refused(small, changed(fc=lambda: nn.Linear(24, 20))(), r"^fc\.weight: shape", strict=False)
    refused(small, changed(cell=nn.Identity)(), r"^cell: an nn\.Identity without", strict=False)


def test_a_model_with_nothing_in_common_is_told_both_sides(small: Path) -> None:
    refused(
        small,
        nn.ParameterDict({"other": torch.ones(2)}),
        r"^small\.pt: tensors such as embed\.weight, .* and \d+ more; the model has none of them; it has other\. "
        r"Pass a model of the kind that was compressed\.$",
    )
    refused(small, nn.Identity(), r"the model has none of them; it has no tensors\. Pass a model of the kind")


def test_hooks_are_not_lost_in_silence(small: Path) -> None:
    registers: tuple[Callable[[Any], object], ...] = (
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.register_full_backward_hook(lambda *_: None),
        lambda module: module.register_state_dict_post_hook(lambda *_: None),
    )
    for register in registers:
        for name in ("lstm", "cell", "fc"):
            model = Net()
            register(model.get_submodule(name))
            refused(
                small,
                model,
                rf"^{name}: an nn\.\w+ with hooks; they would be lost when the layer is replaced\. Register them "
                r"on the new layer after loading\.$",
            )
    model = Net()
    model.own.register_forward_hook(lambda *_: None)
    model.register_forward_hook(lambda *_: None)
    load(small, model)
    assert model.own._forward_hooks


def test_what_knows_its_parameters_is_wrapped_later(small: Path) -> None:
    class DistributedDataParallel(nn.Module):
        """Called like that of torch, which wants a process group."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    refused(small, DistributedDataParallel(Net()), r"^the model: a DistributedDataParallel; it keeps a list of the ")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_layer_that_was_compiled_by_itself_is_refused(tmp_path: Path) -> None:
    small = compressed(tmp_path, filled(nn.Linear(16, 24)))
    compiled: Any = torch.compile(nn.Linear(16, 24))

    refused(
        small, compiled, r"a layer inside torch\.compile; the compiled code is that of the old layer\. Compile after"
    )


def test_a_model_that_was_loaded_already_is_refused(small: Path, separate: Path) -> None:
    model = load(small, Net())

    refused(small, model, r"^lstm: a mpocompress\.MPOLSTM that has cores already; .* Load into a new model; or")
    refused(separate, load(separate, Net()), r"^lstm: a mpocompress.* that has cores already")


def test_an_ordinary_checkpoint_is_none_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(Net().state_dict(), path)

    refused(
        path,
        Net(),
        r"model\.pt: the checkpoint is not compressed; it has no compression report\. Load it with "
        r"model\.load_state_dict, or "
        r"compress it first\.$",
        FormatError,
    )


def test_an_execution_that_there_is_not_is_refused(small: Path) -> None:
    refused(small, Net(), "'fast'", ExecutionError, execution="fast")


def test_numbers_beyond_the_dtype_do_not_become_inf(tmp_path: Path) -> None:
    net = filled(nn.Sequential(nn.Linear(16, 24)))
    with torch.no_grad():
        net[0].weight.mul_(1e9)
    small = compressed(tmp_path, net)

    refused(
        small,
        nn.Sequential(nn.Linear(16, 24)).half(),
        r"^0\.weight: a parameter of torch\.float16, and cores with numbers beyond its range; they would become Inf\. "
        r"Load into a",
    )


def test_whole_numbers_cannot_be_cores(tmp_path: Path) -> None:
    small = compressed(tmp_path, filled(nn.Sequential(nn.Linear(16, 24))))
    model = nn.Sequential(nn.Linear(16, 24))
    model[0].weight = nn.Parameter(torch.zeros(24, 16, dtype=torch.int32), requires_grad=False)

    refused(
        small, model, r"^0\.weight: a parameter of torch\.int32; cores are floating point numbers\. Load into a model"
    )


def test_the_halves_of_a_joint_matrix_have_to_be_alike(small: Path) -> None:
    frozen, wide = Net(), Net()
    frozen.cell.weight_hh.requires_grad_(False)
    wide.cell.weight_ih.data = wide.cell.weight_ih.data.double()

    for model in (frozen, wide):
        refused(
            small,
            model,
            r"^cell: weight_ih and weight_hh of different dtype, device or requires_grad; they are one matrix in the "
            r"file, cell\.weight_joint\. Give them the same, or compress with lstm='separate'\.$",
        )


class Pair(nn.Module):
    """Two LSTMs, tied as told."""

    def __init__(self, *ties: str) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(16, 24), nn.LSTM(16, 24)
        for name in ties:
            setattr(self.second, name, getattr(self.first, name))


IH, HH = "weight_ih_l0", "weight_hh_l0"


def test_half_a_joint_matrix_cannot_be_tied(tmp_path: Path) -> None:
    net = filled(Pair(IH))
    small = compressed(tmp_path, net, lstm="joint")

    refused(
        small,
        Pair(IH),
        r"^second: a joint matrix of first\.weight_ih_l0 and first\.weight_hh_l0, only one of which is tied to "
        r"this layer; "
        r".* Expand the file, or compress with lstm='separate'\.$",
    )

    whole = compressed(tmp_path, filled(Pair(IH, HH)), lstm="joint")
    refused(
        whole,
        Pair(IH),
        r"^second\.weight_ih_l0: tied to first\.weight_ih_l0 in the model, but the weight it is joined with is not; "
        r"they are one",
    )
    tied = load(whole, Pair(IH, HH))
    assert tied.first.weight_joint_l0 is tied.second.weight_joint_l0
    apart = load(whole, Pair())
    assert apart.first.weight_joint_l0 is not apart.second.weight_joint_l0
    separate = compressed(tmp_path, net, lstm="separate")
    model = load(separate, Pair(IH))
    assert model.first.weight_ih_l0 is model.second.weight_ih_l0
    assert model.first.weight_hh_l0 is not model.second.weight_hh_l0


@pytest.mark.parametrize("exclude", [(), ("b*",)])
def test_one_parameter_cannot_get_two_values(tmp_path: Path, exclude: tuple[str, ...]) -> None:
    def build(tie: bool) -> nn.Module:
        model = nn.ModuleDict({"a": nn.Linear(16, 24), "b": nn.Linear(16, 24)})
        if tie:
            model["b"].weight = model["a"].weight
        return model

    small = compressed(tmp_path, filled(build(tie=False)), selection=Selection(min_side=8, exclude=exclude))

    refused(
        small,
        build(tie=True),
        r"^b\.weight: the same parameter as a\.weight in the model; the file has two tensors for it, at least one of "
        r"them compressed\. Untie them in the model, or tie them before compressing\.$",
    )


def test_a_recurrent_weight_that_was_taken_for_its_transpose_is_refused(tmp_path: Path) -> None:
    net = filled(nn.LSTM(24, 24))
    kinds: Any = {"weight_ih_l0": "conv1d"}
    small = compressed(tmp_path, net, selection=Selection(min_side=8, kinds=kinds))

    refused(
        small, nn.LSTM(24, 24), r"^the model: an nn\.LSTM, and cores of the transpose of its weight; an LSTM multiplies"
    )


def edited(small: Path, target: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> Path:
    """The file with its document or its tensors changed."""
    root = torch.load(small, weights_only=True)
    document = json.loads(root["mpocompress"])
    change(document, root["state_dict"])
    torch.save({**root, "mpocompress": json.dumps(document)}, target)
    return target


def spoil(name: str) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], object]:
    return lambda document, state: state[name].view(-1)[-1:].fill_(float("nan"))


CORE = "fc.weight.core.1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document, state: state.pop(CORE), r"bad\.pt: no tensor 'fc\.weight\.core\.1'; the report says"),
        (lambda document, state: state.update({CORE: torch.ones(1, 2, 3)}), r"bad\.pt, fc\.weight: cores of shapes"),
        (
            lambda document, state: state.update({"fc.weight": torch.ones(2, 2)}),
            r"both 'fc\.weight' and its cores",
        ),
        (spoil(CORE), r"bad\.pt, fc\.weight: cores that hold NaN or Inf; mpocompress never writes such values"),
        (spoil("head.weight.core.0"), r"bad\.pt, head\.weight: cores that hold NaN or Inf"),
        (lambda document, state: document.update(version=99), r"version 99"),
        (
            lambda document, state: document["totals"].update(parameters=5),
            r"only matrices can have other numbers of parameters",
        ),
        (lambda document, state: document.pop("matrices"), r"object missing required field `matrices`"),
    ],
    ids=range(8),
)
def test_a_file_that_contradicts_itself_is_refused(small: Path, tmp_path: Path, change: Any, message: str) -> None:
    refused(edited(small, tmp_path / "bad.pt", change), Net(), message, MPOCompressError)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["head.steps", "norm.running_var", CORE])
def test_a_file_cut_short_or_damaged_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    small = compressed(tmp_path, filled(Net()), suffix=suffix)
    content = small.read_bytes()
    small.write_bytes(content[:-100])
    refused(small, Net(), r"small\.\w+: ", CheckpointError)
    if suffix == ".pt":  # safetensors has no checksums
        value = torch.load(tmp_path / "model.pt")[name] if name != CORE else None
        stored = value if value is not None else _core(content, tmp_path)
        place = content.index(stored.contiguous().numpy().tobytes())
        small.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        refused(small, Net(), r"checksum|CRC|damaged", CheckpointError)


def _core(content: bytes, folder: Path) -> torch.Tensor:
    (folder / "copy.pt").write_bytes(content)
    core: torch.Tensor = torch.load(folder / "copy.pt", weights_only=True)["state_dict"][CORE]
    return core


class Fails(nn.Module):
    """Loads in a way of its own, and fails after everything before it was loaded."""

    def __init__(self, error: type[BaseException] | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.error = error

    def _load_from_state_dict(self, *args: Any) -> None:
        if self.error is not None:
            raise self.error("no")
        args[-1].append("nothing is good enough")


@pytest.mark.parametrize("error", [None, RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_fails_while_values_are_loaded_is_undone(
    tmp_path: Path, error: type[BaseException] | None, suffix: str
) -> None:
    def build(error: type[BaseException] | None) -> nn.Module:
        model = Net()
        model.lazy = nn.LazyLinear(24) if error is None or error is OSError else nn.Linear(24, 24)
        model.small = nn.LazyLinear(3) if error is OSError else nn.Linear(2, 3)
        model.last = Fails(error)
        return model

    net = Net()
    net.lazy, net.small, net.last = nn.Linear(24, 24), nn.Linear(2, 3), nn.PReLU(3)
    small = compressed(tmp_path, filled(net), suffix=suffix)
    model = build(error)
    before = state_of(model)

    if error in (None, RuntimeError):
        with pytest.raises(
            ModelError,
            match=r"^Net: load_state_dict refused the tensors \(.*(no|good enough).*\); a module in the "
            r"model has its own way to load tensors\. Fix the error above; the model is unchanged\.$",
        ):
            load(small, model)
    else:
        assert error is not None
        with pytest.raises(error, match="no"):
            load(small, model)
    assert state_of(model) == before


def test_a_shared_module_is_put_back_under_all_its_names(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(16, 24), "own": OwnLinear(16, 24), "last": Fails(OSError)})
    model["b"], model["more"] = model["a"], nn.ModuleList([model["a"], model["own"]])
    twin = nn.ModuleDict({"a": nn.Linear(16, 24), "own": OwnLinear(16, 24), "last": nn.PReLU(3)})
    twin["b"], twin["more"] = twin["a"], nn.ModuleList([twin["a"], twin["own"]])
    small = compressed(tmp_path, filled(twin))

    refused(small, model, "no", OSError)
