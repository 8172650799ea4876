"""Click options built from the option classes, and options that only the command line has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from mpocompress.calibration.options import CalibrationInputs
from mpocompress.layers.selection import ForcedKind
from mpocompress.mpo.sites import MAX_SITES, MIN_SITES, SitesChoice
from mpocompress.planning.targets import TARGETS, Truncation, TruncationTarget
from mpocompress.user.options import default_of, flag_of, is_sequence, option_of, type_words

Command = TypeVar("Command", bound=Callable[..., Any])
Options = TypeVar("Options")
Value = TypeVar("Value")

EXISTING = click.Path(exists=False, dir_okay=True, path_type=str)

_MOST_DIGITS = 9
_SUFFIX = ".safetensors"
_PART = "__"
"""Joins the name of an option and that of a field of its own in the name of a click parameter."""


class SitesType(click.ParamType[SitesChoice]):
    """`auto`, `lowrank` or a number of sites."""

    name = "auto|lowrank|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SitesChoice:
        """Check the value."""
        if value in ("auto", "lowrank"):
            choice: SitesChoice = value
            return choice
        try:
            number = int(value)
        except ValueError:
            number = 0
        if not MIN_SITES <= number <= MAX_SITES:
            self.fail(f"{value!r} is not auto, lowrank or a number from {MIN_SITES} to {MAX_SITES}.", param, ctx)
        return number


class KindType(click.ParamType[tuple[ForcedKind, str]]):
    """`KIND=GLOB`."""

    name = "KIND=GLOB"

    def __init__(self, kinds: tuple[ForcedKind, ...]) -> None:
        self._kinds = kinds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[ForcedKind, str]:
        """Split the value."""
        if isinstance(value, tuple):
            return value
        text, equals, glob = str(value).partition("=")
        kind = next((kind for kind in self._kinds if kind == text), None)
        if kind is None or not equals or not glob:
            self.fail(f"{value!r} is not KIND=GLOB with a KIND of {', '.join(self._kinds)}.", param, ctx)
        return kind, glob


class IntegersType(click.ParamType[tuple[int, ...]]):
    """`1,32`: integers of 1 or more."""

    name = "N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Split the value."""
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        if not all(word.isascii() and word.isdigit() and len(word) < _MOST_DIGITS and int(word) for word in words):
            self.fail(f"{value!r} is not a list of integers of 1 or more, such as 1,32.", param, ctx)
        return tuple(dict.fromkeys(map(int, words)))


class TextsType(click.ParamType[tuple[int, int]]):
    """`LENGTH` or `LENGTHxBATCHES`."""

    name = "LENGTH[xBATCHES]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Split the value."""
        if isinstance(value, tuple):
            return value
        length, _, batches = str(value).partition("x")
        words = (length, batches or "64")
        if not all(word.isascii() and word.isdigit() and len(word) < _MOST_DIGITS for word in words):
            self.fail(
                f"{value!r} is not a length in tokens, such as 128, or 128x64 for 64 batches of them.", param, ctx
            )
        return int(words[0]), int(words[1])


