"""Post-training compression of PyTorch checkpoints by matrix product operators.

Names are imported on first use, so that `import mpocompress` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mpocompress._version import __version__

if TYPE_CHECKING:
    from mpocompress.benchmarking.bench import bench
    from mpocompress.calibration import Calibration, CalibrationInputs, read_calibration, write_calibration
    from mpocompress.calibration.calibrate import calibrate
    from mpocompress.checkpoint.reader import open_checkpoint
    from mpocompress.compression.compress import compress
    from mpocompress.compression.expand import expand
    from mpocompress.compression.inspection import inspect, look, overview
    from mpocompress.compression.plan import plan
    from mpocompress.errors import MPOCompressError
    from mpocompress.finetuning import SelfGenerated, TuningProgress
    from mpocompress.finetuning.finetune import FinetuneResult, finetune
    from mpocompress.finetuning.finetune_file import finetune_file
    from mpocompress.layers.selection import Selection
    from mpocompress.modules.compress import compress_module
    from mpocompress.modules.load import load
    from mpocompress.modules.save import save
    from mpocompress.mpo.mpo import MPO
    from mpocompress.mpo.sites import Sites
    from mpocompress.nn import MPOLSTM, MPOLinear, MPOLSTMCell, MPOWeight, set_execution
    from mpocompress.planning.single_matrix import decompose
    from mpocompress.planning.target import Truncation
    from mpocompress.reports.benchmark import BenchReport
    from mpocompress.reports.compression import Report
    from mpocompress.reports.finetuning import TuningReport
    from mpocompress.reports.overview import Overview
    from mpocompress.reports.plan import PlanReport

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
    "BenchReport": "reports.benchmark",
    "Calibration": "calibration",
    "CalibrationInputs": "calibration",
    "FinetuneResult": "finetuning.finetune",
    "MPO": "mpo.mpo",
    "MPOCompressError": "errors",
    "MPOLSTM": "nn",
    "MPOLSTMCell": "nn",
    "MPOLinear": "nn",
    "MPOWeight": "nn",
    "Overview": "reports.overview",
    "PlanReport": "reports.plan",
    "Report": "reports.compression",
    "Selection": "layers.selection",
    "SelfGenerated": "finetuning",
    "Sites": "mpo.sites",
    "Truncation": "planning.target",
    "TuningProgress": "finetuning",
    "TuningReport": "reports.finetuning",
    "bench": "benchmarking.bench",
    "calibrate": "calibration.calibrate",
    "compress": "compression.compress",
    "compress_module": "modules.compress",
    "decompose": "planning.single_matrix",
    "expand": "compression.expand",
    "finetune": "finetuning.finetune",
    "finetune_file": "finetuning.finetune_file",
    "inspect": "compression.inspection",
    "load": "modules.load",
    "look": "compression.inspection",
    "open_checkpoint": "checkpoint.reader",
    "overview": "compression.inspection",
    "plan": "compression.plan",
    "read_calibration": "calibration",
    "save": "modules.save",
    "set_execution": "nn",
    "write_calibration": "calibration",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
