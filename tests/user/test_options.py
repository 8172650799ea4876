"""Options are declared once; checks, signatures and docstrings follow from the fields."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, assert_type, get_args

import pytest

from mpocompress.errors import SelectionError, TargetError
from mpocompress.user.options import (
    Option,
    check_options,
    default_of,
    documented_with,
    flag_of,
    is_sequence,
    keywords,
    option,
    option_class,
    option_of,
    required,
    with_keywords,
)

Shape = Literal["round", "square"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A nested option class."""

    size: int = option(3, help="Size.", minimum=1)


@option_class
@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleOptions:
    """Options of an example.

    Args:
        options: the fields.

    Raises:
        TargetError: a value out of range.
    """

    data: object = field(metadata=required(Option(help="Batches.", metavar="FILE")))
    steps: int | None = option(None, help="Steps at most.", minimum=1, default_text="1000")
    rate: float = option(0.5, help="Step size.", above=0)
    share: float = option(1, help="Share of the teacher.", minimum=0, maximum=1)
    keep: float | None = option(None, help="Fraction to keep.", above=0, maximum=1)
    error: float | None = option(None, help="Largest error.", minimum=0, below=1)
    shape: Shape = option("round", help="Shape.", choices=get_args(Shape), flag="--form")
    kinds: Mapping[str, Shape] = option({}, help="Kinds.", choices=get_args(Shape))
    layers: Sequence[str] = option((), help="Layers.", details="Globs of names.")
    batches: Sequence[int] = option((1, 32), help="Batch sizes.", minimum=1)
    part: Part = option(Part(), help="Part.", parts=Part)
    quiet: bool = option(False, help="Print nothing.", flag=None)

    def __post_init__(self) -> None:
        """Check the values."""
        check_options(self, TargetError)


@with_keywords(ExampleOptions)
def train(source: str, target: str, options: ExampleOptions) -> tuple[str, str, ExampleOptions]:
    """Train.

    Args:
        source: what to read.
        target: what to write.
        options: see `ExampleOptions`, whose
            fields are keywords.

    Returns:
        Everything.
    """
    return source, target, options


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("steps", 0, "an integer of 1 or more"),
        ("steps", 1.5, "an integer of 1 or more"),
        ("steps", True, "an integer of 1 or more"),
        ("steps", "3", "an integer of 1 or more"),
        ("rate", 0.0, "a number above 0"),
        ("rate", math.inf, "a number above 0"),
        ("rate", math.nan, "a number above 0"),
        ("rate", None, "a number above 0"),
        ("share", -0.1, "a number from 0 to 1"),
        ("share", 1.1, "a number from 0 to 1"),
        ("keep", 0, "a number above 0 and at most 1"),
        ("keep", 1.1, "a number above 0 and at most 1"),
        ("error", -0.1, "a number from 0 to below 1"),
        ("error", 1, "a number from 0 to below 1"),
        ("shape", "oval", "one of round, square"),
        ("kinds", {"a": "round", "b": "oval"}, "one of round, square"),
        ("layers", "lstm", "a sequence of strings"),
        ("batches", 3, "a sequence"),
        ("batches", (), "a sequence of one or more values, each an integer of 1 or more"),
        ("batches", (1, 0), "a sequence of one or more values, each an integer of 1 or more"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(TargetError) as caught:
        ExampleOptions(data=1, **{name: value})

    assert str(caught.value) == f"{name}: got {value!r}; it must be {wanted}. Pass such a value."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", None),
        ("steps", 1),
        ("rate", 1e-9),
        ("share", 0),
        ("share", 1.0),
        ("keep", 1),
        ("error", 0.0),
        ("shape", "square"),
        ("kinds", {"a": "round"}),
        ("layers", ["a", "b"]),
        ("layers", ()),
        ("batches", [7]),
    ],
)
def test_a_value_in_range_is_kept(name: str, value: Any) -> None:
    assert getattr(ExampleOptions(data=1, **{name: value}), name) == value


def test_the_error_class_is_the_one_passed() -> None:
    with pytest.raises(SelectionError, match=r"size: got 0; it must be an integer of 1 or more\."):
        check_options(Part(size=0), SelectionError)


def test_limits_without_a_text_are_a_mistake_of_the_declaration() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Odd:
        number: float = option(1.5, help="Number.", above=1, below=2)

    with pytest.raises(TypeError, match="option 'number' combines limits that have no text"):
        check_options(Odd(), TargetError)


def test_a_field_without_a_description_is_a_mistake_of_the_declaration() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Odd:
        number: int = 1

    with pytest.raises(TypeError, match=r"field 'number' is declared without option\(\.\.\.\)"):
        option_of(fields(Odd)[0])


def test_flags_follow_the_field_names() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        max_error: float = option(0.1, help="Error.")
        overwrite: bool = option(False, help="Replace.", flag="--force")
        progress: object = option(None, help="Callback.", flag=None)

    assert [flag_of(each) for each in fields(Named)] == ["--max-error", "--force", None]


def test_sequences_are_known_by_their_annotations() -> None:
    assert {each.name for each in fields(ExampleOptions) if is_sequence(each)} == {"layers", "batches"}


