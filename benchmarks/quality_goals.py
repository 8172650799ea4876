"""What data-aware compression was asked to reach before it was written, for `benchmarks/quality.py --asked`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.quality_rows import DATA_AWARE, DATA_AWARE_INT8, Row

GOALS: Mapping[str, Mapping[str, float]] = {
    "resemblyzer": {"1/2": 0.96, "1/4": 0.905, "1/8": 0.85, "1/16": 0.82},
    "fashion": {"1/4": 88.9, "1/8": 87.5, "1/16": 82.5},
    "kjv": {"1/4": 1.09, "1/8": 1.28, "1/16": 2.0},
}
"""Model -> fraction kept -> the least main figure; for `kjv`, the most."""
AT_MOST = ("kjv",)
INT8_SHARE = 0.002
"""How far cores of 8 bits may be from those of float32, as a share of the main figure of these."""
CPU_S = {"resemblyzer": 90.0}
"""The most processor time of calibration and compression together."""

HEADER = ("goal", "asked", "reached", "")


def asked(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Every goal that something was measured for: what it is, its number, what was reached, and whether that is enough.

    Args:
        rows: all measurements.
    """
    ours = {(row.model, row.keep): row for row in rows if row.method == DATA_AWARE and row.scores}
    small = {(row.model, row.keep): row for row in rows if row.method == DATA_AWARE_INT8 and row.scores}
    for (model, keep), row in ours.items():
        goal, reached = GOALS.get(model, {}).get(keep), row.scores[0]
        if goal is not None:
            enough = reached <= goal if model in AT_MOST else reached >= goal
            yield f"{model}, keep {keep}", f"{goal:g}", f"{reached:.4g}", _verdict(enough)
        if (model, keep) in small:
            change = abs(small[model, keep].scores[0] / reached - 1)
            enough = change <= INT8_SHARE
            yield f"{model}, keep {keep}, int8", f"{INT8_SHARE:.1%} off", f"{change:.2%} off", _verdict(enough)
    for model, most in CPU_S.items():
        spent = [row.cpu_s for row in ours.values() if row.model == model and row.cpu_s is not None]
        if spent:
            yield f"{model}, processor time", f"{most:g} s", f"{max(spent):.1f} s", _verdict(max(spent) <= most)


def _verdict(enough: bool) -> str:
    return "met" if enough else "MISSED"
