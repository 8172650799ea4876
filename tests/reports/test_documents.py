"""Documents declared as dataclasses: encoded the same every time, decoded strictly, described by a JSON Schema."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpocompress.errors import FormatError, ReportError
from mpocompress.reports.json_documents import (
    Count,
    Document,
    Fraction,
    NonNegative,
    Number,
    Sha256,
    choice,
    contradiction,
    encode,
)
from mpocompress.reports.json_schema import field_descriptions, schema

DIGEST = "0123456789abcdef" * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part.

    Args:
        name: its name.
        size: how large it is,
            on two lines. None if it is unknown.
    """

    name: str
    size: NonNegative | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Document):
    """A document
    for the tests.

    Args:
        parts: the parts.
        pair: two numbers.
        counts: numbers by name.
        kind: the kind.
        share: a fraction.
        is_new: a flag.
        digest: a digest.
        amount: an integer or another number.
    """

    FORMAT: ClassVar[str] = "sample"
    IF_DAMAGED: ClassVar[str] = "Take another sample."

    parts: tuple[Part, ...]
    pair: tuple[Count, Count]
    counts: Mapping[str, Count]
    kind: Annotated[str, choice("a", "b")]
    share: Fraction
    is_new: bool
    digest: Sha256
    amount: Count | Number | None = None

    def check(self) -> None:
        """Check that the pair is in order."""
        if self.pair[0] > self.pair[1]:
            raise contradiction("pair", f"got {self.pair}", "it must be in order")


SAMPLE = Sample(
    parts=(Part(name="first", size=1.5), Part(name="\ud800", size=None)),
    pair=(1, 2),
    counts={"z": 1, "a": 2**60},
    kind="b",
    share=0.1,
    is_new=True,
    digest=DIGEST,
)


def fields() -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(SAMPLE.to_json())
    return decoded


def read(changed: object) -> Sample:
    return Sample.from_json(json.dumps(changed), where="sample.json")


def test_a_document_comes_back_the_same_to_the_byte() -> None:
    text = SAMPLE.to_json()

    assert Sample.from_json(text) == SAMPLE
    assert Sample.from_json(text).to_json() == text == encode(SAMPLE)
    assert Sample.from_json(SAMPLE.to_json(indent=2)) == SAMPLE
    assert list(fields()) == ["format", "version", *(field.name for field in dataclasses.fields(Sample))]
    assert (fields()["format"], fields()["version"]) == ("sample", 1)


@given(st.floats(-1e150, 1e150) | st.integers(0, 2**63 - 1) | st.none())
def test_numbers_come_back_exactly_and_of_their_type(amount: float | None) -> None:
    back = Sample.from_json(replace(SAMPLE, amount=amount).to_json()).amount

    assert (back, type(back)) == (amount, type(amount))


class Text(str):
    """A text of a class of its own."""


def test_mappings_and_values_of_subclasses_are_encoded_as_builtin_ones() -> None:
    assert replace(SAMPLE, counts=MappingProxyType(dict(SAMPLE.counts))).to_json() == SAMPLE.to_json()
    assert replace(SAMPLE, kind=Text("b")).to_json() == SAMPLE.to_json()
    with pytest.raises(TypeError, match="a document cannot hold"):
        replace(SAMPLE, counts=object()).to_json()  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_without_a_value_is_not_written(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        replace(SAMPLE, share=value).to_json()


def test_unknown_fields_are_ignored() -> None:
    changed = fields()
    changed["later"] = changed["parts"][0]["later"] = {"anything": [1, 2]}

    assert read(changed) == SAMPLE


def deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("pair", 0), True, "pair[0]: expected `int`, got `bool`"),
        (("pair", 0), 1.0, "pair[0]: expected `int`, got `float`"),
        (("pair", 0), -1, "pair[0]: expected `int` >= 0"),
        (("pair", 0), 10**400, "pair[0]: expected `int` <= 9223372036854775807"),
        (("pair", 0), None, "pair[0]: expected `int`, got `null`"),
        (("pair",), [1], "pair: expected `array` of length 2, got 1"),
        (("pair",), [1, 2, 3], "pair: expected `array` of length 2, got 3"),
        (("is_new",), 1, "is_new: expected `bool`, got `int`"),
        (("is_new",), "True", "is_new: expected `bool`, got `str`"),
        (("share",), 1.5, "share: expected `float` <= 1.0"),
        (("share",), "0.5", "share: expected `float`, got `str`"),
        (("share",), 10**400, "share: number out of range"),
        (("amount",), 1e200, "amount: expected `float` <= 1e+150"),
        (("amount",), 10**400, "amount: expected `int` <= 9223372036854775807"),
        (("kind",), "c", "kind: expected one of a, b"),
        (("kind",), "a\n", "kind: expected one of a, b"),
        (("kind",), "bb", "kind: expected one of a, b"),
        (("kind",), "\ud800", "kind: expected one of a, b"),
        (("digest",), DIGEST.upper(), "digest: expected `str` matching regex"),
        (("digest",), DIGEST + "\n", "digest: expected `str` matching regex"),
        (("parts",), {}, "parts: expected `array`, got `object`"),
        (("parts", 0), 3, "parts[0]: expected `object`, got `int`"),
        (("parts", 1, "name"), None, "parts[1].name: expected `str`, got `null`"),
        (("parts", 1, "size"), -1e-9, "parts[1].size: expected `float` >= 0.0"),
        (("parts", 0, "name"), deep(0, 50), "parts[0].name: expected `str`, got `array`"),
        (("counts",), [], "counts: expected `object`, got `array`"),
        (("counts", "a"), -1, "counts[...]: expected `int` >= 0"),
        (("\ud800",), 1, "'utf-8' codec can't encode character"),
    ],
)
def test_a_field_that_is_wrong_is_refused_with_its_path(place: tuple[Any, ...], value: object, problem: str) -> None:
    changed: Any = fields()
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value

    with pytest.raises(FormatError) as caught:
        read(changed)
    assert caught.value.where == "sample.json"
    assert caught.value.found.startswith(problem)
    assert (caught.value.why, caught.value.action) == (
        "the document does not follow format 'sample'",
        "Take another sample.",
    )