def test_a_dict_default_is_not_shared() -> None:
    by_name = {each.name: each for each in fields(ExampleOptions)}
    first, second = ExampleOptions(data=1), ExampleOptions(data=1)

    assert first.kinds == second.kinds == default_of(by_name["kinds"]) == {}
    assert first.kinds is not second.kinds


def test_keyword_arguments_become_the_options() -> None:
    source, target, options = train("a.pt", "b.pt", data=[1], steps=3)

    assert (source, target) == ("a.pt", "b.pt")
    assert options == ExampleOptions(data=[1], steps=3)


def test_arguments_may_be_passed_by_name() -> None:
    untyped: Any = train
    expected = train("a.pt", "b.pt", data=1)

    assert untyped(target="b.pt", data=1, source="a.pt") == expected
    assert untyped("a.pt", data=1, target="b.pt") == expected


def test_options_pass_through_as_keywords() -> None:
    options = ExampleOptions(data=1, shape="square")

    assert train("a.pt", "b.pt", **keywords(options))[2] == options


def test_types_are_those_of_the_function_and_of_the_class() -> None:
    assert_type(train("a.pt", "b.pt", data=1), tuple[str, str, ExampleOptions])
    with pytest.raises(TypeError, match=r"^train\(\) missing a required (keyword-only )?argument: 'data'$"):
        train("a.pt", "b.pt")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^train\(\) got an unexpected keyword argument 'stps'$"):
        train("a.pt", "b.pt", data=1, stps=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^train\(\) too many positional arguments$"):
        train("a.pt", "b.pt", 3, data=1)  # type: ignore[misc]
    with pytest.raises(TargetError, match="steps"):
        train("a.pt", "b.pt", data=1, steps="3")  # type: ignore[arg-type]


def test_one_and_three_arguments_are_taken_too() -> None:
    @with_keywords(Part)
    def alone(source: str, options: Part) -> int:
        """Return the size.

        Args:
            source: what to read.
            options: fields.
        """
        return len(source) + options.size

    @with_keywords(Part)
    def three(source: str, inputs: int, model: float, options: Part) -> float:
        """Return the sum.

        Args:
            source: what to read.
            inputs: a number.
            model: a number.
            options: fields.
        """
        return len(source) + inputs + model + options.size

    assert assert_type(alone("ab", size=2), int) == 4
    assert assert_type(three("ab", 1, 0.5, size=2), float) == 5.5


def test_the_signature_shows_every_keyword_with_its_default() -> None:
    shown = inspect.signature(train)

    assert list(shown.parameters) == ["source", "target", *(each.name for each in fields(ExampleOptions))]
    assert shown.parameters["data"].default is inspect.Parameter.empty
    assert shown.parameters["rate"].default == 0.5
    assert shown.parameters["kinds"].default == {}
    assert shown.parameters["steps"].annotation == "int | None"
    assert {each.kind for each in list(shown.parameters.values())[2:]} == {inspect.Parameter.KEYWORD_ONLY}


def test_the_docstring_shows_every_keyword() -> None:
    assert (train.__doc__ or "").splitlines()[2:10] == [
        "Args:",
        "    source: what to read.",
        "    target: what to write.",
        "    data: batches.",
        "    steps: steps at most. Default: 1000.",
        "    rate: step size.",
        "    share: share of the teacher.",
        "    keep: fraction to keep.",
    ]
    assert "    layers: layers. Globs of names.\n" in (train.__doc__ or "")
    assert (train.__doc__ or "").endswith("    quiet: print nothing.\n\nReturns:\n    Everything.")
    assert "options" not in (train.__doc__ or "")


def test_the_docstring_of_an_option_class_shows_its_fields() -> None:
    assert (ExampleOptions.__doc__ or "").startswith("Options of an example.\n\nArgs:\n    data: batches.\n    steps: ")


def test_the_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(ExampleOptions(data=[1])) == "ExampleOptions(data=[1])"
    assert repr(ExampleOptions(data=0, steps=3, layers=["a"])) == "ExampleOptions(data=0, steps=3, layers=['a'])"
    assert repr(ExampleOptions(data=0, batches=(1, 32), rate=0.5, kinds={})) == "ExampleOptions(data=0)"


def test_an_acronym_keeps_its_capitals() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Acronym:
        lstm: int = option(1, help="LSTM weights.")

    assert (
        documented_with("A.\n\nArgs:\n    options: fields.", fields(Acronym)) == "A.\n\nArgs:\n    lstm: LSTM weights."
    )


def test_long_entries_are_wrapped() -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Long:
        number: int = option(1, help="word " * 40)

    lines = (documented_with("A.\n\nArgs:\n    options: fields.", fields(Long)) or "").splitlines()

    assert [line[:9] for line in lines[3:]] == ["    numbe", "        w"]
    assert max(map(len, lines)) <= 116


def test_a_docstring_without_a_place_for_the_options_is_a_mistake() -> None:
    assert documented_with(None, fields(Part)) is None
    with pytest.raises(ValueError, match="no entry 'options:'"):
        documented_with("A.\n\nArgs:\n    source: options of another kind.", fields(Part))


def test_the_last_argument_is_called_options() -> None:
    with pytest.raises(TypeError, match="the last argument of wrong is 'part', not 'options'"):

        @with_keywords(Part)
        def wrong(source: str, part: Part) -> int:
            return part.size
