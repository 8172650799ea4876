"""A compressed file loaded into a model: every layer and value in its place, the outputs those of the dense twin."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import mpocompress
from mpocompress.compression.compress import compress
from mpocompress.layers.names import LSTM_GATES
from mpocompress.layers.selection import LSTMChoice, Selection
from mpocompress.nn import MPOLSTM, MPOLinear, MPOLSTMCell, MPOWeight
from mpocompress.planning.targets import Truncation
from tests.inspecting import report_in
from tests.models import BOND, WORDS, Net, close, compressed, expanded, filled, load

SMALL = Selection(min_side=8)


@pytest.fixture(autouse=True)
def _modelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test measures."""
    monkeypatch.setenv("MPOCOMPRESS_EXECUTION", "modelled")


def stored_names(small: Path) -> set[str]:
    with mpocompress.open_checkpoint(small) as checkpoint:
        return set(checkpoint.tensors)


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("lstm", ["joint", "separate"])
def test_a_loaded_model_answers_as_the_expanded_one(tmp_path: Path, suffix: str, lstm: LSTMChoice) -> None:
    net = filled(Net())
    small = compressed(tmp_path, net, suffix=suffix, lstm=lstm)
    model = Net().eval()

    assert load(small, model) is model
    close(model(WORDS), expanded(small, net)(WORDS))
    assert set(model.state_dict()) == stored_names(small)
    assert isinstance(model.lstm, MPOLSTM)
    assert isinstance(model.cell, MPOLSTMCell)
    assert isinstance(model.fc, MPOLinear)
    assert (isinstance(model.lstm._modules.get("weight_joint_l1_reverse"), MPOWeight)) == (lstm == "joint")


@torch.no_grad()
def test_a_module_with_a_forward_of_its_own_stays_and_gets_the_weight_alone(tmp_path: Path) -> None:
    net = filled(Net())
    small = compressed(tmp_path, net)
    model: Any = Net()
    own, head = model.own, model.head

    load(small, model)

    assert (model.own, model.head) == (own, head)
    for module in (own, head):
        assert isinstance(module.weight, MPOWeight)
        assert list(module._parameters) == [name for name in ("bias",) if module is own]
    x = torch.randn(5, 24)
    close(own(x), expanded(small, net).own(x))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_cores_and_values_have_memory_of_their_own(tmp_path: Path, suffix: str) -> None:
    """The file may go or be written anew while the model lives."""
    small = compressed(tmp_path, filled(Net()), suffix=suffix)
    model = load(small, Net())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    content = small.read_bytes()

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)

    assert small.read_bytes() == content
    again = load(small, Net()).state_dict()
    with small.open("r+b") as stream:
        stream.write(bytes(len(content)))
    assert all(torch.equal(again[name], tensor) for name, tensor in before.items())


def test_a_folder_an_open_checkpoint_and_a_text_are_sources(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    save_file(filled(Net()).state_dict(), tmp_path / "net" / "model.safetensors")
    small = tmp_path / "small"
    compress(tmp_path / "net", small, truncation=Truncation(max_bond=BOND), selection=SMALL)
    wanted = load(small, Net()).state_dict()

    with mpocompress.open_checkpoint(small) as opened:
        for source in (str(small), opened, opened):
            loaded_state = load(source, Net()).state_dict()
            assert all(torch.equal(loaded_state[name], tensor) for name, tensor in wanted.items())


@torch.no_grad()
def test_a_pickled_whole_module_loads_into_its_class(tmp_path: Path) -> None:
    net = filled(Net())
    small = compressed(tmp_path, net, whole=True)

    model = load(small, Net().eval())

    close(model(WORDS), load(compressed(tmp_path, net), Net().eval())(WORDS))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "a.b.c."])
def test_the_file_may_have_a_prefix(tmp_path: Path, prefix: str) -> None:
    net = filled(Net())
    small = compressed(tmp_path, net, prefix=prefix)

    model = load(small, Net().eval())

    close(model(WORDS), expanded(small, net, prefix=prefix)(WORDS))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, lambda net: nn.Sequential(OrderedDict(model=net))],
    ids=["DataParallel", "compile", "Sequential"],
)
def test_the_model_may_have_a_prefix(tmp_path: Path, wrap: Any) -> None:
    net = filled(Net())
    small = compressed(tmp_path, net)
    inner = Net().eval()

    load(small, wrap(inner))

    close(inner(WORDS), expanded(small, net)(WORDS))


