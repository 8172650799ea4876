from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpocompress.checkpoint.reader import open_checkpoint
from mpocompress.checkpoint.writing.writer import write_checkpoint
from mpocompress.errors import CheckpointError, OutputError
from tests.checkpoint.files import assert_same, contents, state_dict


def _saved(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "model.pt"
    torch.save(value, path)
    return path


def _adam() -> dict[str, Any]:
    weight = torch.nn.Parameter(torch.ones(50, 10))
    optimizer = torch.optim.Adam([weight])
    weight.grad = torch.ones(50, 10)
    optimizer.step()
    return optimizer.state_dict()


NESTED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "plain": (lambda sd: sd, ""),
    "ordered": (OrderedDict, ""),
    "lightning": (lambda sd: {"state_dict": sd, "epoch": 3}, "state_dict"),
    "training": (lambda sd: {"step": 1, "model_state_dict": sd, "loss": 0.5}, "model_state_dict"),
    "deeper": (lambda sd: {"checkpoint": {"model": sd, "iteration": 2}}, "checkpoint.model"),
    "dot in a key": (lambda sd: {"weights.v1": sd}, "weights.v1"),
    "one of an unusual name": (lambda sd: {"generator": sd}, "generator"),
    "shallow before deep": (lambda sd: {"model": sd, "extra": {"state_dict": {"q": torch.ones(9, 9)}}}, "model"),
    "by preference": (lambda sd: {"weights": {"w": torch.ones(9, 9)}, "state_dict": sd}, "state_dict"),
    "a stray tensor above": (lambda sd: {"state_dict": sd, "example": torch.ones(2, 2)}, "state_dict"),
    "usual before unusual": (lambda sd: {"critic": {"w": torch.ones(9, 9)}, "net": sd}, "net"),
    "averaged, equal": (lambda sd: {"model": sd, "ema": sd}, "model"),
    "averaged, deeper": (lambda sd: {"ema_model": {"m": {"state_dict": sd}}, "net": sd}, "net"),
    "averaged, first": (lambda sd: {"params_ema": dict(sd), "params": sd}, "params"),
    "averaged, unusual": (lambda sd: {"weights_swa": dict(sd), "actor": sd}, "actor"),
}


@pytest.mark.parametrize("nesting", NESTED)
def test_the_state_dict_is_found_where_it_is(nesting: str, tmp_path: Path) -> None:
    nest, key = NESTED[nesting]
    expected = {f"module.{name}": tensor for name, tensor in state_dict().items()}
    with open_checkpoint(_saved(tmp_path, nest(expected))) as checkpoint:
        assert checkpoint.key == key
        assert list(checkpoint.tensors) == list(expected)
        assert_same(contents(checkpoint), expected)


def test_a_key_chooses_what_would_not_be_chosen(tmp_path: Path) -> None:
    averaged = {name: tensor * 2 for name, tensor in state_dict().items()}
    path = _saved(tmp_path, {"model": state_dict(), "ema": {"module": averaged}})
    with open_checkpoint(path, key="ema.module") as checkpoint:
        assert checkpoint.key == "ema.module"
        assert_same(contents(checkpoint), averaged)
        assert checkpoint.notes == ("model: another copy of the weights (128 bytes) is not carried over",)


