"""State dicts, copies, pickles and threads: what a layer has prepared stays out of the first three and in order."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mpocompress.nn import MPOLSTM, Execution
from tests.nn.builders import FIXED, LSTMPlan, assert_close, exactly, tensors
from tests.nn.test_freshness import KINDS, in_place, inputs, make
from tests.nn.test_lstm import MIXTURES
from tests.programs import LIMIT_S, run_threads

NAMES = {
    "lstm, joint": [
        "weight_joint_l0.core.0", "weight_joint_l0.core.1", "bias_ih_l0", "bias_hh_l0",
        "weight_ih_l1.core.0", "weight_ih_l1.core.1", "weight_hh_l1.core.0", "weight_hh_l1.core.1",
        "bias_ih_l1", "bias_hh_l1",
    ],
    "lstm, half dense": [
        "weight_ih_l0", "weight_hh_l0.core.0", "weight_hh_l0.core.1", "weight_hh_l0.core.2", "bias_ih_l0", "bias_hh_l0",
        "weight_ih_l1", "weight_hh_l1.core.0", "weight_hh_l1.core.1", "bias_ih_l1", "bias_hh_l1",
    ],
    "both ways": [
        "weight_ih_l0.core.0", "weight_ih_l0.core.1", "weight_hh_l0.core.0", "weight_hh_l0.core.1",
        "weight_hr_l0.core.0", "weight_hr_l0.core.1", "bias_ih_l0", "bias_hh_l0",
        "weight_joint_l0_reverse.core.0", "weight_joint_l0_reverse.core.1",
        "weight_hr_l0_reverse.core.0", "weight_hr_l0_reverse.core.1", "bias_ih_l0_reverse", "bias_hh_l0_reverse",
    ],
    "cell": ["weight_joint.core.0", "weight_joint.core.1", "bias_ih", "bias_hh"],
    "linear": ["weight.core.0", "weight.core.1", "weight.core.2", "bias"],
}  # fmt: skip


def run(layer: nn.Module, seed: int = 0) -> list[Tensor]:
    with torch.inference_mode():
        return list(tensors(layer(inputs(layer, seed))))


def pickled(layer: nn.Module) -> bytes:
    return pickle.dumps(layer)


def saved(layer: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    return buffer.getvalue()


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickled(layer)),
    "torch.save": lambda layer: torch.load(io.BytesIO(saved(layer)), weights_only=False),
}


@pytest.mark.parametrize("kind", NAMES)
def test_the_state_dict_has_the_names_of_the_file(kind: str) -> None:
    layer = make(kind)
    assert sorted(layer.state_dict()) == sorted(NAMES[kind])
    run(layer)
    in_graph = layer(inputs(layer))
    del in_graph
    assert sorted(layer.state_dict()) == sorted(NAMES[kind])
    assert not list(layer.buffers())
    assert sorted(name for name, _ in layer.named_parameters()) == sorted(NAMES[kind])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("assign", [True, False])
def test_loading_is_strict(assign: bool, kind: str) -> None:
    layer, other = make(kind), make(kind)
    in_place(other)
    state = other.state_dict()

    layer.load_state_dict(state, assign=assign)
    assert all(map(torch.equal, run(layer), run(other)))

    core = next(name for name in state if name.endswith("core.0"))
    with pytest.raises(RuntimeError, match=rf"Missing key.*{core}"):
        layer.load_state_dict({name: value for name, value in state.items() if name != core}, assign=assign)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*core\.9"):
        layer.load_state_dict({**state, core.replace("core.0", "core.9"): state[core]}, assign=assign)
    with pytest.raises(RuntimeError, match=rf"size mismatch for {core}"):
        layer.load_state_dict({**state, core: state[core][..., :-1]}, assign=assign)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_gives_the_same_and_goes_its_own_way(way: str, kind: str, execution: Execution) -> None:
    layer = make(kind, execution).eval()
    before = run(layer)

    twin = COPIES[way](layer)

    assert type(twin) is type(layer)
    assert str(twin) == str(layer)
    assert not twin.training
    assert all(map(torch.equal, run(twin), before))
    in_place(twin)
    assert_close(run(twin), exactly(twin, inputs(twin)), torch.float64, roundings=10)
    assert all(map(torch.equal, run(layer), before))
    twin.train()(inputs(twin))


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_shallow_copy_shares_parameters_and_follows_them(kind: str, execution: Execution) -> None:
    layer = make(kind, execution).eval()
    run(layer)

    twin = copy.copy(layer)

    assert all(map(torch.equal, run(twin), run(layer)))
    in_place(layer)
    for module in (twin, layer):
        assert_close(run(module), exactly(layer, inputs(layer)), torch.float64, roundings=10)


@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pack", [pickled, saved])
def test_nothing_prepared_is_packed(pack: Callable[[nn.Module], bytes], kind: str, execution: Execution) -> None:
    layer = make(kind, execution).eval()
    fresh = len(pack(layer))

    run(layer)
    layer(inputs(layer))

    assert abs(len(pack(layer)) - fresh) < 64  # names of storages are numbers, whose length may change


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_shared_with_nothing_that_is_prepared(kind: str) -> None:
    layer = make(kind, "factorised")
    run(layer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    run(layer, seed=1)

    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert all(parameter.grad is None for parameter in layer.parameters())


@pytest.fixture
def _switching_threads_often() -> Iterator[None]:
    """Threads give way after so few steps that what is not safe from each other meets."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switching_threads_often")
@pytest.mark.parametrize("execution", FIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_a_layer(kind: str, execution: Execution) -> None:
    expected = {seed: run(make(kind, execution), seed) for seed in range(4)}

    def work(layer: nn.Module, seed: int, start: threading.Barrier) -> None:
        start.wait(timeout=LIMIT_S)
        for _ in range(3):
            assert_close(run(layer, seed), expected[seed], torch.float64)

    for _ in range(4):  # each with nothing prepared
        layer, start = make(kind, execution), threading.Barrier(len(expected))
        run_threads(partial(work, layer, seed, start) for seed in expected)


@pytest.mark.usefixtures("_switching_threads_often")
@pytest.mark.parametrize("execution", FIXED)
def test_threads_with_batches_of_many_sizes(execution: Execution) -> None:
    plan = LSTMPlan(input_size=7, hidden_size=6, num_layers=2, chains=MIXTURES["joint below, apart above"])
    batches = {batch: plan.arguments(batch=batch) for batch in (1, 2, 4, 8)}
    expected = {batch: exactly(plan.make(), *arguments) for batch, arguments in batches.items()}

    def work(layer: MPOLSTM, batch: int) -> None:
        for _ in range(3):
            with torch.no_grad():
                assert_close(layer(*batches[batch]), expected[batch], torch.float64)

    for _ in range(4):
        layer = plan.make(execution=execution)
        run_threads(partial(work, layer, batch) for batch in batches)