class TargetType(click.ParamType[float]):
    """The value of a target."""

    def __init__(self, target: type[TruncationTarget]) -> None:
        self.name, self._target = target.metavar, target

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Check the value."""
        if not isinstance(value, str):
            return float(value)
        try:
            return self._target.parse(value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}.", param, ctx)


class BondType(click.ParamType[tuple[str | None, int]]):
    """`N`, or `GLOB=N` for the layers that match."""

    name = "N|GLOB=N"

    def __init__(self, target: type[TruncationTarget]) -> None:
        self._target = target

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, int]:
        """Split the value."""
        if isinstance(value, tuple):
            return value
        glob, equals, number = str(value).rpartition("=")
        try:
            bond = int(self._target.parse("" if equals and not glob else number))
        except ValueError as error:
            self.fail(f"{value!r} is not a bond ({error}), nor GLOB=N.", param, ctx)
        return glob or None, bond


@dataclass(frozen=True, slots=True, kw_only=True)
class _Syntax:
    """How the values of an option are written.

    Args:
        type: reads one value.
        multiple: whether the flag may be repeated.
        combine: what becomes of the value, or of the values of a repeated flag.
        written: writes a default.
    """

    type: click.ParamType[Any]
    multiple: bool = False
    combine: Callable[[Any], Any] = lambda value: value
    written: Callable[[Any], Any] = lambda value: value


def _syntax(declared: Field[Any]) -> _Syntax:
    """Return how the values of an option are written: its own syntax, or the one of its type."""
    description = option_of(declared)
    words = type_words(declared)
    match description.syntax:
        case "sites":
            return _Syntax(type=SitesType())
        case "integers":
            return _Syntax(type=IntegersType(), written=lambda numbers: ",".join(map(str, numbers)))
        case "kinds":
            kinds: Any = description.choices
            return _Syntax(
                type=KindType(kinds),
                multiple=True,
                combine=lambda pairs: last_wins((glob, kind) for kind, glob in pairs),
            )
    if description.choices:
        return _Syntax(type=click.Choice(description.choices))
    if words <= {"int", "None"}:
        return _Syntax(type=click.IntRange(_whole(description.minimum), _whole(description.maximum)))
    if words <= {"float", "None"}:
        least = description.minimum if description.above is None else description.above
        most = description.maximum if description.below is None else description.below
        limits = click.FloatRange(
            least, most, min_open=description.above is not None, max_open=description.below is not None
        )
        return _Syntax(type=limits)
    return _Syntax(type=click.STRING, multiple=is_sequence(declared))


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def declared_options(options_class: type, path: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Yield the fields of an option class that have flags, and those of its parts, with the names of their parameters.

    Args:
        options_class: the class.
        path: what the names begin with.
    """
    for declared in fields(options_class):
        parts = option_of(declared).parts
        if parts is not None:
            yield from declared_options(parts, f"{path}{declared.name}{_PART}")
        elif flag_of(declared) is not None:
            yield f"{path}{declared.name}", declared


def options_of(options_class: type, *, without: Iterable[str] = ()) -> Callable[[Command], Command]:
    """Return a decorator that gives a command the options of a class.

    Args:
        options_class: the class.
        without: names of parameters that the command does not have.
    """
    left_out = set(without)

    def decorate(command: Command) -> Command:
        for name, declared in reversed(list(declared_options(options_class))):
            if name not in left_out:
                command = _click_option(name, declared)(command)
        return command

    return decorate


def _click_option(name: str, declared: Field[Any]) -> Callable[[Command], Command]:
    description, default, flag = option_of(declared), default_of(declared), flag_of(declared) or ""
    text = description.help.replace("`", "") + (
        f"  [default: {description.default_text}]" if description.default_text else ""
    )
    if str(declared.type) == "bool":
        return click.option(flag, name, is_flag=True, help=text)
    syntax = _syntax(declared)
    is_shown = default is not MISSING and not isinstance(default, bool) and default not in (None, (), {})
    return click.option(
        flag,
        name,
        type=syntax.type,
        multiple=syntax.multiple,
        metavar=description.metavar or None,
        help=text,
        **({"default": syntax.written(default), "show_default": True} if is_shown else {}),
    )


def build(options_class: Callable[..., Options], values: Mapping[str, Any], **others: Any) -> Options:
    """Build the options of a class from the parsed values of a command.

    Args:
        options_class: the class.
        values: parameter name -> value; those of other classes are ignored.
        others: options that the command line computes itself.

    Raises:
        click.UsageError: options of a calibration that do not go together.
    """
    return options_class(**_arguments(options_class, values), **others)


