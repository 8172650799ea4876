"""The report of a benchmark: derived figures, document, verdict."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import jsonschema
import pytest

from mpocompress.errors import ReportError
from mpocompress.reports.benchmark import BenchReport, BenchResult, Case, ContenderResult, Machine
from mpocompress.reports.json_schema import schema

DENSE = ContenderResult(name="dense", kind="dense", times_s=(4.0, 1.0, 2.0), calls_per_sample=3, size_bytes=100)
OTHER = ContenderResult(name="dense, other", kind="dense", times_s=(3.0,))
AUTO = ContenderResult(name="auto", kind="compressed", times_s=(0.5,))
INT8 = ContenderResult(name="int8", kind="int8", unavailable="no int8 on this machine")
CASE = Case(batch=1, length=None, contenders=(DENSE, OTHER, INT8, AUTO))
RESULT = BenchResult(
    kind="linear",
    layers=("fc",),
    matrices=(),
    dense_parameters=100,
    parameters=50,
    cases=(CASE, replace(CASE, batch=8)),
)
REPORT = BenchReport(
    tool_version="1.0",
    file="small.pt",
    model="",
    machine=Machine(processor="a processor", device="cpu", threads=1, torch="2.10"),
    results=(RESULT,),
)


def test_figures_follow_from_the_times() -> None:
    assert (DENSE.median_s, DENSE.fastest_s, DENSE.slowest_s) == (2.0, 1.0, 4.0)
    assert (INT8.median_s, INT8.fastest_s, INT8.slowest_s) == (None, None, None)
    assert [contender.times_faster for contender in CASE.contenders] == [1.0, 2 / 3, None, 4.0]
    assert (CASE.best_dense, CASE.baseline.times_s) == ("dense", DENSE.times_s)


def test_the_document_comes_back_and_follows_its_schema() -> None:
    document = json.loads(REPORT.to_json())

    jsonschema.validate(document, schema(BenchReport))
    assert document["results"][0]["cases"][0]["contenders"][3]["times_faster"] == 4.0
    assert BenchReport.from_json(REPORT.to_json()) == REPORT == pickle.loads(pickle.dumps(REPORT))
    document["results"][0]["cases"][0]["contenders"][3]["times_faster"] = 1e6
    assert BenchReport.from_json(json.dumps(document)) == REPORT  # derived figures are derived again


def test_a_document_that_contradicts_itself_is_refused() -> None:
    document = json.loads(REPORT.to_json())
    del document["results"][0]["cases"][0]["contenders"][:2]

    with pytest.raises(
        ReportError, match=r"batch 1, length None: contenders int8, auto; .* a dense contender must have"
    ):
        BenchReport.from_json(json.dumps(document))


def test_the_verdict_and_the_repr_have_the_range_of_speeds() -> None:
    slower = replace(CASE, batch=8, contenders=(DENSE, replace(AUTO, times_s=(4.0,))))
    report = replace(REPORT, results=(replace(RESULT, cases=(CASE, slower)),))

    assert REPORT.verdict() == "auto is 4 times as fast as the fastest dense implementation in this run."
    assert report.verdict() == "auto is 0.5 to 4 times as fast as the fastest dense implementation in this run."
    assert repr(report) == "<BenchReport: small.pt, 1 layer, auto 0.5 to 4 times as fast as dense>"
    assert repr(replace(report, model="Net")) == "<BenchReport: small.pt, Net, auto 0.5 to 4 times as fast as dense>"