def test_names_as_they_are_come_before_any_prefix(tmp_path: Path) -> None:
    def build() -> nn.ModuleDict:
        return nn.ModuleDict({"net": nn.ModuleDict({"fc": nn.Linear(16, 16)}), "fc": nn.Linear(16, 16)})

    net = filled(build())
    small = compressed(tmp_path, net)

    model = load(small, build())

    twin = expanded(small, net)
    for path in ("fc", "net.fc"):
        close(model.get_submodule(path).weight.dense(), twin.get_submodule(path).weight)


def test_where_several_prefixes_would_do_the_names_as_they_are_come_first(tmp_path: Path) -> None:
    net = filled(nn.ModuleDict({"fc": nn.Linear(16, 16)}))
    model: Any = nn.ModuleDict({"net": nn.ModuleDict({"fc": nn.Linear(16, 16)}), "fc": nn.Linear(16, 16)})

    load(compressed(tmp_path, net), model, strict=False)

    assert [type(model["fc"]), type(model["net"]["fc"])] == [MPOLinear, nn.Linear]


def test_the_prefix_is_the_one_under_which_shapes_agree(tmp_path: Path) -> None:
    net = filled(nn.ModuleDict({"fc": nn.Linear(16, 24)}))
    model: Any = nn.ModuleDict(
        {name: nn.ModuleDict({"fc": nn.Linear(16, size)}) for name, size in (("teacher", 48), ("student", 24))}
    )

    load(compressed(tmp_path, net), model, strict=False)

    assert [type(model["teacher"]["fc"]), type(model["student"]["fc"])] == [nn.Linear, MPOLinear]


def test_without_strict_what_is_on_one_side_only_is_left_as_it_is(tmp_path: Path) -> None:
    net = filled(Net())
    net.register_buffer("seen", torch.ones(2))
    small = compressed(tmp_path, net)
    model: Any = Net()
    model.more = nn.Linear(3, 3)
    before = model.more.weight.clone()

    load(small, model, strict=False)

    assert torch.equal(model.more.weight, before)
    assert torch.equal(model.embed.weight, net.embed.weight)
    assert isinstance(model.fc, MPOLinear)


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cores_get_the_dtype_of_the_parameter(tmp_path: Path, stored: str | None, dtype: torch.dtype) -> None:
    net = filled(Net())
    small = compressed(tmp_path, net, dtype=stored)

    model = load(small, Net().to(dtype))

    assert {tensor.dtype for tensor in model.parameters()} == {dtype}
    eps = max(torch.finfo(held).eps for held in (dtype, getattr(torch, stored or "float32"), torch.float32))
    weight, wanted = model.fc.weight.mpo().to(torch.float64), expanded(small, net).fc.weight
    # Entries up to about 1, of cores with entries up to about 2: each is rounded twice.
    assert (weight.to_matrix() - wanted).abs().max() < 16 * eps


def test_what_is_frozen_stays_frozen_and_modes_are_kept(tmp_path: Path) -> None:
    small = compressed(tmp_path, filled(Net()))
    model = Net()
    model.fc.requires_grad_(False)
    model.head.requires_grad_(False)
    model.lstm.requires_grad_(False)
    model.lstm.eval()

    load(small, model)

    frozen = {name.partition(".")[0] for name, tensor in model.named_parameters() if not tensor.requires_grad}
    assert frozen == {"fc", "head", "lstm"}
    assert [name for name, module in model.named_children() if not module.training] == ["lstm"]


def test_the_model_itself_may_be_the_layer(tmp_path: Path) -> None:
    lstm = filled(nn.LSTM(16, 24))
    small = compressed(tmp_path, lstm)
    prefixed = compressed(tmp_path, lstm, prefix="encoder.lstm.", suffix=".safetensors")
    given = nn.LSTM(16, 24).eval()

    for source in (small, prefixed):
        model = load(source, given)

        assert isinstance(model, MPOLSTM)
        x = torch.randn(3, 2, 16)
        close(model(x)[0], expanded(small, lstm)(x)[0])
        assert isinstance(given.weight_hh_l0, nn.Parameter)


