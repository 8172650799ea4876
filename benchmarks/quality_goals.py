"""The goals of calibrated compression, set before it was implemented, for `benchmarks/quality.py --goals`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.quality_rows import DATA_AWARE, DATA_AWARE_INT8, Row

GOALS: Mapping[str, Mapping[str, float]] = {
    "resemblyzer": {"1/2": 0.96, "1/4": 0.905, "1/8": 0.85, "1/16": 0.82},
    "fashion": {"1/4": 88.9, "1/8": 87.5, "1/16": 82.5},
    "kjv": {"1/4": 1.09, "1/8": 1.28, "1/16": 2.0},
}
"""Model -> fraction kept -> minimum of the main score; for `kjv`, the maximum."""
AT_MOST = ("kjv",)
INT8_SHARE = 0.002
"""Largest relative difference between the main scores with int8 cores and with float32 cores."""
CPU_S = {"resemblyzer": 90.0}
"""Maximum processor time of calibration and compression together."""

HEADER = ("goal", "required", "measured", "")


def verdicts(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """Every goal that was measured: its name, the goal, the result, and whether it is met."""
    calibrated = {(row.model, row.keep): row for row in rows if row.method == DATA_AWARE and row.scores}
    int8 = {(row.model, row.keep): row for row in rows if row.method == DATA_AWARE_INT8 and row.scores}
    for (model, keep), row in calibrated.items():
        goal, score = GOALS.get(model, {}).get(keep), row.scores[0]
        if goal is not None:
            is_met = score <= goal if model in AT_MOST else score >= goal
            yield f"{model}, keep {keep}", f"{goal:g}", f"{score:.4g}", _verdict(is_met)
        if (model, keep) in int8:
            change = abs(int8[model, keep].scores[0] / score - 1)
            is_met = change <= INT8_SHARE
            yield f"{model}, keep {keep}, int8", f"{INT8_SHARE:.1%} off", f"{change:.2%} off", _verdict(is_met)
    for model, most in CPU_S.items():
        times_s = [row.cpu_s for row in calibrated.values() if row.model == model and row.cpu_s is not None]
        if times_s:
            yield f"{model}, processor time", f"{most:g} s", f"{max(times_s):.1f} s", _verdict(max(times_s) <= most)


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"
