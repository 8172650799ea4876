"""The report: its sums are checked, its document comes back, and contradictions in it are refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpocompress.errors import FormatError, MPOCompressError, ReportError
from mpocompress.layers.specs import Skipped
from mpocompress.reports.compression import FRAGILE_ERROR, RUINOUS_ERROR, Report, Source, Target, Totals
from mpocompress.reports.matrix import SUM_TOLERANCE, MatrixReport

JOINT = MatrixReport(
    name="lstm.weight_joint_l0",
    layer="lstm",
    kind="lstm",
    members=("lstm.weight_ih_l0", "lstm.weight_hh_l0"),
    member_columns=(28, 64),
    shape=(256, 92),
    row_dims=(128, 2),
    col_dims=(2, 46),
    anti_aligned=True,
    bonds=(8,),
    dense_parameters=23552,
    parameters=2784,
    relative_error=0.5,
    squared_norm=200.0,
    discarded_weights=(49.999,),
    rounding_weight=0.001,
    source_dtype="float32",
    dtype="bfloat16",
    reason="",
    kind_from="name and shape",
)
DENSE = MatrixReport(
    name="fc.weight",
    layer="fc",
    kind="linear",
    members=("fc.weight",),
    member_columns=(64,),
    shape=(70, 64),
    row_dims=(),
    col_dims=(),
    anti_aligned=False,
    bonds=(),
    dense_parameters=4480,
    parameters=4480,
    relative_error=0.0,
    squared_norm=30.0,
    discarded_weights=(),
    rounding_weight=0.0,
    source_dtype="float32",
    dtype="float32",
    reason="under this budget, keeping it dense is best",
    kind_from="name and shape",
)
REPORT = Report(
    tool_version="0.1.0",
    source=Source(file="model.pt", sha256="ab" * 32, container="torch-zip", key="model", file_size_bytes=120_000),
    target=Target(kind="keep", requested=0.3, achieved=0.2591, bond_by_layer={}),
    matrices=(JOINT, DENSE),
    skipped=(Skipped(name="fc.bias", shape=(70,), reason="1-D: a bias, a norm or a statistic"),),
    aliases={"twin.weight_ih_l0": "lstm.weight_ih_l0"},
    totals=Totals(
        dense_parameters=28102,
        parameters=7334,
        eligible_parameters=28032,
        eligible_parameters_after=7264,
        size_bytes_before=112_408,
        size_bytes_after=23_768,
        file_size_bytes_before=120_000,
        file_size_bytes_after=None,
    ),
    unmet=("Something was not met.",),
    notes=("optimizer left out",),
)


def document() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(REPORT.to_json())
    return read


def read(changed: object) -> Report:
    return Report.from_json(json.dumps(changed), where="small.pt")


def test_a_report_comes_back_from_its_document() -> None:
    REPORT.check()

    assert Report.from_json(REPORT.to_json()) == REPORT
    assert Report.from_json(REPORT.to_json(indent=2)) == REPORT
    assert Report.from_json(REPORT.to_json()).to_json() == REPORT.to_json()
    assert (document()["format"], document()["version"]) == ("mpocompress", 1)


def test_the_repr_is_one_short_line() -> None:
    assert repr(REPORT) == "<Report: model.pt, 1 of 2 matrices compressed, 3.8 times smaller>"


def test_unknown_fields_are_ignored_at_every_level() -> None:
    changed = document()
    for part in (
        changed,
        changed["source"],
        changed["target"],
        changed["totals"],
        *changed["matrices"],
        *changed["skipped"],
    ):
        part["later"] = {"anything": [1, 2]}

    assert read(changed) == REPORT


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"small\.pt: a document that is not valid JSON; .*edited: compress the original checkpoint again"),
        ('{"format": "mpocompress-plan", "version": 1}', "a document of another format"),
        ('{"format": "mpocompress", "version": 2}', "format version 2; this release reads version 1"),
        ('{"format": "mpocompress", "version": 1}', "object missing required field `tool_version`"),
    ],
    ids=["empty", "plan", "newer", "bare"],
)
def test_a_text_that_is_not_a_report_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Report.from_json(text, where="small.pt")


def paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document, the leaves and what holds them."""
    entries: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, inner in entries:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def changed_at(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    changed = document()
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed


NUMBERS = [
    ("matrices", 0, "dense_parameters"),
    ("matrices", 0, "parameters"),
    ("matrices", 0, "relative_error"),
    ("matrices", 0, "squared_norm"),
    ("matrices", 0, "rounding_weight"),
    ("matrices", 0, "discarded_weights", 0),
    ("matrices", 0, "bonds", 0),
    ("matrices", 0, "row_dims", 0),
    ("matrices", 0, "row_dims", 1),
    ("matrices", 0, "col_dims", 0),
    ("matrices", 0, "shape", 0),
    ("matrices", 0, "shape", 1),
    ("matrices", 0, "member_columns", 0),
    ("matrices", 1, "parameters"),
    ("matrices", 1, "relative_error"),
    ("matrices", 1, "shape", 0),
    ("totals", "dense_parameters"),
    ("totals", "parameters"),
    ("totals", "eligible_parameters"),
    ("totals", "eligible_parameters_after"),
]


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_a_number_that_is_changed_contradicts_the_others(path: tuple[str | int, ...]) -> None:
    place: Any = document()
    for key in path:
        place = place[key]

    with pytest.raises(ReportError, match="The file is damaged or was edited: compress the original"):
        read(changed_at(path, place + 1))


@given(st.sampled_from(NUMBERS), st.floats(allow_nan=True, allow_infinity=True))
def test_a_number_that_is_any_float_is_refused_or_within_the_tolerance(
    path: tuple[str | int, ...], value: float
) -> None:
    try:
        report = read(changed_at(path, value))
    except MPOCompressError:
        return

    report.check()
    report.to_json()  # what was let in can be shown again
    for matrix in report.matrices:
        added = sum(matrix.discarded_weights) + matrix.rounding_weight
        assert abs(added - matrix.relative_error**2 * matrix.squared_norm) <= SUM_TOLERANCE * matrix.squared_norm


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(list(paths(document()))), values)
def test_a_report_with_any_change_is_read_or_refused_in_words(path: tuple[str | int, ...], value: object) -> None:
    try:
        report = read(changed_at(path, value))
    except MPOCompressError:
        return

    report.check()
    report.verdict()
    report.to_json()