def test_how_the_layers_run_can_be_said(tmp_path: Path) -> None:
    small = compressed(tmp_path, filled(Net()))

    model = load(small, Net(), execution="materialised")

    assert [model.lstm.execution, model.cell.execution, model.fc.execution] == ["materialised"] * 3


class Tied(nn.Module):
    def __init__(self, tie: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, 24)
        self.second = nn.Linear(16, 24)
        self.embed = nn.Embedding(10, 16)
        self.embed_again = nn.Embedding(10, 16)
        if tie:
            self.second.weight = self.first.weight
            self.embed_again.weight = self.embed.weight


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_tied_weights_stay_tied_where_the_model_ties_them(tmp_path: Path, suffix: str) -> None:
    net = filled(Tied(tie=True))
    small = compressed(tmp_path, net, suffix=suffix)
    assert report_in(small).aliases == {"second.weight": "first.weight", "embed_again.weight": "embed.weight"}

    model, apart = load(small, Tied(tie=True)), load(small, Tied(tie=False))

    assert model.second.weight is model.first.weight
    assert model.embed_again.weight is model.embed.weight
    assert apart.second.weight is not apart.first.weight
    assert torch.equal(apart.second.weight.dense(), apart.first.weight.dense())
    assert torch.equal(apart.embed_again.weight, net.embed.weight)
    stores = {core.data_ptr() for layer in (apart.first, apart.second) for core in layer.weight.parameters()}
    assert len(stores) == 4


def test_a_tied_name_that_the_file_left_out_is_not_missing(tmp_path: Path) -> None:
    """So transformers and safetensors write them."""
    net = filled(Tied(tie=True))
    source, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    state = {
        name: tensor for name, tensor in net.state_dict().items() if name not in ("second.weight", "embed_again.weight")
    }
    save_file(state, source)
    compress(source, small, truncation=Truncation(max_bond=BOND), selection=SMALL)

    model = load(small, Tied(tie=True))

    assert isinstance(model.first.weight, MPOWeight)
    assert model.second.weight is model.first.weight
    assert torch.equal(model.embed_again.weight, net.embed.weight)
    with pytest.raises(
        mpocompress.MPOCompressError, match=r"only in the model: second\.weight, embed_again\.weight; every"
    ):
        load(small, Tied(tie=False))


class Shared(nn.Module):
    def __init__(self, shared: bool = True) -> None:
        super().__init__()
        self.left = nn.LSTM(16, 24)
        self.right = self.left if shared else nn.LSTM(16, 24)
        self.list = nn.ModuleList([nn.Linear(24, 24), nn.Linear(24, 16)])
        self.last = self.list[1]


@pytest.mark.parametrize("lstm", ["joint", "separate"])
def test_a_module_under_several_names_is_swapped_under_all(tmp_path: Path, lstm: LSTMChoice) -> None:
    small = compressed(tmp_path, filled(Shared()), lstm=lstm)

    model, apart = load(small, Shared()), load(small, Shared(shared=False))

    assert model.left is model.right
    assert model.last is model.list[1]
    assert isinstance(model.left, MPOLSTM)
    assert isinstance(apart.left, MPOLSTM)
    assert isinstance(apart.right, MPOLSTM)
    assert apart.left is not apart.right
    x = torch.randn(3, 2, 16)
    assert torch.equal(apart.left(x)[0], apart.right(x)[0])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_gives_what_the_dense_one_does_in_evaluation_too(tmp_path: Path, norm_first: bool) -> None:
    """Its fast path reads the weights of the layers inside, without calling them."""

    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    net = filled(build())
    small = compressed(tmp_path, net)
    model, twin = load(small, build()), expanded(small, net)
    x, padding = torch.randn(3, 5, 16), torch.arange(5).expand(3, 5) > torch.tensor([[4], [2], [3]])

    assert isinstance(model.get_submodule("layers.0.self_attn.out_proj"), MPOLinear)
    assert isinstance(model.get_submodule("layers.1.linear1"), MPOLinear)
    for training in (False, True):
        model.train(training), twin.train(training)
        for module in (*model.modules(), *twin.modules()):
            if isinstance(module, nn.Dropout | nn.MultiheadAttention):
                module.p = module.dropout = 0.0
        close(model(x), twin(x))
        keep = ~padding[..., None]
        close(model(x, src_key_padding_mask=padding) * keep, twin(x, src_key_padding_mask=padding) * keep)


