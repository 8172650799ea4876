"""Reports as tables and sentences for a terminal."""

from mpocompress.cli.render.bench_tables import show_bench
from mpocompress.cli.render.finetuning_table import show_finetuning
from mpocompress.cli.render.formatting import counted, labelled
from mpocompress.cli.render.overview_tables import show_estimates, show_overview
from mpocompress.cli.render.plan_tables import show_plan
from mpocompress.cli.render.report_table import show_report

__all__ = [
    "counted",
    "labelled",
    "show_bench",
    "show_estimates",
    "show_finetuning",
    "show_overview",
    "show_plan",
    "show_report",
]