OPTIONAL = {"transposed", "weighted_error", "sensitivity", "corrected_bias"}
OPTIONAL_AT_TOP = {"unmet", "notes", "calibration", "finetuning"}


@given(st.sampled_from([path for path in paths(document()) if isinstance(path[-1], str)]))
def test_a_field_that_is_missing_is_refused_unless_it_has_a_default(path: tuple[str | int, ...]) -> None:
    changed = document()
    parent: Any = changed
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]

    if path[0] in OPTIONAL_AT_TOP or (path[0] == "aliases" and len(path) > 1):
        read(changed)
        return
    if path[-1] in OPTIONAL:
        assert read(changed) == REPORT
        return
    with pytest.raises(
        FormatError, match=rf"small\.pt: .*(missing required field `{path[-1]}`|another format|version)"
    ):
        read(changed)


def test_a_field_that_is_missing_is_named_with_its_place() -> None:
    changed = document()
    del changed["matrices"][0]["shape"]

    with pytest.raises(
        FormatError, match=r"small\.pt: matrices\[0\]: object missing required field `shape`; the document"
    ):
        read(changed)


def test_only_cores_are_in_int8() -> None:
    report = read(changed_at(("matrices", 0, "dtype"), "int8"))

    (joint,) = report.compressed
    assert joint.core_names == ("lstm.weight_joint_l0.core.0", "lstm.weight_joint_l0.core.1")
    assert joint.scale_names == ("lstm.weight_joint_l0.core.0.scale", "lstm.weight_joint_l0.core.1.scale")
    assert (JOINT.scale_names, DENSE.core_names, DENSE.scale_names) == ((), (), ())
    with pytest.raises(
        ReportError, match=r"fc\.weight: dtype 'int8'; the dtype of a dense matrix is one of float16, .*, float64\."
    ):
        read(changed_at(("matrices", 1, "dtype"), "int8"))


@pytest.mark.parametrize(("dtype", "share"), [("float32", 1e-5), ("bfloat16", 1e-4), ("int8", 1e-2)])
def test_rounding_loses_what_its_dtype_allows(dtype: str, share: float) -> None:
    lost = dataclasses.replace(JOINT, dtype=dtype, discarded_weights=(0.0,))
    within, beyond = (
        dataclasses.replace(lost, rounding_weight=rounding * lost.squared_norm, relative_error=math.sqrt(rounding))
        for rounding in (0.9 * share, 1.1 * share)
    )

    within.check()
    with pytest.raises(ReportError, match=f"lost in rounding; rounding cores to {dtype} loses less"):
        beyond.check()


def test_a_joint_matrix_is_not_transposed() -> None:
    with pytest.raises(ReportError, match="2 transposed members; only a matrix of one tensor can be transposed"):
        read(changed_at(("matrices", 0, "transposed"), True))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "gru"),
        ("kind_from", "rumour"),
        ("source_dtype", "float8"),
        ("source_dtype", "load"),
        ("source_dtype", "int8"),
        ("dtype", 5),
        ("name", 5),
        ("members", [5, 6]),
        ("reason", None),
    ],
)
def test_a_field_without_a_meaning_is_refused(field: str, value: object) -> None:
    """`expand` uses these fields as names and dtypes."""
    with pytest.raises(FormatError, match=rf"small\.pt: matrices\[0\]\.{field}(\[0\])?: "):
        read(changed_at(("matrices", 0, field), value))


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e200])
@pytest.mark.parametrize("field", ["relative_error", "squared_norm", "rounding_weight"])
def test_numbers_without_a_value_are_refused(field: str, value: float) -> None:
    with pytest.raises(MPOCompressError):
        read(changed_at(("matrices", 0, field), value))


