"""Options of `compress`, `plan`, `inspect` and `expand`.

Each class adds to the options of its bases, so that an option of several commands is declared once. They have no slots,
because classes with slots cannot be combined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mpocompress.calibration.options import CalibrationInputs
from mpocompress.errors import TargetError
from mpocompress.layers.selection import Selection
from mpocompress.mpo.sites import SitesChoice, check_choice
from mpocompress.planning.targets import PLAN_TARGETS, Truncation
from mpocompress.reports.matrix import STORED_DTYPES
from mpocompress.text import StrPath
from mpocompress.user.common_options import OverwriteOptions, ProgressOptions, SourceOptions
from mpocompress.user.options import Option, check_options, option, option_class, required

if TYPE_CHECKING:
    import torch

    from mpocompress.calibration.calibrate import CalibrationSource
    from mpocompress.user.model import UserModel


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetOptions:
    """The target of a compression."""

    truncation: Truncation = field(
        metadata=required(Option(flag=None, help="The target, such as `Truncation(max_bond=16)`."))
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerOptions:
    """The layers to compress, and their site shapes."""

    sites: SitesChoice = option(
        "auto", syntax="sites", help="Site shape of the MPOs: auto, lowrank, or a number of sites."
    )
    selection: Selection = option(Selection(), help="The layers to compress, and their kinds.", parts=Selection)

    def __post_init__(self) -> None:
        """Check the site shape."""
        check_choice(self.sites)


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixOptions(LayerOptions):
    """How the matrices are decomposed and stored."""

    calibration: CalibrationSource | None = option(
        None,
        parts=CalibrationInputs,
        help="Calibration data.",
        details="Batches, `CalibrationInputs`, a `Calibration`, or the path object of a calibration file. A string "
        "always names code, `file.py:name` or `package.module:name`, which is imported and run.",
        default_text="no calibration",
    )
    dtype: str | torch.dtype | None = option(
        None,
        choices=STORED_DTYPES,
        help="Dtype of the stored cores; int8 is stored with scales.",
        details="A name or a `torch.dtype`.",
        default_text="that of the weight",
    )
    jobs: int | None = option(
        None,
        metavar="N",
        minimum=1,
        help="Matrices processed at the same time.",
        details="The result does not depend on their number.",
        default_text="the number of cores",
    )

    def __post_init__(self) -> None:
        """Check the values; the dtype becomes its name."""
        super().__post_init__()
        if self.dtype is not None:
            object.__setattr__(self, "dtype", str(self.dtype).removeprefix("torch."))
        check_options(self, TargetError)

    @property
    def dtype_name(self) -> str | None:
        """Name of the dtype, such as `float16`; None for that of the weight."""
        return None if self.dtype is None else str(self.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelOptions(SourceOptions):
    """How a checkpoint is read, and its model."""

    model: UserModel | None = option(
        None,
        metavar="PLACE:NAME",
        help="The model, for the classes of its layers and for calibration; `file.py:name` or "
        "`package.module:name` is imported and run.",
        details="Or a module, or a mapping of module paths to classes.",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class FileOptions(ModelOptions, MatrixOptions):
    """Options of functions that survey the weights of a checkpoint file."""

    save_calibration: StrPath | None = option(
        None,
        metavar="FILE",
        help="File to save the calibration in, for other targets; its name ends in .safetensors.",
    )


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class InspectOptions(ModelOptions, LayerOptions):
    """Options of `inspect` and of the command of that name.

    Args:
        options: the fields.

    Raises:
        SitesError: an unknown site shape.
    """

    truncations: Sequence[Truncation] = option(
        PLAN_TARGETS,
        flag=None,
        help="Targets to predict.",
        default_text="bonds from 4 to 128, and fractions from 1/2 to 1/32",
    )


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class PlanOptions(ProgressOptions, FileOptions, InspectOptions):
    """Options of `plan` and of the command of that name.

    Args:
        options: the fields.

    Raises:
        SitesError: an unknown site shape.
        TargetError: a value out of range.
    """


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class CompressOptions(ProgressOptions, OverwriteOptions, FileOptions, TargetOptions):
    """Options of `compress` and of the command of that name.

    Args:
        options: the fields.

    Raises:
        SitesError: an unknown site shape.
        TargetError: a value out of range.
    """


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class ExpandOptions(OverwriteOptions):
    """Options of `expand` and of the command of that name.

    Args:
        options: the fields.
    """

    like: StrPath | None = option(
        None,
        metavar="ORIGINAL",
        help="The original checkpoint; the output is a copy of it with the new weights.",
        details="The output then has the form and all contents of the original (a whole module, a TorchScript archive, "
        "hyperparameters of any class); only the values of its tensors are new. No code in it is run.",
    )