@pytest.mark.parametrize("name", ["parts", "pair", "counts", "kind", "share", "is_new", "digest"])
def test_a_field_that_is_missing_is_refused_by_name(name: str) -> None:
    changed = fields()
    del changed[name]

    with pytest.raises(FormatError, match=rf"sample\.json: object missing required field `{name}`; the document"):
        read(changed)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
        (SAMPLE.to_json().replace("0.1", "NaN"), "NaN is not a JSON number"),
        (SAMPLE.to_json().replace("0.1", "-Infinity"), "-Infinity is not a JSON number"),
        (SAMPLE.to_json().replace("0.1", "1" * 5000), "Exceeds the limit"),
        (SAMPLE.to_json().replace('"pair"', '"parts"'), "duplicate key 'parts'"),
        (SAMPLE.to_json().replace('"size"', '"name"'), "duplicate key 'name'"),
    ],
    ids=["empty", "cut", "deep", "nan", "infinity", "digits", "duplicate", "duplicate inside"],
)
def test_a_text_that_is_not_json_is_refused(text: str, problem: str) -> None:
    with pytest.raises(FormatError, match=rf"sample\.json: a document that is not valid JSON; {problem}"):
        Sample.from_json(text, where="sample.json")


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{}", '{"format": "other", "version": 1}', '{"format": ["sample"]}']
)
def test_a_document_of_another_format_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"a document of another format; the format must be 'sample'\. Pass a file"):
        Sample.from_json(text)


@pytest.mark.parametrize("version", [None, "one", 0, 2, 99, [1], True, 1.0])
def test_another_version_is_refused_with_the_way_to_upgrade(version: object) -> None:
    with pytest.raises(
        FormatError,
        match=r"document: format version .*; this release reads version 1\. Upgrade mpocompress: pip install -U",
    ):
        Sample.from_json(json.dumps({**fields(), "version": version}))


def test_figures_that_contradict_each_other_are_refused_with_the_place() -> None:
    with pytest.raises(ReportError, match=r"sample\.json, pair: got \(3, 2\); it must be in order\. Take another"):
        read({**fields(), "pair": [3, 2]})


def test_a_document_is_pickled_as_its_text_and_copied_as_itself() -> None:
    assert pickle.loads(pickle.dumps(SAMPLE)) == SAMPLE
    assert b"Part" not in pickle.dumps(SAMPLE)
    assert copy.copy(SAMPLE) is copy.deepcopy(SAMPLE) is SAMPLE


def test_the_schema_has_all_fields_with_their_bounds_and_descriptions() -> None:
    declared = schema(Sample)

    jsonschema.Draft202012Validator.check_schema(declared)
    jsonschema.validate(fields(), declared)
    assert declared["description"] == "A document for the tests."
    assert declared["required"] == list(declared["properties"]) == list(fields())
    properties = declared["properties"]
    assert (properties["format"]["const"], properties["version"]["const"]) == ("sample", 1)
    assert properties["share"] == {"description": "a fraction", "type": "number", "minimum": 0, "maximum": 1}
    assert properties["kind"] == {"description": "the kind", "type": "string", "enum": ["a", "b"]}
    assert declared["$defs"] == {
        "Part": {
            "title": "Part",
            "description": "A part.",
            "type": "object",
            "properties": {
                "name": {"description": "its name", "type": "string"},
                "size": {
                    "description": "how large it is, on two lines. null if it is unknown",
                    "anyOf": [{"type": "number", "minimum": 0, "maximum": 1e150}, {"type": "null"}],
                },
            },
            "required": ["name", "size"],
        }
    }


@pytest.mark.parametrize(
    "change", [{"pair": [1]}, {"share": 2}, {"kind": "c"}, {"version": 2}, {"digest": "ab"}], ids=str
)
def test_the_schema_refuses_what_the_decoder_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        read({**fields(), **change})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**fields(), **change}, schema(Sample))


def test_a_field_without_a_description_is_not_declared() -> None:
    assert field_descriptions(int) == {}

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Bare(Document):
        """No fields are described."""

        FORMAT: ClassVar[str] = "bare"
        size: int

    with pytest.raises(KeyError, match="size"):
        schema(Bare)
