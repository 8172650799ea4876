"""Reports as text for a terminal."""

from mpocompress.render.bench_tables import show_bench
from mpocompress.render.overview_tables import show_estimates, show_overview
from mpocompress.render.plan_tables import show_plan
from mpocompress.render.report_table import show_report
from mpocompress.render.tuning_table import show_tuning
from mpocompress.render.words import counted, labelled

__all__ = [
    "counted",
    "labelled",
    "show_bench",
    "show_estimates",
    "show_overview",
    "show_plan",
    "show_report",
    "show_tuning",
]