def _arguments(options_class: Any, values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the options of a class that were given."""
    arguments = {}
    for declared in fields(options_class):
        name, parts = f"{path}{declared.name}", option_of(declared).parts
        if parts is CalibrationInputs:
            arguments[declared.name] = _calibration(values, f"{name}{_PART}")
        elif parts is not None:
            arguments[declared.name] = parts(**_arguments(parts, values, f"{name}{_PART}"))
        elif values.get(name) not in (None, ()):
            is_flag = str(declared.type) == "bool"
            arguments[declared.name] = values[name] if is_flag else _syntax(declared).combine(values[name])
    return arguments


def _calibration(values: Mapping[str, Any], path: str) -> CalibrationInputs | Path | None:
    """Return the calibration inputs or the calibration file of a command line."""
    arguments = _arguments(CalibrationInputs, values, path)
    batches = arguments.pop("batches", None)
    asked = [flag_of(declared) or "" for declared in fields(CalibrationInputs) if declared.name in arguments]
    asked += ["--save-calibration"] if values.get("save_calibration") is not None else []
    if batches is None:
        if asked:
            raise click.UsageError(f"{' and '.join(asked)} only with --calibrate: give it too.")
        return None
    if batches.endswith(_SUFFIX):
        if asked:
            raise click.UsageError(f"{' and '.join(asked)} cannot be combined with a saved calibration, {batches}.")
        return Path(batches)
    if values.get("model") is None:
        raise click.UsageError("--calibrate runs your model: also give --model net.py:build.")
    return CalibrationInputs(batches=batches, **arguments)


def target_options(command: Command) -> Command:
    """Give a command the options of the targets."""
    for target in reversed(TARGETS.values()):
        command = click.option(
            target.flag,
            target.name,
            type=BondType(target) if target.takes_globs else TargetType(target),
            multiple=target.takes_globs,
            help=f"Target: {target.help[0].lower()}{target.help[1:]}"
            + (" GLOB=N applies to matching layers." if target.takes_globs else ""),
        )(command)
    return command


def truncation_of(values: Mapping[str, Any], source: str) -> Truncation:
    """Return the one target that the options ask for.

    Args:
        values: parameter name -> value.
        source: the checkpoint, for the message.

    Raises:
        click.UsageError: no target or several.
    """
    given = [target for target in TARGETS.values() if values[target.name] not in (None, ())]
    if not given:
        lines = [f"  {f'{target.flag} {target.metavar}':<17}{target.help}" for target in TARGETS.values()]
        raise click.UsageError(
            "\n".join(
                (
                    "Give exactly one target:",
                    *lines,
                    f"`mpocompress plan {source}` shows what each of them would give.",
                )
            )
        )
    if len(given) > 1:
        flags = " and ".join(target.flag for target in given)
        raise click.UsageError(f"Give exactly one target, not {flags}.")
    (target,) = given
    if not target.takes_globs:
        return Truncation(**{target.name: values[target.name]})
    bonds: tuple[tuple[str | None, int], ...] = values[target.name]
    bonds_for_all = [bond for glob, bond in bonds if glob is None]
    if len(bonds_for_all) > 1:
        raise click.UsageError(
            f"--bond is given {len(bonds_for_all)} times for all layers: give it once, or as 'GLOB=N'."
        )
    return Truncation(
        max_bond=bonds_for_all[0] if bonds_for_all else None,
        bond_by_layer=last_wins((glob, bond) for glob, bond in bonds if glob is not None),
    )


def last_wins(pairs: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Return a mapping in which a repeated key has the position and the value of its last occurrence.

    Args:
        pairs: key and value.
    """
    mapping: dict[str, Value] = {}
    for key, value in pairs:
        mapping.pop(key, None)
        mapping[key] = value
    return mapping


def source_argument(metavar: str) -> Callable[[Command], Command]:
    """Return the argument that names the checkpoint.

    Args:
        metavar: its name in the help.
    """
    return click.argument("source", type=EXISTING, metavar=metavar)


def output_option(*, required: bool = False) -> Callable[[Command], Command]:
    """Return the option that names the output.

    Args:
        required: whether click refuses a command line without it.
    """
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=str),
        required=required,
        help="Output: *.safetensors, a torch file, or a folder.",
    )


def json_option(command: Command) -> Command:
    """Give a command the option that prints JSON."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")(command)


def dry_run_option(text: str) -> Callable[[Command], Command]:
    """Return the option `--dry-run`.

    Args:
        text: its help.
    """
    return click.option("--dry-run", is_flag=True, help=text)
