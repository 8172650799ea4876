"""Options of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

from mpocompress.calibration.options import LossFunction, OutputOptions
from mpocompress.errors import FinetuneError
from mpocompress.finetuning.progress import FinetuneProgress
from mpocompress.text import StrPath
from mpocompress.user.common_options import OverwriteOptions, PickleOptions
from mpocompress.user.options import Option, check_options, option, option_class, required

if TYPE_CHECKING:
    import torch
    from torch import nn

Score = Callable[[Any], object]
"""Takes the model, returns a number; higher is better."""

Trained = Literal["all", "cores"]
"""Which parameters are trained."""

Precision = Literal["auto", "float32", "bfloat16"]
"""Precision of the matrix products during training."""

PLACE = "PLACE:NAME"


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingOptions(OutputOptions):
    """How a model is trained.

    Args:
        options: the fields.

    Raises:
        FinetuneError: a value out of range.

    Example:
        >>> TrainingOptions(steps=100).train
        'all'
    """

    evaluate: Score | str | None = option(
        None,
        flag="--eval",
        metavar=PLACE,
        help="Function that returns the score of the model, higher is better; the best weights are kept.",
        details="A callable, or `file.py:name` or `package.module:name` of one.",
        default_text="the loss on held-out batches",
    )
    loss: LossFunction | str | None = option(
        None,
        metavar=PLACE,
        help="Loss function of output and target.",
        details="A callable that returns a scalar, or `file.py:name` or `package.module:name` of one.",
        default_text="the loss that the model computes itself, or one that suits the outputs",
    )
    steps: int | None = option(
        None, metavar="N", minimum=1, help="Maximum number of steps.", default_text="1000 if no minutes are given"
    )
    minutes: float | None = option(None, metavar="M", above=0, help="Maximum duration in minutes.")
    lr: float | None = option(
        None,
        metavar="LR",
        above=0,
        help="Largest learning rate of AdamW.",
        default_text="each tensor has its own",
        details="By default the learning rate of a tensor is a share of the root mean square of its entries at the "
        "start, at least of 0.01; it grows with the distance of the outputs from the teacher's.",
    )
    train: Trained = option("all", choices=get_args(Trained), help="Parameters to train: all, or only the cores.")
    teacher_share: float | None = option(
        None,
        metavar="F",
        minimum=0,
        maximum=1,
        help="Share of the distance to the teacher in the loss; the rest is the loss on targets.",
        default_text="1, or 0.5 with targets",
    )
    held_out: object | None = option(
        None,
        metavar=PLACE,
        help="Batches to evaluate on.",
        details="An iterable, or `file.py:name` or `package.module:name` of one. Default batches are not trained on.",
        default_text="one in eight of the first batches",
    )
    carry_state: bool = option(
        False,
        help="Recurrent layers continue from the state of the previous batch.",
        details="For batches that are consecutive pieces of the same texts.",
    )
    batches_per_step: int | None = option(
        None,
        metavar="N",
        minimum=1,
        help="Batches per step, over all processes.",
        default_text="1 per process",
    )
    precision: Precision = option(
        "auto",
        choices=get_args(Precision),
        help="Precision of the matrix products; auto is bfloat16 if it makes a step clearly faster.",
    )
    seed: int = option(
        0,
        metavar="N",
        minimum=0,
        help="Seed of the random number generators.",
        details="The same seed, data and precision give the same result if `steps` is given.",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, FinetuneError)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunOptions(TrainingOptions):
    """Options of a run that can be resumed and that reports its progress."""

    resume: bool = option(
        False,
        help="Continue a stopped run.",
        details="The result is that of an uninterrupted run. Without this option, a stopped run is restarted only "
        "with `overwrite`.",
    )
    progress: Callable[[FinetuneProgress], None] | None = option(
        None, flag=None, help="Function that is called with the progress of the run."
    )


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class FinetuneModuleOptions(RunOptions):
    """Options of `finetune_module`.

    Args:
        options: the fields.

    Raises:
        FinetuneError: a value out of range.
    """

    teacher: nn.Module | None = option(
        None,
        flag=None,
        help="The original model, whose outputs are the target; it is not changed.",
        details="None trains only on targets.",
    )
    snapshot: str | PathLike[str] | None = option(
        None,
        flag=None,
        help="File for the state of the run, for `resume`; it is removed at the end.",
        default_text="no file",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class DataOptions:
    """The model, the training data and the teacher."""

    model: str | nn.Module | Callable[[], nn.Module] = field(
        metadata=required(
            Option(
                metavar=PLACE,
                help="Your model; `file.py:name` or `package.module:name` is imported and run.",
                details="Or a module, or a function that builds it. With a teacher it is built twice.",
            )
        )
    )
    data: object = field(
        metadata=required(
            Option(
                metavar=PLACE,
                help="Batches to train on: inputs, or pairs of inputs and a target.",
                details="An iterable that can be passed over several times, a function that returns one and is called "
                "for every pass, `file.py:name` or `package.module:name` of either, or `SelfGenerated`. An input is "
                "a tensor, a mapping of named arguments, or a tuple whose length is not two.",
            )
        )
    )
    teacher: StrPath | bool = option(
        True,
        metavar="FILE",
        help="The original checkpoint, whose outputs are the target.",
        details="True looks for it in the folder of the source, False trains only on targets.",
        default_text="read from the folder of the compressed file",
    )


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class FinetuneOptions(OverwriteOptions, PickleOptions, RunOptions, DataOptions):
    """Options of `finetune` and of the command of that name.

    Args:
        options: the fields.

    Raises:
        FinetuneError: a value out of range.
    """

    device: str | torch.device | None = option(
        None,
        metavar="DEVICE",
        help="Device to train on, such as cpu or cuda:1.",
        default_text="a GPU if available; under torchrun, one per process",
    )

    def __post_init__(self) -> None:
        """Check the values; the device becomes its name."""
        if self.device is not None:
            object.__setattr__(self, "device", str(self.device))
        TrainingOptions.__post_init__(self)
