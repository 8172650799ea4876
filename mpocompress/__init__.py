"""Post-training compression of PyTorch checkpoints by matrix product operators.

Names are imported on first use, so that `import mpocompress` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mpocompress._version import __version__ as __version__

if TYPE_CHECKING:
    from mpocompress.benchmarking.bench import bench as bench
    from mpocompress.calibration.calibrate import calibrate as calibrate
    from mpocompress.calibration.calibration import Calibration as Calibration
    from mpocompress.calibration.calibration_file import read_calibration as read_calibration
    from mpocompress.calibration.calibration_file import write_calibration as write_calibration
    from mpocompress.calibration.options import CalibrationInputs as CalibrationInputs
    from mpocompress.checkpoint.checkpoint import Checkpoint as Checkpoint
    from mpocompress.checkpoint.reader import open_checkpoint as open_checkpoint
    from mpocompress.compression.compress import compress as compress
    from mpocompress.compression.expand import expand as expand
    from mpocompress.compression.inspection import inspect as inspect
    from mpocompress.compression.plan import plan as plan
    from mpocompress.errors import MPOCompressError as MPOCompressError
    from mpocompress.finetuning.finetune import finetune as finetune
    from mpocompress.finetuning.finetune_module import FinetuneResult as FinetuneResult
    from mpocompress.finetuning.finetune_module import finetune_module as finetune_module
    from mpocompress.finetuning.progress import FinetuneProgress as FinetuneProgress
    from mpocompress.finetuning.self_generated import SelfGenerated as SelfGenerated
    from mpocompress.layers.selection import Selection as Selection
    from mpocompress.modules.compress import compress_module as compress_module
    from mpocompress.modules.load import load as load
    from mpocompress.modules.save import save as save
    from mpocompress.mpo.mpo import MPO as MPO
    from mpocompress.mpo.sites import Sites as Sites
    from mpocompress.nn import MPOLSTM as MPOLSTM
    from mpocompress.nn import MPOLinear as MPOLinear
    from mpocompress.nn import MPOLSTMCell as MPOLSTMCell
    from mpocompress.nn import MPOWeight as MPOWeight
    from mpocompress.nn import set_execution as set_execution
    from mpocompress.planning.single_matrix import decompose as decompose
    from mpocompress.planning.targets import Truncation as Truncation
    from mpocompress.reports.benchmark import BenchReport as BenchReport
    from mpocompress.reports.compression import Report as Report
    from mpocompress.reports.finetuning import FinetuningReport as FinetuningReport
    from mpocompress.reports.overview import Overview as Overview
    from mpocompress.reports.plan import PlanReport as PlanReport

_PUBLIC = {
    "benchmarking.bench": ("bench",),
    "calibration.calibrate": ("calibrate",),
    "calibration.calibration": ("Calibration",),
    "calibration.calibration_file": ("read_calibration", "write_calibration"),
    "calibration.options": ("CalibrationInputs",),
    "checkpoint.checkpoint": ("Checkpoint",),
    "checkpoint.reader": ("open_checkpoint",),
    "compression.compress": ("compress",),
    "compression.expand": ("expand",),
    "compression.inspection": ("inspect",),
    "compression.plan": ("plan",),
    "errors": ("MPOCompressError",),
    "finetuning.finetune": ("finetune",),
    "finetuning.finetune_module": ("FinetuneResult", "finetune_module"),
    "finetuning.progress": ("FinetuneProgress",),
    "finetuning.self_generated": ("SelfGenerated",),
    "layers.selection": ("Selection",),
    "modules.compress": ("compress_module",),
    "modules.load": ("load",),
    "modules.save": ("save",),
    "mpo.mpo": ("MPO",),
    "mpo.sites": ("Sites",),
    "nn": ("MPOLSTM", "MPOLinear", "MPOLSTMCell", "MPOWeight", "set_execution"),
    "planning.single_matrix": ("decompose",),
    "planning.targets": ("Truncation",),
    "reports.benchmark": ("BenchReport",),
    "reports.compression": ("Report",),
    "reports.finetuning": ("FinetuningReport",),
    "reports.overview": ("Overview",),
    "reports.plan": ("PlanReport",),
}
"""Module -> the public names in it."""

_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted((*_MODULES, "__version__"))  # noqa: PLE0605 - computed from the one table


def __getattr__(name: str) -> object:
    """Import a public name from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names, whether they are imported yet or not."""
    return sorted({*globals(), *__all__})
