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
    from mpocompress.decomposition import decompose
    from mpocompress.errors import MPOCompressError
    from mpocompress.looking import look, overview
    from mpocompress.mpo import MPO
    from mpocompress.overview_report import Overview
    from mpocompress.pipeline import compress, expand, inspect, plan
    from mpocompress.plan_report import PlanReport
    from mpocompress.report import Report
    from mpocompress.selection import Selection
    from mpocompress.sites import Sites
    from mpocompress.truncation import Truncation

__all__ = [
    "MPO",
    "BenchReport",
    "MPOCompressError",
    "Overview",
    "PlanReport",
    "Report",
    "Selection",
    "Sites",
    "Truncation",
    "__version__",
    "bench",
    "compress",
    "decompose",
    "expand",
    "inspect",
    "look",
    "overview",
    "plan",
]

_HOMES = {
    "BenchReport": "bench_report",
    "MPO": "mpo",
    "MPOCompressError": "errors",
    "Overview": "overview_report",
    "PlanReport": "plan_report",
    "Report": "report",
    "Selection": "selection",
    "Sites": "sites",
    "Truncation": "truncation",
    "bench": "benchmark",
    "compress": "pipeline",
    "decompose": "decomposition",
    "expand": "pipeline",
    "inspect": "pipeline",
    "look": "looking",
    "overview": "looking",
    "plan": "pipeline",
}


def __getattr__(name: str) -> object:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