@torch.no_grad()
def test_a_packed_attention_weight_that_was_asked_for_stays_a_weight(tmp_path: Path) -> None:
    net = filled(nn.MultiheadAttention(16, 2))
    small = compressed(tmp_path, net, selection=Selection(min_side=8, kinds={"in_proj_weight": "linear"}))

    model = load(small, nn.MultiheadAttention(16, 2).eval())

    assert isinstance(model.in_proj_weight, MPOWeight)
    x = torch.randn(5, 3, 16)
    close(model(x, x, x)[0], expanded(small, net)(x, x, x)[0])


class Conv1D(nn.Module):
    """As in transformers."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Own(Conv1D):
    """The same, called otherwise."""

    __module__ = __name__


@torch.no_grad()
@pytest.mark.parametrize(("kind", "wanted"), [(Conv1D, MPOLinear), (Own, Own)])
def test_weights_that_hold_inputs_first_come_back_so(tmp_path: Path, kind: Any, wanted: type) -> None:
    net = filled(nn.Sequential(OrderedDict(c_fc=kind(32, 16))))
    small = compressed(tmp_path, net)
    assert report_in(small).compressed[0].transposed

    model = load(small, nn.Sequential(OrderedDict(c_fc=kind(32, 16))))

    assert type(model[0]) is wanted
    x = torch.randn(2, 3, 16)
    close(model(x), expanded(small, net)(x))


@torch.no_grad()
@pytest.mark.parametrize(("kind", "taken"), [(nn.Linear(16, 16), "conv1d"), (Conv1D(16, 16), "linear")])
def test_a_file_that_takes_a_layer_for_the_other_kind_gives_the_same_outputs(
    tmp_path: Path, kind: nn.Module, taken: Any
) -> None:
    net = filled(nn.Sequential(OrderedDict(fc=kind)))
    small = compressed(tmp_path, net, selection=Selection(min_side=8, kinds={"fc.weight": taken}))
    twin = expanded(small, net)

    model = load(small, copy.deepcopy(net))

    x = torch.randn(3, 16)
    close(model(x), twin(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit.script
def test_scripted_parts_that_were_not_compressed_are_loaded(tmp_path: Path) -> None:
    net = filled(nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 4)))
    small = compressed(tmp_path, net)
    scripted: Any = nn.Sequential(nn.Linear(16, 24), torch.jit.script(nn.Linear(24, 4)))

    load(small, scripted)

    x = torch.randn(2, 16)
    close(scripted(x), expanded(small, net)(x))


class MyLSTM(nn.LSTM):
    def hello(self) -> str:
        return "hello"


def test_a_subclass_that_runs_as_its_base_is_replaced(tmp_path: Path) -> None:
    class MyLinear(nn.Linear):
        pass

    net = filled(nn.ModuleDict({"lstm": MyLSTM(16, 24), "fc": MyLinear(24, 16)}))

    model = load(compressed(tmp_path, net), net)

    assert isinstance(model.lstm, MPOLSTM)
    assert isinstance(model.fc, MPOLinear)


@torch.no_grad()
def test_a_forward_put_on_an_instance_is_its_own_too(tmp_path: Path) -> None:
    model: Any = nn.Sequential(nn.Linear(16, 24))
    small = compressed(tmp_path, filled(model))
    plain = model[0].forward
    model[0].forward = lambda x: -plain(x)

    load(small, model)

    assert [type(model[0]), type(model[0].weight)] == [nn.Linear, MPOWeight]
    x = torch.randn(2, 16)
    close(model(x), -nn.functional.linear(x, model[0].weight.dense(), model[0].bias))


def test_layers_that_never_ran_take_their_sizes_from_the_file(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 4), nn.BatchNorm1d(4))
    small = compressed(tmp_path, filled(net))

    model = load(small, nn.Sequential(nn.LazyLinear(24), nn.LazyLinear(4), nn.LazyBatchNorm1d()).eval())

    assert isinstance(model[0], MPOLinear)
    x = torch.randn(3, 16)
    close(model(x), expanded(small, net)(x))


def test_a_weight_that_is_a_buffer_is_replaced_and_not_trained(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.zeros(16, 24))

    small = compressed(tmp_path, filled(nn.ModuleDict({"fixed": Fixed(), "fc": nn.Linear(16, 16)})))

    model = load(small, nn.ModuleDict({"fixed": Fixed(), "fc": nn.Linear(16, 16)}))

    assert [name for name, tensor in model.named_parameters() if tensor.requires_grad] == [
        "fc.bias",
        "fc.weight.core.0",
        "fc.weight.core.1",
    ]
    assert isinstance(model.fixed.weight, MPOWeight)


class Counting(nn.Linear):
    """Keeps a number beside its tensors."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.count = 0

    def get_extra_state(self) -> int:
        return self.count

    def set_extra_state(self, state: int) -> None:
        self.count = state


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = Counting(3, 3)
        self.fc = nn.Linear(16, 24)


