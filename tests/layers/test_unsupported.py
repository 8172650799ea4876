"""Weights in pieces or in another number format: told by what is really written, and left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from mpocompress.checkpoint.checkpoint import TensorInfo
from mpocompress.checkpoint.torch_dtypes import dtype_of
from mpocompress.layers.discovery import Discovery, layers_of
from mpocompress.layers.selection import Selection
from mpocompress.layers.unsupported import (
    BITSANDBYTES,
    FLOAT8,
    GPTQ,
    LORA,
    PACKED,
    PARAMETRIZED,
    PRUNED,
    SPECTRAL_NORM,
    WEIGHT_NORM,
)

SIDE = 64


def find(state: Mapping[str, Tensor], selection: Selection = Selection()) -> Discovery:  # noqa: B008 (frozen)
    return layers_of(
        {
            name: TensorInfo(
                name=name,
                shape=tuple(tensor.shape),
                dtype=dtype_of(tensor.dtype),
            )
            for name, tensor in state.items()
        },
        selection,
    )


def reasons(discovery: Discovery) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in discovery.skipped}


def pruned(module: nn.Module) -> nn.Module:
    prune.l1_unstructured(module, "weight", 0.5)  # type: ignore[no-untyped-call]
    return module


def old_weight_norm(module: nn.Module, name: str = "weight") -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(module, name)


def old_spectral_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return spectral_norm(module)


LINEAR: Callable[[], nn.Module] = lambda: nn.Linear(SIDE, SIDE)  # noqa: E731


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (old_weight_norm(LINEAR()), WEIGHT_NORM),
        (parametrizations.weight_norm(LINEAR()), PARAMETRIZED),
        (parametrizations.spectral_norm(LINEAR()), PARAMETRIZED),
        (parametrizations.orthogonal(LINEAR()), PARAMETRIZED),
        (old_spectral_norm(LINEAR()), SPECTRAL_NORM),
        (pruned(LINEAR()), PRUNED),
    ],
    ids=["weight_norm", "parametrized weight_norm", "spectral_norm", "orthogonal", "old spectral_norm", "pruned"],
)
@pytest.mark.parametrize("prefix", ["", "net.fc."])
def test_what_torch_makes_of_a_weight_is_told_and_left(module: nn.Module, reason: str, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    discovery = find(state)

    assert discovery.layers == ()
    assert {text for name, text in reasons(discovery).items() if not name.endswith("bias")} == {reason}
    assert discovery.unsupported == (reason,)
    assert "then save it again" in reason


@pytest.mark.parametrize("normed", [old_weight_norm, parametrizations.weight_norm])
def test_a_normed_recurrent_weight_keeps_its_layer_dense(normed: Callable[[nn.Module, str], nn.Module]) -> None:
    module = normed(nn.LSTM(SIDE, SIDE, bias=False), "weight_hh_l0")
    discovery = find(module.state_dict())

    assert discovery.layers == ()
    expected = WEIGHT_NORM if normed is old_weight_norm else PARAMETRIZED
    assert reasons(discovery)["weight_ih_l0"] == f"its weight_hh is {expected}"


def test_an_adapter_and_the_weight_under_it_are_left() -> None:
    peft = {
        "base_model.model.q.base_layer.weight": torch.zeros(SIDE, SIDE),
        "base_model.model.q.lora_A.default.weight": torch.zeros(SIDE, SIDE),
        "base_model.model.q.lora_B.default.weight": torch.zeros(SIDE, SIDE),
        "base_model.model.k.weight": torch.zeros(SIDE, SIDE),
    }
    lora = {"q.weight": torch.zeros(SIDE, SIDE), "q.lora_A": torch.zeros(SIDE, SIDE), "lora_B": torch.zeros(9, 9)}

    assert [layer.name for layer in find(peft).layers] == ["base_model.model.k"]
    assert set(reasons(find(peft)).values()) == set(reasons(find(lora)).values()) == {LORA}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"fc.weight": torch.zeros(SIDE, SIDE, dtype=torch.int8), "fc.SCB": torch.zeros(SIDE)}, BITSANDBYTES),
        (
            {
                "fc.weight": torch.zeros(2048, 1, dtype=torch.uint8),
                "fc.weight.absmax": torch.zeros(64),
                "fc.weight.quant_map": torch.zeros(16),
                "fc.weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8),
            },
            BITSANDBYTES,
        ),
        (
            {
                "fc.qweight": torch.zeros(SIDE, SIDE, dtype=torch.int32),
                "fc.qzeros": torch.zeros(SIDE, SIDE, dtype=torch.int32),
                "fc.scales": torch.zeros(SIDE, SIDE, dtype=torch.float16),
                "fc.g_idx": torch.zeros(SIDE, dtype=torch.int32),
            },
            GPTQ,
        ),
        (
            {
                "fc.weight": torch.zeros(SIDE, SIDE).to(torch.float8_e4m3fn),
                "fc.weight_scale_inv": torch.zeros(SIDE, SIDE),
            },
            FLOAT8,
        ),
        (
            {
                "fc.weight_packed": torch.zeros(SIDE, SIDE, dtype=torch.int32),
                "fc.weight_scale": torch.zeros(SIDE, SIDE),
                "fc.weight_shape": torch.zeros(2, dtype=torch.int64),
            },
            PACKED,
        ),
    ],
    ids=["bitsandbytes 8", "bitsandbytes 4", "GPTQ", "float8", "compressed-tensors"],
)
def test_a_quantized_weight_is_told_and_left(state: dict[str, Tensor], reason: str) -> None:
    discovery = find(state)

    assert discovery.layers == ()
    assert set(reasons(discovery).values()) == {reason}


def test_a_file_may_hold_both() -> None:
    discovery = find({**old_weight_norm(LINEAR()).state_dict(), "plain.weight": torch.zeros(SIDE, SIDE)})

    assert [layer.name for layer in discovery.layers] == ["plain"]


def test_a_forced_kind_goes_before() -> None:
    state = old_weight_norm(LINEAR()).state_dict()

    assert find(state, Selection(kinds={"weight_v": "linear"})).layers[0].forms[0][0].name == "weight_v"
    with_scale = {"fc.weight_scale": torch.zeros(3), "fc.weight": torch.zeros(SIDE, SIDE)}
    assert [layer.name for layer in find(with_scale).layers] == ["fc"], "a scale beside a plain weight blocks nothing"
