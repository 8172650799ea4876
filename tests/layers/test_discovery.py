"""Names and shapes to layers: every kind that is met, every reason to leave a tensor alone, every pattern refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.checkpoint.dtypes import BFLOAT16, COMPLEX64, FLOAT16, FLOAT32, FLOAT64, INT8, DType
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.errors import SelectionError
from mpocompress.layers.classifier import Hints
from mpocompress.layers.discovery import Discovery, layers_of
from mpocompress.layers.selection import Selection


def info(name: str, *shape: int, dtype: DType = FLOAT32, alias_of: str | None = None) -> TensorInfo:
    return TensorInfo(name=name, shape=shape, dtype=dtype, alias_of=alias_of)


def find(*infos: TensorInfo, **selection: object) -> Discovery:
    return layers_of({tensor_info.name: tensor_info for tensor_info in infos}, Selection(**selection))  # type: ignore[arg-type]


def infos_of(module: nn.Module) -> tuple[TensorInfo, ...]:
    return tuple(
        info(name, *tensor.shape, dtype=dtype_of(tensor.dtype)) for name, tensor in module.state_dict().items()
    )


def forms(discovery: Discovery) -> dict[str, list[list[str]]]:
    """Layer name with its level -> names of the matrices of every form."""
    return {
        f"{layer.name}:{layer.forms[-1][0].name}": [[matrix.name for matrix in form] for form in layer.forms]
        for layer in discovery.layers
    }


def reasons(discovery: Discovery) -> dict[str, str]:
    return {tensor_info.name: tensor_info.reason for tensor_info in discovery.skipped}


def test_a_stacked_bidirectional_projected_lstm_is_a_layer_a_level_and_direction() -> None:
    discovery = find(*infos_of(nn.LSTM(96, 128, num_layers=2, bidirectional=True, proj_size=64)))

    assert [layer.kind for layer in discovery.layers] == ["lstm"] * 4
    assert forms(discovery) == {
        f":weight_ih{level}": [
            [f"weight_joint{level}", f"weight_hr{level}"],
            [f"weight_ih{level}", f"weight_hh{level}", f"weight_hr{level}"],
        ]
        for level in ("_l0", "_l0_reverse", "_l1", "_l1_reverse")
    }
    assert set(reasons(discovery).values()) == {"1-D: a bias, a norm or a statistic"}


def test_a_joint_matrix_is_both_weights_side_by_side() -> None:
    (layer,) = find(*infos_of(nn.LSTM(96, 128, bias=False))).layers
    joint, apart = layer.forms

    assert joint[0].shape == (512, 224)
    assert [member.name for member in joint[0].members] == ["weight_ih_l0", "weight_hh_l0"]
    assert layer.dense_parameters == sum(matrix.dense_parameters for matrix in apart)


def test_a_cell_has_no_level() -> None:
    (layer,) = find(info("cell.weight_ih", 256, 64), info("cell.weight_hh", 256, 64)).layers

    assert (layer.name, layer.kind, layer.forms[0][0].name) == ("cell", "lstm_cell", "cell.weight_joint")


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("auto", [["weight_joint_l0"], ["weight_ih_l0", "weight_hh_l0"]]),
        ("joint", [["weight_joint_l0"]]),
        ("separate", [["weight_ih_l0", "weight_hh_l0"]]),
    ],
)
def test_the_form_is_chosen(choice: str, wanted: list[list[str]]) -> None:
    assert list(forms(find(*infos_of(nn.LSTM(64, 64)), lstm=choice)).values()) == [wanted]


def test_weights_of_two_dtypes_are_not_joined() -> None:
    discovery = find(info("l.weight_ih_l0", 256, 64), info("l.weight_hh_l0", 256, 64, dtype=FLOAT16))

    assert list(forms(discovery).values()) == [[["l.weight_ih_l0", "l.weight_hh_l0"]]]


def test_a_small_input_goes_with_the_other_weight_or_beside_it() -> None:
    weights = infos_of(nn.LSTM(28, 256, bias=False))

    assert list(forms(find(*weights)).values()) == [[["weight_joint_l0"], ["weight_ih_l0", "weight_hh_l0"]]]
    assert list(forms(find(*weights, lstm="joint")).values()) == [[["weight_joint_l0"]]]
    apart = find(*weights, lstm="separate")
    assert list(forms(apart).values()) == [[["weight_hh_l0"]]]
    assert reasons(apart) == {"weight_ih_l0": "a side of 28, below the smallest that is compressed (64)"}


def test_a_small_projection_is_left_and_the_rest_is_joined() -> None:
    discovery = find(*infos_of(nn.LSTM(96, 128, proj_size=48, bias=False)))

    assert list(forms(discovery).values()) == [[["weight_joint_l0"], ["weight_ih_l0", "weight_hh_l0"]]]
    assert reasons(discovery) == {"weight_hr_l0": "a side of 48, below the smallest that is compressed (64)"}


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.GRU(64, 64), "a GRU, by 192 rows to a hidden size of 64: only LSTM is compressed"),
        (nn.RNN(64, 64), "a plain RNN, by 64 rows to a hidden size of 64: only LSTM is compressed"),
    ],
)
def test_other_recurrent_layers_beside_an_lstm_are_told_apart(module: nn.Module, reason: str) -> None:
    model = nn.ModuleDict({"other": module, "lstm": nn.LSTM(64, 64)})

    discovery = find(*infos_of(model))

    assert [layer.name for layer in discovery.layers] == ["lstm"]
    assert reasons(discovery)["other.weight_hh_l0"] == reasons(discovery)["other.weight_ih_l0"] == reason


def test_rows_that_are_no_multiple_are_of_no_known_kind() -> None:
    discovery = find(info("x.weight_ih_l0", 200, 64), info("x.weight_hh_l0", 200, 64))

    assert reasons(discovery)["x.weight_hh_l0"].startswith(
        "a layer of unknown kind, by 200 rows to a hidden size of 64"
    )


def test_lstm_weights_that_do_not_belong_together_are_left() -> None:
    discovery = find(info("x.weight_ih_l0", 512, 64), info("x.weight_hh_l0", 256, 64))

    assert set(reasons(discovery).values()) == {"weight_ih and weight_hh have different numbers of rows"}


@pytest.mark.parametrize(
    ("tensor_info", "reason"),
    [
        (info("scale"), "a scalar"),
        (info("fc.bias", 64), "1-D: a bias, a norm or a statistic"),
        (info("conv.weight", 64, 64, 3), "3-D: not an LSTM or Linear weight"),
        (
            info("fc.weight", 64, 64, dtype=INT8),
            "int8: only float16, bfloat16, float32 and float64 weights are compressed",
        ),
        (
            info("fc.weight", 64, 64, dtype=COMPLEX64),
            "complex64: only float16, bfloat16, float32 and float64 weights are compressed",
        ),
        (info("fc.weight", 0, 64), "empty"),
        (info("fc.weight", 10, 64), "a side of 10, below the smallest that is compressed (64)"),
        (info("attn.in_proj_weight", 192, 64), "not an LSTM or Linear weight by its name"),
        (info("fc.weight_v", 64, 64), "not an LSTM or Linear weight by its name"),
        (info("tok_embeddings.weight", 1000, 64), "an embedding"),
        (info("wte.weight", 1000, 64), "an embedding"),
        (info("l.weight_ih_l0", 256, 64), "an LSTM weight without its weight_hh"),
    ],
    ids=lambda value: f"{value.name} {value.shape} {value.dtype}" if isinstance(value, TensorInfo) else "",
)
def test_the_reason_for_a_tensor_that_stays(tensor_info: TensorInfo, reason: str) -> None:
    discovery = find(tensor_info)

    assert discovery.layers == ()
    assert reasons(discovery) == {tensor_info.name: reason}


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT32, FLOAT64], ids=str)
def test_a_linear_weight_of_any_float_dtype(dtype: DType) -> None:
    (layer,) = find(info("fc.weight", 64, 64, dtype=dtype), info("fc.bias", 64)).layers

    assert (layer.name, layer.kind) == ("fc", "linear")
    assert layer.forms[0][0].members[0].dtype == dtype.name


def test_a_bare_linear_has_no_prefix() -> None:
    (layer,) = find(info("weight", 64, 128), info("bias", 64)).layers

    assert (layer.name, layer.forms[0][0].name) == ("", "weight")


def test_a_weight_with_a_bias_is_no_embedding_whatever_its_name() -> None:
    assert [layer.name for layer in find(info("patch_embed.weight", 64, 128), info("patch_embed.bias", 64)).layers] == [
        "patch_embed"
    ]


def kinds(discovery: Discovery) -> dict[str, tuple[str, str]]:
    """Layer -> its kind, and from where that is known."""
    return {layer.name: (layer.kind, layer.forms[0][0].kind_from) for layer in discovery.layers}


def test_a_transposed_weight_shows_by_its_bias() -> None:
    discovery = find(info("h.0.c_fc.weight", 64, 256), info("h.0.c_fc.bias", 256))

    assert kinds(discovery) == {"h.0.c_fc": ("conv1d", "name and shape")}
    (member,) = discovery.layers[0].forms[0][0].members
    assert (member.shape, member.transposed) == ((256, 64), True)


def biased(name: str, rows: int, cols: int, outputs: int) -> tuple[TensorInfo, TensorInfo]:
    return info(f"{name}.weight", rows, cols), info(f"{name}.bias", outputs)


def test_a_square_weight_is_transposed_where_its_namesake_is() -> None:
    discovery = find(*biased("h.attn.c_proj", 64, 64, 64), *biased("h.mlp.c_proj", 256, 64, 64))

    assert {kind for kind, _ in kinds(discovery).values()} == {"conv1d"}


@pytest.mark.parametrize(
    "others",
    [
        biased("h.mlp.other", 256, 64, 64),
        (*biased("h.mlp.c_proj", 256, 64, 64), *biased("x.c_proj", 256, 64, 256)),
        (),
    ],
    ids=["another name", "namesakes of both kinds", "alone"],
)
def test_a_square_weight_is_linear_otherwise(others: tuple[TensorInfo, ...]) -> None:
    assert kinds(find(*biased("h.attn.c_proj", 64, 64, 64), *others))["h.attn.c_proj"][0] == "linear"


def test_numbers_are_no_names_to_go_by() -> None:
    discovery = find(*biased("a.0", 64, 128, 128), *biased("b.0", 64, 64, 64))

    assert {name: kind for name, (kind, _) in kinds(discovery).items()} == {"a.0": "conv1d", "b.0": "linear"}


TORCH_LSTM = "torch.nn.modules.rnn.LSTM"
TORCH_LINEAR = "torch.nn.modules.linear.Linear"
CONV1D = "transformers.pytorch_utils.Conv1D"


def find_with(*infos: TensorInfo, selection: Selection = Selection(), **hints: Any) -> Discovery:  # noqa: B008
    return layers_of({tensor_info.name: tensor_info for tensor_info in infos}, selection, Hints(**hints))


@pytest.mark.parametrize(
    ("hints", "known"),
    [
        ({}, "name and shape"),
        ({"model_classes": {"x": TORCH_LINEAR}}, "model"),
        (
            {"recorded_classes": {"x": TORCH_LINEAR}, "model_classes": {"x": "torch.nn.modules.sparse.Embedding"}},
            "recorded class",
        ),
        ({"recorded_classes": {"x": "__main__.Own"}, "model_classes": {"x": TORCH_LINEAR}}, "model"),
        ({"recorded_classes": {"x": "__main__.Own", "": "__main__.Net"}}, "name and shape"),
        ({"recorded_classes": {"x": "torch.nn.modules.container.ParameterDict"}}, "name and shape"),
        ({"recorded_classes": {"x": "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"}}, "recorded class"),
    ],
)
def test_what_a_layer_is_comes_from_the_surest_source(hints: dict[str, Any], known: str) -> None:
    assert kinds(find_with(info("x.weight", 64, 64), **hints)) == {"x": ("linear", known)}


def test_what_is_asked_for_goes_before_every_class() -> None:
    discovery = find_with(
        info("x.weight", 64, 128),
        selection=Selection(kinds={"x.weight": "conv1d"}),
        recorded_classes={"x": "torch.nn.modules.sparse.Embedding"},
    )

    assert kinds(discovery) == {"x": ("conv1d", "as asked")}
    assert discovery.layers[0].forms[0][0].shape == (128, 64)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torch.nn.modules.sparse.Embedding", "an embedding (nn.Embedding)"),
        ("torch.nn.modules.rnn.LSTM", "not an LSTM or Linear weight by its name"),
        (
            "torch.nn.modules.activation.MultiheadAttention",
            "a weight of nn.MultiheadAttention, which is not compressed",
        ),
        ("torch.nn.modules.conv.Conv2d", "a weight of nn.Conv2d, which is not compressed"),
    ],
)
def test_the_class_of_what_stays_is_named(name: str, reason: str) -> None:
    assert reasons(find_with(info("x.weight", 64, 64), recorded_classes={"x": name})) == {"x.weight": reason}


@pytest.mark.parametrize("module", [nn.LSTM(64, 64), nn.GRU(64, 64), nn.RNN(64, 64), nn.LSTMCell(64, 64)])
def test_recurrent_layers_go_by_their_class(module: nn.Module) -> None:
    name = f"torch.nn.modules.rnn.{type(module).__name__}"
    discovery = find_with(*infos_of_prefixed("x", module), recorded_classes={"x": name})

    if isinstance(module, nn.LSTM | nn.LSTMCell):
        assert kinds(discovery) == {"x": ("lstm" if isinstance(module, nn.LSTM) else "lstm_cell", "recorded class")}
    else:
        expected = f"a weight of nn.{type(module).__name__}, which is not compressed"
        assert discovery.layers == ()
        assert expected in reasons(discovery).values()


def test_a_gru_of_the_shape_of_an_lstm_is_a_gru_when_its_class_says_so() -> None:
    weights = infos_of_prefixed("x", nn.LSTM(64, 64))

    assert find_with(*weights, recorded_classes={"x": "torch.nn.modules.rnn.GRU"}).layers == ()
    assert kinds(find_with(*weights, model_classes={"x": "__main__.Gated"})) == {"x": ("lstm", "name and shape")}


def test_an_embedding_by_name_is_a_linear_by_class() -> None:
    discovery = find_with(info("embed.weight", 64, 64), recorded_classes={"embed": TORCH_LINEAR})

    assert kinds(discovery) == {"embed": ("linear", "recorded class")}


def test_a_conv1d_by_class_needs_no_bias_and_may_be_square() -> None:
    discovery = find_with(info("x.weight", 64, 64), recorded_classes={"x": CONV1D})

    assert kinds(discovery) == {"x": ("conv1d", "recorded class")}


def test_a_bias_that_contradicts_the_class_is_said() -> None:
    discovery = find_with(*biased("x", 64, 128, 64), recorded_classes={"x": CONV1D})

    assert reasons(discovery)["x.weight"] == "its bias of shape (64,) does not fit a Conv1D layer"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "gpt2"}, "conv1d"),
        ({"model_type": "openai-gpt"}, "conv1d"),
        ({"model_type": "gpt_neo"}, "linear"),
        ({"model_type": ["gpt2"], "decoder": 3, "tie_word_embeddings": "yes"}, "linear"),
        ({"model_type": "gpt_bigcode"}, "linear"),
        ({"model_type": "encoder-decoder", "decoder": {"model_type": "gpt2"}}, "linear"),
        ({"model_type": "encoder-decoder", "h": {"model_type": "gpt2"}}, "conv1d"),
        ({}, "linear"),
    ],
)
def test_a_square_weight_goes_by_the_configuration(config: dict[str, object], kind: str) -> None:
    discovery = find_with(*biased("h.attn.q_attn", 64, 64, 64), *biased("h.other", 64, 64, 64), config=config)

    known = "config" if kind == "conv1d" else "name and shape"
    assert kinds(discovery) == {"h.attn.q_attn": (kind, known), "h.other": ("linear", "name and shape")}


def test_a_bias_that_contradicts_the_configuration_wins() -> None:
    discovery = find_with(*biased("h.c_fc", 256, 64, 256), config={"model_type": "gpt2"})

    assert kinds(discovery) == {"h.c_fc": ("linear", "name and shape")}


TIED = [
    ((info("encoder.weight", 1000, 64), info("decoder.weight", 1000, 64, alias_of="encoder.weight")), {}),
    (
        (
            info("encoder.weight", 1000, 64),
            info("decoder.weight", 1000, 64, alias_of="encoder.weight"),
            info("decoder.bias", 1000),
        ),
        {},
    ),
    (
        (
            info("decoder.bias", 1000),
            info("decoder.weight", 1000, 64),
            info("encoder.weight", 1000, 64, alias_of="decoder.weight"),
        ),
        {},
    ),
    ((info("net.wte.weight", 1000, 64), info("lm_head.weight", 1000, 64, alias_of="net.wte.weight")), {}),
    ((info("lm_head.weight", 1000, 64), info("net.wte.weight", 1000, 64, alias_of="lm_head.weight")), {}),
    ((info("lm_head.weight", 1000, 64),), {"ties": {"net.wte.weight": "lm_head.weight"}}),
    ((info("decoder.weight", 1000, 64),), {"ties": {"encoder.weight": "decoder.weight"}}),
    ((info("net.wte.weight", 1000, 64), info("lm_head.weight", 1000, 64)), {"config": {"tie_word_embeddings": True}}),
    ((info("lm_head.weight", 1000, 64),), {"config": {"tie_word_embeddings": True}}),
    (
        (info("a.weight", 1000, 64), info("b.weight", 1000, 64, alias_of="a.weight")),
        {"recorded_classes": {"a": TORCH_LINEAR, "b": "torch.nn.modules.sparse.Embedding"}},
    ),
]


@pytest.mark.parametrize(("infos", "hints"), TIED, ids=[str(number) for number in range(len(TIED))])
def test_an_output_layer_that_is_the_embedding_is_left(infos: tuple[TensorInfo, ...], hints: dict[str, Any]) -> None:
    discovery = find_with(*infos, **hints)

    assert discovery.layers == ()
    expected = {name: reason for name, reason in reasons(discovery).items() if not name.endswith("bias")}
    assert all("embedding" in reason for reason in expected.values())


@pytest.mark.parametrize(
    "hints",
    [
        {},
        {"config": {"tie_word_embeddings": False}},
        {"ties": {"format": "pt", "lm_head.weight": "net.wte.weight"}},
    ],
)
def test_an_output_layer_of_its_own_is_compressed(hints: dict[str, Any]) -> None:
    discovery = find_with(info("net.wte.weight", 1000, 64), info("lm_head.weight", 1000, 64), **hints)

    assert list(kinds(discovery)) == ["lm_head"]


def test_tied_linears_of_known_class_are_one_layer() -> None:
    discovery = find_with(
        info("encoder.weight", 1000, 64),
        info("decoder.weight", 1000, 64, alias_of="encoder.weight"),
        recorded_classes={"encoder": TORCH_LINEAR, "decoder": TORCH_LINEAR},
    )

    assert kinds(discovery) == {"encoder": ("linear", "recorded class")}
    assert discovery.layers[0].forms[0][0].members[0].names == ("encoder.weight", "decoder.weight", "decoder")


def test_a_tied_embedding_can_be_asked_for_as_linear() -> None:
    discovery = find_with(
        info("head.weight", 1000, 64),
        info("embed.weight", 1000, 64, alias_of="head.weight"),
        selection=Selection(kinds={"head*": "linear"}),
    )

    assert kinds(discovery) == {"head": ("linear", "as asked")}


def test_a_bias_of_another_size_is_said() -> None:
    discovery = find(info("fc.weight", 64, 128), info("fc.bias", 3))

    assert reasons(discovery)["fc.weight"] == "its bias of shape (3,) does not fit a Linear layer"


@pytest.mark.parametrize(
    ("first", "second"), [("embed.weight", "head.weight"), ("head.weight", "embed.weight")], ids=["before", "after"]
)
def test_a_linear_tied_to_an_embedding_stays_with_it(first: str, second: str) -> None:
    discovery = find(info(first, 1000, 64), info(second, 1000, 64, alias_of=first))

    assert discovery.layers == ()
    assert reasons(discovery) == {first: f"an embedding, tied to {second}"}


def test_tied_linears_are_one_layer() -> None:
    discovery = find(info("a.weight", 64, 64), info("b.weight", 64, 64, alias_of="a.weight"))

    assert [layer.name for layer in discovery.layers] == ["a"]
    assert discovery.skipped == ()


def test_a_weight_tied_to_another_layer_is_not_missed() -> None:
    """The second cell has its weight_hh: it is tied to that of the first."""
    discovery = find(
        info("a.weight_ih", 256, 64),
        info("a.weight_hh", 256, 64),
        info("b.weight_ih", 256, 64),
        info("b.weight_hh", 256, 64, alias_of="a.weight_hh"),
    )

    assert discovery.layers[0].name == "a"
    assert reasons(discovery).get("b.weight_ih") != "an LSTM weight without its weight_hh"


def test_a_joint_matrix_finds_its_parts_in_any_file_order() -> None:
    """safetensors files are sorted by name: hh, hr, ih."""
    weights = infos_of(nn.LSTM(96, 128, proj_size=64, bias=False))

    (layer,) = find(*sorted(weights, key=lambda tensor_info: tensor_info.name)).layers

    joint, apart = layer.forms
    assert [member.name for member in joint[0].members] == ["weight_ih_l0", "weight_hh_l0"]
    assert [matrix.name for matrix in apart][-1] == joint[1].name == "weight_hr_l0"


def test_names_that_only_look_alike_are_other_layers() -> None:
    discovery = find(
        info("a.weight_ih_l0", 256, 64),
        info("a.weight_hh_l0", 256, 64),
        info("aweight_ih_l0", 256, 64),
        info("aweight_hh_l0", 256, 64),
    )

    assert accounted(discovery) == ["a.weight_hh_l0", "a.weight_ih_l0", "aweight_hh_l0", "aweight_ih_l0"]


def accounted(discovery: Discovery) -> list[str]:
    """Every name in a layer or skipped, once for every time."""
    used = [member.name for layer in discovery.layers for matrix in layer.forms[0] for member in matrix.members]
    return sorted([*used, *reasons(discovery)])


MODULES = st.sampled_from(
    [
        nn.LSTM(64, 64, device="meta"),
        nn.LSTM(28, 80, num_layers=2, bidirectional=True, device="meta"),
        nn.LSTM(64, 96, proj_size=64, bias=False, device="meta"),
        nn.GRU(64, 64, device="meta"),
        nn.LSTMCell(64, 64, device="meta"),
        nn.Linear(64, 65, device="meta"),
        nn.Linear(7, 65, bias=False, device="meta"),
        nn.Embedding(70, 70, device="meta"),
        nn.MultiheadAttention(64, 2, device="meta"),
        nn.BatchNorm1d(64, device="meta"),
        nn.Conv1d(64, 64, 1, device="meta"),
    ]
)


@given(
    st.dictionaries(st.sampled_from(["a", "b.c", "embed", "x[0]", "weight", "l0"]), MODULES, max_size=4),
    st.sampled_from(["auto", "joint", "separate"]),
    st.sampled_from([1, 64, 65, 100]),
    st.sampled_from([{}, {"include": ("*",)}, {"exclude": ("*",)}]),
    st.booleans(),
)
def test_every_tensor_is_in_a_layer_or_skipped_once(
    modules: dict[str, nn.Module], lstm: str, min_side: int, patterns: dict[str, object], by_name: bool
) -> None:
    infos = [tensor_info for prefix, module in modules.items() for tensor_info in infos_of_prefixed(prefix, module)]
    if by_name:
        infos.sort(key=lambda tensor_info: tensor_info.name)
    if not infos:
        patterns = {}

    discovery = find(*infos, lstm=lstm, min_side=min_side, **patterns)

    assert accounted(discovery) == sorted(tensor_info.name for tensor_info in infos)
    assert [tensor_info.name for tensor_info in discovery.skipped] == [
        tensor_info.name for tensor_info in infos if tensor_info.name in reasons(discovery)
    ]
    for layer in discovery.layers:
        names = [sorted(member.name for matrix in form for member in matrix.members) for form in layer.forms]
        assert all(tensor_info == names[0] for tensor_info in names)
        # In the form apart, what a joint matrix would hold may be thinner than the smallest side.
        assert all(min(matrix.shape) >= min_side for matrix in layer.forms[0])


def infos_of_prefixed(prefix: str, module: nn.Module) -> list[TensorInfo]:
    return [
        info(f"{prefix}.{tensor_info.name}", *tensor_info.shape, dtype=tensor_info.dtype)
        for tensor_info in infos_of(module)
    ]


LINEARS = (info("a.weight", 64, 64), info("b.weight", 64, 64), info("layers[0].weight", 64, 64))


@pytest.mark.parametrize(
    ("selection", "layers"),
    [
        ({"include": ("a",)}, ["a"]),
        ({"include": ("a.weight", "b*")}, ["a", "b"]),
        ({"exclude": ("b",)}, ["a", "layers[0]"]),
        ({"include": ("[ab]",), "exclude": ("a",)}, ["b"]),
        ({"include": ("layers[[]0]",)}, ["layers[0]"]),
        ({"include": ("layers[0].weight",)}, ["layers[0]"]),
        ({"exclude": ("layers[0]",)}, ["a", "b"]),
        ({"kinds": {"a*": "embedding"}}, ["b", "layers[0]"]),
    ],
)
def test_patterns_select_layers_or_tensors(selection: dict[str, object], layers: list[str]) -> None:
    assert [layer.name for layer in find(*LINEARS, **selection).layers] == layers


def test_what_was_not_asked_for_says_so() -> None:
    discovery = find(*LINEARS, include=("a", "b"), exclude=("b",))

    assert reasons(discovery) == {
        "b.weight": "excluded by the user",
        "layers[0].weight": "not among the selected layers",
    }


def test_a_kind_overrides_the_name() -> None:
    forced = find(info("attn.in_proj_weight", 192, 64), info("embed.weight", 99, 64), kinds={"*": "linear"})

    assert [(layer.name, layer.kind) for layer in forced.layers] == [("attn", "linear"), ("embed", "linear")]


def test_a_recurrent_weight_can_be_asked_for_as_linear() -> None:
    """The matrices of a GRU are as good as any, when the user says so."""
    discovery = find(*infos_of(nn.GRU(64, 64, bias=False)), kinds={"weight_*": "linear"})

    assert [(layer.kind, [matrix.name for matrix in layer.forms[0]]) for layer in discovery.layers] == [
        ("linear", ["weight_ih_l0"]),
        ("linear", ["weight_hh_l0"]),
    ]


@pytest.mark.parametrize("selection", [{"include": ("*weight_ih*",)}, {"exclude": ("*weight_hh*",)}])
def test_one_weight_of_an_lstm_can_be_asked_for(selection: dict[str, object]) -> None:
    """What the layer is does not depend on which of its weights are wanted."""
    discovery = find(*infos_of(nn.LSTM(64, 64, bias=False)), **selection)

    assert list(forms(discovery).values()) == [[["weight_ih_l0"]]]


def test_leaving_the_projection_out_leaves_the_lstm_in() -> None:
    discovery = find(*infos_of(nn.LSTM(96, 128, proj_size=64, bias=False)), exclude=("*weight_hr*",))

    assert reasons(discovery) == {"weight_hr_l0": "excluded by the user"}
    assert len(discovery.layers) == 1


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (
            {"include": ("lstm*",)},
            r"include pattern 'lstm\*': matches no layer and no tensor; .* Names look like a.weight, b.weight",
        ),
        (
            {"exclude": ("a", "zz")},
            "exclude pattern 'zz': matches no layer and no tensor; a pattern must match at least one",
        ),
        ({"kinds": {"zz": "linear"}}, "kind pattern 'zz': matches no tensor"),
        ({"kinds": {"a": "linear"}}, "kind pattern 'a': matches no tensor"),
        (
            {"kinds": {"a.*": "lstm"}},
            r"a.weight: a name without weight_ih, weight_hh or weight_hr; that cannot be the weight of a lstm layer",
        ),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(selection: dict[str, object], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        find(*LINEARS, **selection)


def test_a_kind_that_a_shape_rules_out_is_refused() -> None:
    with pytest.raises(
        SelectionError, match=r"fc.bias: a 1-D tensor; that cannot be the weight of an embedding layer\. Narrow"
    ):
        find(info("fc.weight", 64, 64), info("fc.bias", 64), kinds={"fc*": "embedding"})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (info("l.bias_ih_l0", 256), r"l.bias_ih_l0: a 1-D tensor; that cannot be the weight of a lstm layer"),
        (info("l.weight_ih_l1", 30, 64), r"l.weight_ih_l1: shape \(30, 64\), whose rows are not those of 4 gates;"),
        (info("l.weight", 64, 64), r"l.weight: a name without weight_ih, weight_hh or weight_hr;"),
    ],
)
def test_why_a_tensor_is_no_lstm_weight_is_said(extra: TensorInfo, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        find(info("l.weight_hh_l0", 256, 64), extra, kinds={"l.*": "lstm"})


def test_a_projection_may_have_any_number_of_rows() -> None:
    module = infos_of(nn.LSTM(64, 64, proj_size=30))
    weights = [tensor_info for tensor_info in module if tensor_info.name.startswith("weight")]
    discovery = find(*weights, kinds={"weight_*": "lstm"}, min_side=8)

    assert forms(discovery) == {
        ":weight_ih_l0": [["weight_joint_l0", "weight_hr_l0"], ["weight_ih_l0", "weight_hh_l0", "weight_hr_l0"]]
    }


@pytest.mark.parametrize("lstm", ["auto", "joint"])
def test_weights_of_different_heights_are_never_joined(lstm: str) -> None:
    pair = (info("l.weight_ih_l0", 256, 64), info("l.weight_hh_l0", 128, 64))

    assert forms(find(*pair, kinds={"l.*": "lstm"}, lstm=lstm)) == {
        "l:l.weight_ih_l0": [["l.weight_ih_l0", "l.weight_hh_l0"]]
    }


@pytest.mark.parametrize("shape", [(), (64,), (64, 64, 1)])
def test_a_projection_that_is_no_matrix_keeps_its_lstm_dense(shape: tuple[int, ...]) -> None:
    discovery = find(info("l.weight_ih_l0", 256, 64), info("l.weight_hh_l0", 256, 64), info("l.weight_hr_l0", *shape))

    assert discovery.layers == ()
    assert reasons(discovery)["l.weight_ih_l0"] == f"its weight_hr of shape {shape} does not fit an LSTM"


class Counted(Mapping[str, TensorInfo]):
    """A mapping that counts how often it is gone through from end to end."""

    def __init__(self, *infos: TensorInfo) -> None:
        self.infos = {tensor_info.name: tensor_info for tensor_info in infos}
        self.walks = 0

    def __getitem__(self, name: str) -> TensorInfo:
        return self.infos[name]

    def __len__(self) -> int:
        return len(self.infos)

    def __iter__(self) -> Iterator[str]:
        self.walks += 1
        return iter(self.infos)


def test_the_work_grows_with_the_number_of_tensors_and_no_faster() -> None:
    """Ten thousand layers must not be compared with one another."""
    tensors = Counted(*(info(f"{number}.weight", 64, 64) for number in range(100)))

    assert len(layers_of(tensors).layers) == 100
    assert tensors.walks < 10