@pytest.mark.parametrize("key", ["", "model", "run.model"])
def test_the_extra_state_of_a_module_comes_with_the_file(tmp_path: Path, key: str) -> None:
    net = Nested()
    net.count.count = 7
    root: Any = net.state_dict()
    for name in reversed(key.split(".") if key else []):
        root = {name: root}
    torch.save(root, tmp_path / "model.pt")
    compress(tmp_path / "model.pt", tmp_path / "small.pt", truncation=Truncation(max_bond=BOND), selection=SMALL)

    model = load(tmp_path / "small.pt", Nested())

    assert model.count.count == 7


@torch.no_grad()
def test_a_loaded_model_is_an_ordinary_module(tmp_path: Path) -> None:
    model = load(compressed(tmp_path, filled(Net())), Net()).eval()
    wanted = model(WORDS)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    other = load(tmp_path / "small.pt", Net()).eval()
    for parameter in other.parameters():
        parameter.zero_()

    other.load_state_dict(state)

    assert torch.equal(other(WORDS), wanted)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(WORDS), wanted)
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(WORDS), wanted)


def test_a_loaded_model_trains(tmp_path: Path) -> None:
    model = load(compressed(tmp_path, filled(Net())), Net()).train()
    optimizer = torch.optim.Adam(model.parameters())
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    model(WORDS).square().sum().backward()
    optimizer.step()

    still = [name for name, tensor in model.named_parameters() if torch.equal(tensor, before[name])]
    assert still == []


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_stacked_projected_and_bare_layers_load(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.ModuleDict(
            {
                "projected": nn.LSTM(16, 24, proj_size=16, num_layers=2),
                "bare": nn.LSTM(16, 24, bias=False, bidirectional=True),
                "cell": nn.LSTMCell(16, 24, bias=False),
                "fc": nn.Linear(16, 24, bias=False),
            }
        )

    net = filled(build())
    small = compressed(tmp_path, net)
    model, twin = load(small, build()), expanded(small, net)

    x = torch.randn(3, 2, 16)
    for name in ("projected", "bare"):
        close(model.get_submodule(name)(x)[0], twin.get_submodule(name)(x)[0])
    close(model.get_submodule("cell")(x[0])[0], twin.get_submodule("cell")(x[0])[0])
    close(model.get_submodule("fc")(x), twin.get_submodule("fc")(x))
    assert net.get_submodule("bare").weight_hh_l0.shape[0] == LSTM_GATES * 24


def test_only_one_half_compressed_stays_an_lstm_with_the_other(tmp_path: Path) -> None:
    net = filled(nn.LSTM(16, 24))
    small = compressed(tmp_path, net, selection=Selection(min_side=8, exclude=("weight_ih_l0",)))

    model = load(small, nn.LSTM(16, 24).eval())

    assert isinstance(model.weight_hh_l0, MPOWeight)
    assert isinstance(model.weight_ih_l0, nn.Parameter)
    x = torch.randn(3, 2, 16)
    close(model(x)[0], expanded(small, net)(x)[0])
