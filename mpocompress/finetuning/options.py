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
        help="Function that takes the model and returns its score, higher is better; the best model is kept.",
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
        None, metavar="N", minimum=1, help="Steps at most.", default_text="1000 if no minutes are given"
    )
    minutes: float | None = option(None, metavar="M", above=0, help="Minutes at most.")
    lr: float | None = option(
        None,
        metavar="LR",
        above=0,
        help="Largest learning rate of AdamW.",
        default_text="each tensor has its own",
        details="By default the learning rate of a tensor is a share of the root mean square of its entries at the "
        "start, or of 0.01 where they are smaller; it grows with the distance of the outputs from the teacher's.",
    )
    train: Trained = option(
        "all", choices=get_args(Trained), help="Which parameters are trained: all, or the cores alone."
    )
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
        details="An iterable, or `file.py:name` or `package.module:name` of one. The default ones are not trained on.",
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
        help="Batches of every step, over all processes.",
        default_text="1 for every process",
    )
    precision: Precision = option(
        "auto",
        choices=get_args(Precision),
        help="Precision of the matrix products; auto is bfloat16 where a step is clearly faster with it.",
    )
    seed: int = option(
        0,
        metavar="N",
        minimum=0,
        help="Seed of the random numbers.",
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
        help="Continue the run that was stopped.",
        details="The result is that of a run without a stop. Without it, a stopped run is restarted only with "
        "`overwrite`.",
    )
    progress: Callable[[FinetuneProgress], None] | None = option(
        None, flag=None, help="Called with the progress of the run."
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
        details="None trains on targets alone.",
    )
    snapshot: str | PathLike[str] | None = option(
        None,
        flag=None,
        help="File that stores the run while it lasts, for `resume`; it is removed at the end.",
        default_text="no file",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class DataOptions:
    """The model that is trained, and what it learns from."""

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
                "what the model is called with: a tensor, a mapping of named arguments, or a tuple of other than two.",
            )
        )
    )
    teacher: StrPath | bool = option(
        True,
        metavar="FILE",
        help="The original checkpoint, whose outputs are the target.",
        details="True looks for it in the folder of the source, False trains on targets alone.",
        default_text="looked for in the folder of the compressed file",
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
        help="Where to train, such as cpu or cuda:1.",
        default_text="a GPU if there is one; under torchrun one for every process",
    )

    def __post_init__(self) -> None:
        """Check the values; the device becomes its name."""
        if self.device is not None:
            object.__setattr__(self, "device", str(self.device))
        TrainingOptions.__post_init__(self)
