"""Training checkpoints: the state dict somewhere inside, with all that a training loop keeps beside it."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import enum
import pickle
import random
import re
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.forms.model import gone_afterwards, model, put, state
from tests.forms.registry import Group
from tests.forms.state_dicts import saved

group = Group("Training checkpoints")


class Mode(enum.Enum):
    """An enum of the user's."""

    FAST = 1


@dataclasses.dataclass
class Config:
    """A dataclass of the user's."""

    hidden: int = 64


def run(network: nn.Module | None = None) -> dict[str, Any]:
    """What a training loop saves beside the weights: all state that goes on where it stopped."""
    network = network or model()
    optimizer = torch.optim.Adam(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copy.deepcopy(network.state_dict())
    optimizer.step()
    network.load_state_dict(before)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": {
            "scale": 2.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 9,
            "_growth_tracker": 0,
        },
        "best": 0.5,
    }


for name in ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "generator"):

    @group.read(
        f"a training dict, the weights under `{name}`",
        "torch-zip",
        says=[r"optimizer: optimizer state \(.*\) is not carried over", "scheduler: scheduler state", "scaler: grad"],
        note="optimizer, scheduler and scaler state is not carried over",
    )
    def training(folder: Path, name: str = name) -> Path:
        return saved({**run(), name: state()}, folder / "model.pt")


@group.read("a training dict in the form of torch before 1.6", "torch-legacy", says=["optimizer: optimizer state"])
def legacy_training(folder: Path) -> Path:
    torch.save({**run(), "model": state()}, folder / "model.pt", _use_new_zipfile_serialization=False)
    return folder / "model.pt"


@group.read("a training dict in a bare pickle of protocol 4", "pickle", says=["optimizer: optimizer state"])
def pickled_training(folder: Path) -> Path:
    (folder / "model.pkl").write_bytes(pickle.dumps({**run(), "model": state()}, protocol=4))
    return folder / "model.pkl"


FOREIGN: dict[str, tuple[object, str]] = {
    "an `argparse.Namespace`": (argparse.Namespace(lr=1e-3, layers=[64, 64]), "argparse.Namespace"),
    "a `pathlib` path": (PurePosixPath("runs/7"), f"{PurePosixPath.__module__}.PurePosixPath"),
    "an enum": (Mode.FAST, f"{Mode.__module__}.Mode"),
    "a `datetime`": (datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), "datetime.datetime"),
    "a dataclass": (Config(), f"{Config.__module__}.Config"),
    "a function": (model, f"{model.__module__}.model"),
    "a NumPy array": (np.arange(3.0), "numpy"),
    "a random state of Python": (random.Random(0), "random.Random"),
}

for title, (value, name) in FOREIGN.items():

    @group.read(f"{title} beside the weights", "torch-zip", says=[rf"extra: a value of type .*{re.escape(name)}"])
    def foreign(folder: Path, value: object = value) -> Path:
        return saved({"model": state(), "extra": value, "epoch": 3}, folder / "model.pt")


PLAIN: dict[str, object] = {
    "NumPy scalars": {"loss": np.float64(0.5), "step": np.int64(7)},
    "a `Counter`, an `OrderedDict` and a `defaultdict`": [Counter("aab"), OrderedDict(a=1), defaultdict(list, a=[1])],
    "sets and tuples of plain values": {"seen": {1, 2}, "shape": (3, 4)},
}

for title, value in PLAIN.items():

    @group.read(f"{title} beside the weights", "torch-zip")
    def plain(folder: Path, value: object = value) -> Path:
        return saved({"model": state(), "extra": value, "epoch": 3}, folder / "model.pt")


@group.read(
    "a value whose class cannot be imported",
    "torch-zip",
    says=[r"extra: a value of type .*train_script\.Settings .*is not carried over"],
    note="nothing is ever imported",
)
def unimportable(folder: Path) -> Path:
    with gone_afterwards("train_script") as script:
        settings = put(script, dataclasses.make_dataclass("Settings", ["lr"]))
        return saved({"model": state(), "extra": settings(lr=1)}, folder / "model.pt")


@group.read("an averaged copy of the weights beside them", "torch-zip", says=["ema: an averaged copy of the weights"])
def with_average(folder: Path) -> Path:
    return saved({"ema": {name: 2 * one for name, one in state().items()}, "model": state()}, folder / "model.pt")


@group.read("the averaged copy itself", "torch-zip", key="ema", note="an average is used only if its key is given")
def the_average(folder: Path) -> Path:
    return saved({"model": {name: 2 * one for name, one in state().items()}, "ema": state()}, folder / "model.pt")


@group.refused("only averaged copies, no key given", "only averaged weights: 'ema'", "To use them, give their key")
def only_averages(folder: Path) -> Path:
    return saved({"ema": state(), "epoch": 3}, folder / "model.pt")


@group.refused("two models, no key given", "several state dicts: 'actor', 'critic'", "Choose one by its key")
def two_models(folder: Path) -> Path:
    return saved({"actor": state(), "critic": {name: 2 * one for name, one in state().items()}}, folder / "model.pt")


@group.read("one of two models", "torch-zip", key="critic")
def one_of_two(folder: Path) -> Path:
    return saved({"actor": {name: 2 * one for name, one in state().items()}, "critic": state()}, folder / "model.pt")


def lightning(**hyper_parameters: object) -> dict[str, Any]:
    """The layout of a Lightning checkpoint (2.6), callbacks and loops with it."""
    training_run = run()
    return {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict((f"model.{name}", tensor) for name, tensor in state().items()),
        "loops": {
            "fit_loop": {
                "state_dict": {},
                "epoch_loop.state_dict": {"_batches_that_stepped": 20},
                "epoch_progress": {"total": {"ready": 1, "completed": 1}, "current": {"ready": 1, "completed": 1}},
            },
            "validate_loop": {"state_dict": {}},
        },
        "callbacks": {
            "ModelCheckpoint{'monitor': None, 'mode': 'min'}": {
                "best_model_score": torch.tensor(0.5),
                "best_model_path": "epoch=1.ckpt",
                "best_k_models": {},
            }
        },
        "optimizer_states": [training_run["optimizer"]],
        "lr_schedulers": [training_run["scheduler"]],
        "MixedPrecision": training_run["scaler"],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }


@group.read(
    "a Lightning checkpoint",
    "torch-zip",
    prefix="model.",
    says=["optimizer_states: optimizer state", "lr_schedulers: scheduler state"],
)
def lightning_plain(folder: Path) -> Path:
    return saved(lightning(lr=1e-3, layers=[64, 64]), folder / "last.ckpt")


@group.read(
    "a Lightning checkpoint with objects among its hyper-parameters",
    "torch-zip",
    prefix="model.",
    says=[r"hyper_parameters\S*: a value of type .*Namespace"],
)
def lightning_with_objects(folder: Path) -> Path:
    return saved(lightning(args=argparse.Namespace(lr=1), loss=nn.MSELoss()), folder / "last.ckpt")
