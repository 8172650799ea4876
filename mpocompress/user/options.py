"""Options, declared once as fields of frozen dataclasses.

Every command has one dataclass, such as `CompressOptions`. `option` gives a field its default, help text and limits;
`check_options` checks the values; `with_keywords` turns a function of the dataclass into one of keyword arguments and
completes its docstring. The command line builds its flags from the same fields. Nothing here imports torch or click.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from mpocompress.errors import MPOCompressError

P = ParamSpec("P")
T = TypeVar("T")
First = TypeVar("First")
Second = TypeVar("Second")
Third = TypeVar("Third")
Result = TypeVar("Result")
Options = TypeVar("Options")
Options_co = TypeVar("Options_co", covariant=True)

_KEY = "option"
_LINE = 116
"""Columns of the text that is added to docstrings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The description of one option.

    Args:
        help: what it does, in one or two sentences; shown in docstrings and, without backticks, by the command line.
        details: further sentences for docstrings alone, such as values that only Python can pass.
        flag: its flag on the command line; empty for the field name with dashes, None for no flag.
        metavar: placeholder of its value in the help of the command line.
        minimum: smallest number allowed; of a sequence, for every item.
        maximum: largest number allowed.
        above: number that the value must exceed.
        below: number that the value must stay below.
        choices: values allowed; of a mapping, for every value.
        default_text: description of the default, if the value in the signature is not enough.
        syntax: name of a syntax of the command line, for values that are more than a number or a text.
        parts: option class whose fields the command line shows in place of this one.
    """

    help: str
    details: str = ""
    flag: str | None = ""
    metavar: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    default_text: str = ""
    syntax: str = ""
    parts: type | None = None


def option(
    default: T,
    *,
    help: str,  # noqa: A002 - the name that click uses
    details: str = "",
    flag: str | None = "",
    metavar: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Collection[str] = (),
    default_text: str = "",
    syntax: str = "",
    parts: type | None = None,
) -> T:
    """Declare an option: a dataclass field with a default and a description.

    Args:
        default: its default value; a dict is copied for every instance.
        help: as for `Option`, like all that follow.
        details: sentences for docstrings alone.
        flag: flag on the command line.
        metavar: placeholder of the value.
        minimum: smallest number.
        maximum: largest number.
        above: exclusive lower limit.
        below: exclusive upper limit.
        choices: values allowed.
        default_text: description of the default.
        syntax: syntax on the command line.
        parts: option class shown in place of this option.

    Returns:
        The field, typed as its value so that it fits the annotation.

    Example:
        >>> @dataclass(frozen=True, slots=True, kw_only=True)
        ... class ExampleOptions:
        ...     steps: int = option(100, help="Steps at most.", minimum=1)
        >>> ExampleOptions().steps
        100
    """
    described = Option(
        help=help,
        details=details,
        flag=flag,
        metavar=metavar,
        minimum=minimum,
        maximum=maximum,
        above=above,
        below=below,
        choices=tuple(choices),
        default_text=default_text,
        syntax=syntax,
        parts=parts,
    )
    if isinstance(default, dict):
        return cast(T, field(default_factory=cast(dict[object, object], default).copy, metadata={_KEY: described}))
    return field(default=default, metadata={_KEY: described})


def required(description: Option) -> Mapping[str, Option]:
    """Return the metadata of a field without a default: `data: object = field(metadata=required(Option(help="...")))`.

    Type checkers recognise only a direct call of `field` as a field that has no default.

    Args:
        description: the description of the option.
    """
    return {_KEY: description}


def option_of(declared: Field[Any]) -> Option:
    """Return the description of a field of an option class.

    Args:
        declared: the field.

    Raises:
        TypeError: the field was declared without `option` or `required`.
    """
    description = declared.metadata.get(_KEY)
    if not isinstance(description, Option):
        raise TypeError(f"field {declared.name!r} is declared without option(...)")
    return description


def flag_of(declared: Field[Any]) -> str | None:
    """Return the flag of an option on the command line; None if it has none.

    Args:
        declared: its field.
    """
    flag = option_of(declared).flag
    return f"--{declared.name.replace('_', '-')}" if flag == "" else flag


def type_words(declared: Field[Any]) -> frozenset[str]:
    """Return the text of a field's annotation, which is never evaluated: it may name classes of torch.

    Args:
        declared: the field.

    Example:
        >>> @dataclass
        ... class ExampleOptions:
        ...     steps: "int | None" = None
        >>> sorted(type_words(fields(ExampleOptions)[0]))
        ['None', 'int']
    """
    return frozenset(re.findall(r"\w+", str(declared.type)))


def is_sequence(declared: Field[Any]) -> bool:
    """Return whether the value of an option is a sequence, by its annotation.

    Args:
        declared: its field.
    """
    return str(declared.type).startswith(("tuple[", "Sequence["))


def default_of(declared: Field[Any]) -> Any:
    """Return the default of an option; `dataclasses.MISSING` if it is required.

    Args:
        declared: its field.
    """
    if declared.default_factory is not MISSING:
        return declared.default_factory()
    return declared.default


def keywords(options: Any) -> dict[str, Any]:
    """Return the options of a dataclass instance as keyword arguments.

    Args:
        options: an instance of an option class.
    """
    return {declared.name: getattr(options, declared.name) for declared in fields(options)}


def check_options(options: Any, error: type[MPOCompressError]) -> None:
    """Check every option against the limits and choices of its field; to be called by `__post_init__`.

    None passes where it is the default.

    Args:
        options: an instance of an option class.
        error: the class of error to raise.

    Raises:
        MPOCompressError: of that class, for the first value that is out of range, not a choice, or one string in place
            of a sequence.

    Example:
        >>> from mpocompress.errors import TargetError
        >>> @dataclass(frozen=True, slots=True, kw_only=True)
        ... class ExampleOptions:
        ...     steps: int = option(100, help="Steps at most.", minimum=1)
        ...
        ...     def __post_init__(self) -> None:
        ...         check_options(self, TargetError)
        >>> ExampleOptions(steps=0)
        Traceback (most recent call last):
            ...
        mpocompress.errors.TargetError: steps: got 0; it must be an integer of 1 or more. Pass such a value.
    """
    for declared in fields(options):
        value = getattr(options, declared.name)
        wanted = _problem(declared, value)
        if wanted:
            raise error(
                where=declared.name,
                found=f"got {value!r}",
                why=f"it must be {wanted}",
                action="Pass such a value.",
            )


def _problem(declared: Field[Any], value: object) -> str:
    """Return what a value should be; empty if it is right."""
    description, limits = option_of(declared), _limits(declared)
    if value is None and default_of(declared) is None:
        return ""
    if is_sequence(declared):
        if isinstance(value, str) or not isinstance(value, Sequence):
            return "a sequence of strings" if "str" in type_words(declared) else "a sequence"
        is_right = not limits or (len(value) > 0 and all(_is_within(number, declared) for number in value))
        return "" if is_right else f"a sequence of one or more values, each {limits}"
    if description.choices:
        values = list(value.values()) if isinstance(value, Mapping) else [value]
        return "" if all(each in description.choices for each in values) else f"one of {', '.join(description.choices)}"
    return "" if not limits or _is_within(value, declared) else limits


def _limits(declared: Field[Any]) -> str:
    """Return a description of the limits of a number; empty for an option without limits."""
    description = option_of(declared)
    least, most, above, below = description.minimum, description.maximum, description.above, description.below
    noun = "an integer" if "int" in type_words(declared) else "a number"
    given = [name for name in ("minimum", "maximum", "above", "below") if getattr(description, name) is not None]
    texts = {
        (): "",
        ("minimum",): f"{noun} of {least} or more",
        ("above",): f"{noun} above {above}",
        ("minimum", "maximum"): f"{noun} from {least} to {most}",
        ("maximum", "above"): f"{noun} above {above} and at most {most}",
        ("minimum", "below"): f"{noun} from {least} to below {below}",
    }
    if tuple(given) not in texts:
        raise TypeError(f"option {declared.name!r} combines limits that have no text")
    return texts[tuple(given)]


def _is_within(value: object, declared: Field[Any]) -> bool:
    description = option_of(declared)
    if isinstance(value, bool) or not isinstance(value, Integral if "int" in type_words(declared) else Real):
        return False
    number = float(value)
    return (
        math.isfinite(number)
        and (description.minimum is None or number >= description.minimum)
        and (description.maximum is None or number <= description.maximum)
        and (description.above is None or number > description.above)
        and (description.below is None or number < description.below)
    )


class _WithKeywords(Protocol[P, Options_co]):
    """Decorator of a function that takes one to three arguments and an option class."""

    @overload
    def __call__(
        self, function: Callable[[First, Options_co], Result], /
    ) -> Callable[Concatenate[First, P], Result]: ...

    @overload
    def __call__(
        self, function: Callable[[First, Second, Options_co], Result], /
    ) -> Callable[Concatenate[First, Second, P], Result]: ...

    @overload
    def __call__(
        self, function: Callable[[First, Second, Third, Options_co], Result], /
    ) -> Callable[Concatenate[First, Second, Third, P], Result]: ...


def with_keywords(options_class: Callable[P, Options]) -> _WithKeywords[P, Options]:
    """Give a function keyword arguments in place of its last argument, `options`.

    The result takes the fields of the option class as keyword arguments, as type checkers and `inspect.signature` show
    too. In its docstring one entry a field replaces the entry `options:`. The other arguments may be passed by position
    or by name.

    Args:
        options_class: a dataclass of options.

    Example:
        >>> @dataclass(frozen=True, slots=True, kw_only=True)
        ... class ExampleOptions:
        ...     steps: int = option(100, help="Steps at most.", minimum=1)
        >>> @with_keywords(ExampleOptions)
        ... def train(source: str, options: ExampleOptions) -> str:
        ...     return f"{source}: {options.steps} steps"
        >>> train("net.pt", steps=3)
        'net.pt: 3 steps'
    """
    declared = fields(cast(Any, options_class))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        *leading, last = own.parameters.values()
        if last.name != "options":
            raise TypeError(f"the last argument of {function.__name__} is {last.name!r}, not 'options'")
        signature = inspect.Signature([*leading, *map(_parameter, declared)], return_annotation=own.return_annotation)
        count = len(leading)

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            try:
                bound = signature.bind(*args, **named).arguments
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            given = list(bound.items())
            return function(*dict(given[:count]).values(), options_class(**dict(given[count:])))  # type: ignore[call-arg]

        call.__doc__ = documented_with(function.__doc__, declared)
        call.__annotations__ = {
            **{parameter.name: parameter.annotation for parameter in signature.parameters.values()},
            "return": own.return_annotation,
        }
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return cast(_WithKeywords[P, Options], decorate)


def option_class(decorated: type[T]) -> type[T]:
    """Complete the docstring of an option class and give it a short `repr`; a class decorator.

    In the docstring one entry a field replaces the entry `options:`. The `repr` shows the options that differ from
    their defaults.

    Args:
        decorated: a dataclass of options.
    """
    decorated.__doc__ = documented_with(decorated.__doc__, fields(cast(Any, decorated)))
    decorated.__repr__ = _short_repr  # type: ignore[method-assign]
    return decorated


def _short_repr(options: Any) -> str:
    values = ((declared, getattr(options, declared.name)) for declared in fields(options))
    shown = (f"{declared.name}={value!r}" for declared, value in values if not _is_default(declared, value))
    return f"{type(options).__name__}({', '.join(shown)})"


def _is_default(declared: Field[Any], value: object) -> bool:
    """Return whether a value is the default; values of the user's own classes may compare in their own ways."""
    default = default_of(declared)
    return value is default or (type(value) in (bool, int, float, str, tuple, dict) and value == default)