def test_two_matrices_of_one_name_are_refused() -> None:
    """Their cores would be the same tensors."""
    twice = dataclasses.replace(
        REPORT,
        matrices=(JOINT, JOINT),
        totals=dataclasses.replace(
            REPORT.totals,
            dense_parameters=2 * 23552 + 70,
            parameters=2 * 2784 + 70,
            eligible_parameters=2 * 23552,
            eligible_parameters_after=2 * 2784,
        ),
    )

    with pytest.raises(MPOCompressError, match=r"lstm\.weight"):
        Report.from_json(twice.to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"col_dims": (2, 23)}, r"lstm.weight_joint_l0: .*both must describe the same matrix"),
        (
            {"member_columns": (28, 63)},
            r"member columns \(28, 63\), shape \(256, 92\); the members must fill the columns",
        ),
        ({"members": ("lstm.weight_ih_l0",)}, "the members must fill the columns"),
        ({"parameters": 2785}, r"23552 -> 2785 parameters, counted 23552 -> 2784; both counts must be equal"),
        ({"dense_parameters": 1}, "1 -> 2784 parameters, counted 23552 -> 2784"),
        ({"bonds": (8, 8)}, "2 row dims, 2 column dims, 2 bonds; every site has one dim of each kind"),
        ({"row_dims": (128, 2, 1)}, "3 row dims, 2 column dims, 1 bonds"),
        ({"discarded_weights": (25.0, 24.999)}, "2 discarded weights; there must be one for every cut"),
        (
            {"relative_error": 0.51},
            r"discarded weights of 50, relative error 0.51; the discarded weights of all cuts must add up",
        ),
        ({"relative_error": math.nan}, "discarded weights of 50, relative error nan"),
    ],
)
def test_a_matrix_that_contradicts_itself_says_how(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        dataclasses.replace(JOINT, **change).check()


@given(st.floats(0, 1), st.floats(-2, 2))
def test_the_tolerance_of_the_sum_is_a_share_of_the_squared_norm(error: float, off: float) -> None:
    exact = error**2 * JOINT.squared_norm
    matrix = dataclasses.replace(
        JOINT,
        relative_error=error,
        discarded_weights=(exact + off * SUM_TOLERANCE * JOINT.squared_norm,),
        rounding_weight=0.0,
    )

    if abs(off) > 1.001:
        with pytest.raises(ReportError, match="must add up to the squared error"):
            matrix.check()
    elif abs(off) < 0.999:
        matrix.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"eligible_parameters": 1},
            "totals: eligible 1 -> 7264, sum 28032 -> 7264; totals must be the sums of their parts",
        ),
        ({"eligible_parameters_after": 1}, "eligible 28032 -> 1, sum 28032 -> 7264"),
        ({"parameters": 1}, "28102 -> 1 parameters, 20768 saved in matrices; only matrices can have other numbers"),
    ],
)
def test_totals_that_are_no_sums_say_so(change: dict[str, int], message: str) -> None:
    with pytest.raises(ReportError, match=message):
        dataclasses.replace(REPORT, totals=dataclasses.replace(REPORT.totals, **change)).check()


def test_figures_over_all_matrices() -> None:
    assert REPORT.compressed == (JOINT,)
    assert JOINT.times_smaller == 23552 / 2784
    assert REPORT.relative_error == pytest.approx(math.sqrt(0.25 * 200 / 230))
    assert dataclasses.replace(REPORT, matrices=()).relative_error == 0.0


@pytest.mark.parametrize(
    ("error", "limit"),
    [
        (0.0, ""),
        (FRAGILE_ERROR, ""),
        (FRAGILE_ERROR + 0.01, "above about 0.3, some trained models fail without fine-tuning"),
        (RUINOUS_ERROR, "above about 0.3, some trained models fail without fine-tuning"),
        (RUINOUS_ERROR + 0.01, "above about 0.6, nearly all trained models fail without fine-tuning"),
    ],
)
def test_the_verdict_warns_above_the_errors_that_models_tolerate(error: float, limit: str) -> None:
    matrix = dataclasses.replace(JOINT, relative_error=error)
    warning, *more = dataclasses.replace(REPORT, matrices=(matrix, DENSE)).verdict()

    assert warning.startswith("Weight errors do not measure quality: ")
    advice = "Keep more parameters (a larger bond or fraction), leave that layer dense, or fine-tune before use."
    largest = f"The largest relative error is {error:.2f} (lstm.weight_joint_l0); {limit}. {advice}"
    assert more == ([largest] if limit else [])


def test_the_verdict_without_compressed_matrices() -> None:
    assert dataclasses.replace(REPORT, matrices=(DENSE,)).verdict() == (
        "Nothing was compressed: every matrix was kept dense, for the reasons given.",
    )
