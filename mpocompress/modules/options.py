"""Options of `compress_module`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpocompress.compression.options import MatrixOptions, TargetOptions
from mpocompress.user.common_options import ProgressOptions
from mpocompress.user.options import option, option_class

if TYPE_CHECKING:
    from mpocompress.nn.execution import Execution


@option_class
@dataclass(frozen=True, kw_only=True, eq=False)
class CompressModuleOptions(ProgressOptions, MatrixOptions, TargetOptions):
    """Options of `compress_module`.

    Args:
        options: the fields.

    Raises:
        SitesError: an unknown site shape.
        TargetError: a value out of range.
    """

    execution: Execution = option("auto", flag=None, help="How the new layers run: auto, factorised or materialised.")
