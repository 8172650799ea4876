"""Post-training compression of PyTorch checkpoints by matrix product operators.

Names are imported on first use, so that `import mpocompress` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mpocompress._version import __version__

if TYPE_CHECKING:
    from mpocompress.bench_report import BenchReport
    from mpocompress.benchmark import bench
    from mpocompress.calibration import Calibration, CalibrationInputs, read_calibration, write_calibration
    from mpocompress.checkpoint import open_checkpoint
    from mpocompress.compressing import compress_module
    from mpocompress.decomposition import decompose
    from mpocompress.errors import MPOCompressError
    from mpocompress.finetuning import FinetuneResult, finetune
    from mpocompress.loading import load
    from mpocompress.looking import look, overview
    from mpocompress.mpo import MPO
    from mpocompress.nn import MPOLSTM, MPOLinear, MPOLSTMCell, MPOWeight, set_execution
    from mpocompress.overview_report import Overview
    from mpocompress.pipeline import calibrate, compress, expand, inspect, plan
    from mpocompress.plan_report import PlanReport
    from mpocompress.report import Report
    from mpocompress.saving import save
    from mpocompress.selection import Selection
    from mpocompress.sites import Sites
    from mpocompress.truncation import Truncation
    from mpocompress.tuned_file import finetune_file
    from mpocompress.tuning import SelfGenerated, TuningProgress
    from mpocompress.tuning_report import TuningReport

__all__ = [
    "MPO",
    "MPOLSTM",
    "BenchReport",
    "Calibration",
    "CalibrationInputs",
    "FinetuneResult",
    "MPOCompressError",
    "MPOLSTMCell",
    "MPOLinear",
    "MPOWeight",
    "Overview",
    "PlanReport",
    "Report",
    "Selection",
    "SelfGenerated",
    "Sites",
    "Truncation",
    "TuningProgress",
    "TuningReport",
    "__version__",
    "bench",
    "calibrate",
    "compress",
    "compress_module",
    "decompose",
    "expand",
    "finetune",
    "finetune_file",
    "inspect",
    "load",
    "look",
    "open_checkpoint",
    "overview",
    "plan",
    "read_calibration",
    "save",
    "set_execution",
    "write_calibration",
]

_HOMES = {
    "BenchReport": "bench_report",
    "Calibration": "calibration",
    "CalibrationInputs": "calibration",
    "FinetuneResult": "finetuning",
    "MPO": "mpo",
    "MPOCompressError": "errors",
    "MPOLSTM": "nn",
    "MPOLSTMCell": "nn",
    "MPOLinear": "nn",
    "MPOWeight": "nn",
    "Overview": "overview_report",
    "PlanReport": "plan_report",
    "Report": "report",
    "Selection": "selection",
    "SelfGenerated": "tuning",
    "Sites": "sites",
    "Truncation": "truncation",
    "TuningProgress": "tuning",
    "TuningReport": "tuning_report",
    "bench": "benchmark",
    "calibrate": "pipeline",
    "compress": "pipeline",
    "compress_module": "compressing",
    "decompose": "decomposition",
    "expand": "pipeline",
    "finetune": "finetuning",
    "finetune_file": "tuned_file",
    "inspect": "pipeline",
    "load": "loading",
    "look": "looking",
    "open_checkpoint": "checkpoint",
    "overview": "looking",
    "plan": "pipeline",
    "read_calibration": "calibration",
    "save": "saving",
    "set_execution": "nn",
    "write_calibration": "calibration",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
