"""Reports as text for a terminal."""

from mpocompress.render.plan_tables import show_plan
from mpocompress.render.report_table import show_report

__all__ = ["show_plan", "show_report"]