def documented_with(docstring: str | None, declared: Sequence[Field[Any]]) -> str | None:
    """Return a docstring with the entry `options:` of its section `Args:` replaced by one entry a field.

    Args:
        docstring: the docstring; None under `python -OO`.
        declared: the fields.

    Raises:
        ValueError: it has no such entry.
    """
    if docstring is None:
        return None
    text = inspect.cleandoc(docstring)
    entry = re.search(r"(?m)^    options:.*\n?(?:^ {5,}\S.*\n?)*", text)
    if entry is None:
        raise ValueError("the docstring has no entry 'options:' in its section 'Args:'")
    entries = "\n".join(map(_entry, declared))
    rest = text[entry.end() :]
    return text[: entry.start()] + entries + ("\n" + rest if rest else "")


def _entry(declared: Field[Any]) -> str:
    description = option_of(declared)
    default = f"Default: {description.default_text}." if description.default_text else ""
    text = " ".join(filter(None, (description.help, description.details, default)))
    if not text[1:2].isupper():  # an acronym
        text = text[0].lower() + text[1:]
    text = f"{declared.name}: {text}"
    return textwrap.fill(text, _LINE, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)


def _parameter(declared: Field[Any]) -> inspect.Parameter:
    default = default_of(declared)
    return inspect.Parameter(
        declared.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=declared.type,
    )