@pytest.mark.parametrize(
    ("value", "key", "message"),
    [
        (
            {"ema": state_dict()},
            None,
            r"only averaged weights: 'ema'; averages over training are not chosen automatically",
        ),
        ({"G": state_dict(), "D": state_dict()}, None, r"several state dicts: 'G', 'D'; .* Choose one by its key"),
        (
            {"G": {"net": state_dict()}, "D": {"net": state_dict()}},
            None,
            r"several state dicts: 'G\.net', 'D\.net'",
        ),
        ({"model": state_dict()}, "modle", r"no dict of tensors at key 'modle'; .* Choose one of: 'model'"),
        ({"model": state_dict(), "epoch": 3}, "epoch", r"no dict of tensors at key 'epoch'"),
        ({"model": state_dict()}, "model.fc.weight.x", r"no dict of tensors at key 'model\.fc\.weight\.x'"),
        ({"a": torch.ones(3), "i": torch.ones(3, 3, dtype=torch.int64)}, None, r"no state dict \(names -> tensors"),
        ({}, "x", r"Give a file that holds a state dict"),
        (torch.ones(3, 3), None, r"a Tensor instead of a dict of tensors"),
        ([3, "a"], None, r"no state dict \(names -> tensors"),
    ],
)
def test_what_is_unclear_is_refused_with_the_choices(
    value: object, key: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(_saved(tmp_path, value), key=key)


def test_training_state_is_dropped_with_a_note_and_the_rest_kept(tmp_path: Path) -> None:
    scheduler = {"last_epoch": 3, "_last_lr": [0.1], "base_lrs": [0.1]}
    value = {
        "epoch": 3,
        "optimizer": {"name": "adam", "lr": 0.1},  # a setting, not a state
        "optimizer_states": [_adam()],
        "lr_schedulers": [scheduler],
        "amp": {"scale": 1.0, "growth_factor": 2.0},
        "my_optim": {"momentum": torch.ones(3, 3)},
        "ema": {"shadow_params": [torch.ones(6, 4)]},
        "optimal_head": {"w": torch.ones(2, 2)},
        "avg_pool": {"w": torch.ones(2, 2)},
        "average_loss": torch.tensor(0.5),
        "state_dict": state_dict(),
    }
    with open_checkpoint(_saved(tmp_path, value)) as checkpoint:
        assert checkpoint.notes == (
            "the state dict at state_dict was chosen; there are others at: optimal_head",
            "optimizer_states: optimizer state (4.0 kB) is not carried over",
            "lr_schedulers: scheduler state is not carried over",
            "amp: gradient scaler state is not carried over",
            "my_optim: optimizer state (36 bytes) is not carried over",
            "ema: an averaged copy of the weights (96 bytes) is not carried over",
            "optimal_head: 16 bytes of tensors are carried over unchanged",
            "avg_pool: 16 bytes of tensors are carried over unchanged",
            "average_loss: 4 bytes of tensors are carried over unchanged",
        )
        extras = checkpoint.extras
        assert isinstance(extras, dict)
        assert torch.equal(extras.pop("optimal_head")["w"], torch.ones(2, 2))
        assert torch.equal(extras.pop("avg_pool")["w"], torch.ones(2, 2))
        assert extras == {
            "epoch": 3,
            "optimizer": {"name": "adam", "lr": 0.1},
            "average_loss": torch.tensor(0.5),
            "state_dict": {},
        }


def _write(path: Path, source: Path, key: str | None = None) -> dict[str, Any]:
    with open_checkpoint(source, key=key) as checkpoint:
        write_checkpoint(
            path,
            tensors={name: checkpoint.tensor(name) for name in checkpoint.tensors},
            aliases={},
            container="torch-zip",
            key=checkpoint.key,
            extras=checkpoint.extras,
            metadata=checkpoint.metadata,
            document=None,
            overwrite=False,
            inputs=[source],
        )
    value: dict[str, Any] = torch.load(path, weights_only=True)
    return value


def test_a_dense_file_has_the_nesting_the_original_had(tmp_path: Path) -> None:
    value = {"epoch": 3, "run.1": {"net": state_dict(), "names": ["a", ("b", None)]}, "best": 0.5}
    back = _write(tmp_path / "back.pt", _saved(tmp_path, value))
    assert list(back) == list(value)
    assert_same(back["run.1"].pop("net"), value["run.1"]["net"])  # type: ignore[index]
    assert back == {"epoch": 3, "run.1": {"names": ["a", ("b", None)]}, "best": 0.5}


def test_entries_of_a_state_dict_that_are_no_tensors_come_back(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    state: Any = module.state_dict()
    metadata = state._metadata
    state["1._extra_state"] = {"scale": 2.0}
    state["0.nothing"] = None
    state["sparse"] = torch.eye(3).to_sparse()
    with open_checkpoint(_saved(tmp_path, state)) as checkpoint:
        assert "sparse" not in checkpoint.tensors
        assert checkpoint.notes == ("sparse: 60 bytes of tensors are carried over unchanged",)
    back: Any = _write(tmp_path / "back.pt", tmp_path / "model.pt")
    assert back._metadata == metadata
    assert back["1._extra_state"] == {"scale": 2.0}
    assert back["0.nothing"] is None
    assert torch.equal(back["sparse"].to_dense(), torch.eye(3))
    assert set(back) == set(state)


def test_a_state_dict_cannot_be_put_where_something_else_is(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="'epoch' in 'epoch' is a int; the state dict cannot be stored there"):
        write_checkpoint(
            tmp_path / "out.pt",
            tensors=state_dict(),
            aliases={},
            container="torch-zip",
            key="epoch",
            extras={"epoch": 3},
            metadata={},
            document=None,
            overwrite=False,
            inputs=[],
        )
    assert list(tmp_path.iterdir()) == []
