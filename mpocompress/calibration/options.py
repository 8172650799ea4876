"""Options of calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mpocompress.errors import CalibrationError
from mpocompress.reports.calibration import OUTPUT_KINDS, OutputKind
from mpocompress.user.common_options import ProgressOptions, SourceOptions
from mpocompress.user.options import Option, check_options, option, option_class, required

LossFunction = Callable[[Any, Any], Any]
"""Takes the output of the model and a target, returns a scalar tensor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputOptions:
    """Options of functions that compare outputs of a model."""

    kind: OutputKind | None = option(
        None,
        choices=OUTPUT_KINDS,
        help="Kind of the outputs, which determines how they are compared.",
        details="`classification` (KL divergence), `embedding` (1 - cosine) or `regression` (squared error).",
        default_text="recognised from the outputs",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchOptions:
    """The inputs, and how many of them count."""

    batches: str | Iterable[object] = field(
        metadata=required(
            Option(
                flag="--calibrate",
                metavar="PLACE:NAME|FILE",
                help="Calibration inputs of your model, or a saved calibration.",
                details="An iterable of model inputs: tensors, packed sequences, tuples of arguments, or mappings of "
                "named arguments; with a loss, of pairs of inputs and a target. Or `file.py:name` or "
                "`package.module:name` of an iterable or of a function that returns one, which is imported and run.",
            )
        )
    )
    samples: int | None = option(None, metavar="N", minimum=1, help="Maximum number of samples.", default_text="512")


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationInputs(OutputOptions, BatchOptions):
    """Inputs to calibrate with.

    Args:
        options: the fields.

    Raises:
        CalibrationError: a value out of range.
    """

    __module__ = "mpocompress"

    loss: str | LossFunction | None = option(
        None,
        metavar="PLACE:NAME",
        help="Loss function of output and target for the gradients; batches are then pairs.",
        details="A callable, or `file.py:name` or `package.module:name` of one.",
        default_text="random projections of the outputs, without targets",
    )

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, CalibrationError)


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrateOptions(ProgressOptions, SourceOptions):
    """Options of `calibrate`.

    Args:
        options: the fields.
    """
