"""The figure of `benchmarks/quality.py`: the scores of each model against the reduction of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.inputs import extra
from benchmarks.quality_models import Subject
from benchmarks.quality_rows import DATA_AWARE, DATA_FREE, DENSE, Row

STYLES: Mapping[str, tuple[str, str]] = {
    DATA_AWARE: ("#c1121f", "o-"),
    DATA_FREE: ("#c1121f", "o:"),
    "balanced MPO + data": ("#e09f3e", "s-"),
    "balanced MPO": ("#e09f3e", "s:"),
    "whitened SVD": ("#1d5f9e", "^-"),
    "plain SVD": ("#1d5f9e", "^:"),
    "activation PCA": ("#2a9d8f", "v-"),
    "Wanda + least squares": ("#5e548e", "D-"),
    "magnitude pruning": ("#5e548e", "D:"),
}
"""Method -> colour, and marker and line; dotted lines use no data. Other methods are not drawn."""
FARTHEST = {"kjv": 8.0}
"""The largest score that is drawn, if smaller is better."""


def draw(subjects: Sequence[Subject], rows: Sequence[Row], path: Path) -> None:
    """Write the figure as SVG, with one panel per model."""
    extra("matplotlib").use("svg")
    pyplot: Any = extra("matplotlib.pyplot", "matplotlib")
    pyplot.rcParams.update({"svg.hashsalt": "quality", "svg.fonttype": "none", "font.size": 10})
    figure, panels = pyplot.subplots(
        1, len(subjects), figsize=(4.6 * len(subjects), 4.9), squeeze=False, layout="constrained"
    )
    lines: dict[str, Any] = {}
    for subject, panel in zip(subjects, panels[0], strict=True):
        lines |= _panel(panel, subject, rows)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _panel(panel: Any, subject: Subject, rows: Sequence[Row]) -> dict[str, Any]:
    lines: dict[str, Any] = {}
    for method, (colour, style) in STYLES.items():
        points = [row for row in rows if (row.model, row.method) == (subject.name, method) and row.scores]
        if points:
            reductions, scores = [row.times_fewer for row in points], [row.scores[0] for row in points]
            wide = 2.4 if method == DATA_AWARE else 1.3
            (lines[method],) = panel.plot(reductions, scores, style, color=colour, linewidth=wide, markersize=4.5)
    dense = next(row.scores[0] for row in rows if (row.model, row.method) == (subject.name, DENSE))
    lines[DENSE] = panel.axhline(dense, color="#222222", linewidth=0.9)
    lines["constant output"] = panel.axhline(subject.constant, color="#888888", linewidth=0.9, linestyle="--")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:g}")
    if not subject.larger_is_better:
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_ylim(0.95 * dense, FARTHEST.get(subject.name))
    panel.set_title(f"{subject.name}: {'larger' if subject.larger_is_better else 'smaller'} is better", loc="left")
    panel.set_xlabel("times fewer parameters")
    panel.set_ylabel(subject.figures[0])
    panel.grid(visible=True, color="#e5e5e5", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    return lines
