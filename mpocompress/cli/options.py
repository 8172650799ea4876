"""Options that several commands share, and the values they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

import mpocompress
from mpocompress.layers.specs import MIN_SIDE
from mpocompress.mpo.sites import MAX_SITES, MIN_SITES, SitesChoice
from mpocompress.reports.calibration import OUTPUT_KINDS

if TYPE_CHECKING:
    from mpocompress.calibration.calibrate import CalibrationSource
    from mpocompress.layers.selection import ForcedKind, LSTMChoice, Selection
    from mpocompress.reports.calibration import OutputKind

Command = TypeVar("Command", bound=Callable[..., Any])
Value = TypeVar("Value")

LONGEST_BOND = 9
"""Digits of a bond that is still meant."""

EXISTING = click.Path(exists=False, dir_okay=True, path_type=str)


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


class BondType(click.ParamType[tuple[str | None, int]]):
    """`N`, or `GLOB=N` for the layers that match."""

    name = "N|GLOB=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str | None, int]:
        """Split the value."""
        if isinstance(value, tuple):
            return value
        glob, equals, number = str(value).rpartition("=")
        if not (number.isascii() and number.isdigit() and len(number) <= LONGEST_BOND) or (equals and not glob):
            number = "0"
        if int(number) < 1:
            self.fail(f"{value!r} is not a bond (an integer of 1 or more), nor GLOB=N.", param, ctx)
        return glob or None, int(number)


class KindType(click.ParamType[tuple[str, str]]):
    """`KIND=GLOB`."""

    name = "KIND=GLOB"
    kinds = ("lstm", "linear", "conv1d", "embedding")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split the value."""
        if isinstance(value, tuple):
            return value
        kind, equals, glob = str(value).partition("=")
        if kind not in self.kinds or not equals or not glob:
            self.fail(f"{value!r} is not KIND=GLOB with a KIND of {', '.join(self.kinds)}.", param, ctx)
        return kind, glob


class FractionType(click.ParamType[float]):
    """A number above 0 and at most 1; `1/8` is understood."""

    name = "F"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Check the value."""
        if isinstance(value, float):
            return value
        above, slash, below = str(value).partition("/")
        try:
            number = float(above) / float(below) if slash else float(above)
        except (ValueError, ZeroDivisionError):
            number = float("nan")
        if not 0 < number <= 1:
            self.fail(f"{value!r} is not a number above 0 and at most 1.", param, ctx)
        return number


def shape_options(command: Command) -> Command:
    """Options that say in what form, and with how many hands."""
    for option in reversed(
        (
            click.option(
                "--sites", type=SitesType(), default="auto", show_default=True, help="Site shape of the MPOs."
            ),
            click.option(
                "--lstm",
                type=click.Choice(["auto", "joint", "separate"]),
                default="auto",
                show_default=True,
                help="LSTM weights as one matrix [W_ih W_hh], or apart.",
            ),
            click.option(
                "--jobs", type=click.IntRange(min=1), help="Matrices at a time.  [default: the number of cores]"
            ),
        )
    ):
        command = option(command)
    return command


def layer_options(command: Command) -> Command:
    """Options that say which layers, and what they are."""
    for option in reversed(
        (
            click.option("--include", metavar="GLOB", multiple=True, help="Only these layers or tensors."),
            click.option("--exclude", metavar="GLOB", multiple=True, help="Leave these layers or tensors dense."),
            click.option(
                "--as",
                "kinds",
                type=KindType(),
                multiple=True,
                help="Treat tensors as lstm, linear, conv1d or embedding.",
            ),
            click.option(
                "--min-side",
                type=click.IntRange(min=1),
                default=MIN_SIDE,
                show_default=True,
                help="Leave matrices with a smaller side dense.",
            ),
            click.option(
                "--allow-pickle",
                is_flag=True,
                help="Load a pickle by RUNNING the code in it: only if you trust it.",
            ),
            click.option(
                "--model",
                "own_model",
                metavar="PLACE:NAME",
                help="Your own model, to tell layers by their classes and to --calibrate; file.py:name or "
                "package.module:name is imported and run.",
            ),
            click.option("--key", metavar="NAME", help="Where the state dict sits in a nested checkpoint."),
        )
    ):
        command = option(command)
    return command


def data_options(command: Command) -> Command:
    """Options that say what the model is run with."""
    for option in reversed(
        (
            click.option(
                "--calibrate",
                metavar="PLACE:NAME|FILE",
                help="Run --model on these inputs, and keep what matters to its output; or what was measured before.",
            ),
            click.option("--samples", type=click.IntRange(min=1), metavar="N", help="Samples at most.  [default: 512]"),
            click.option(
                "--kind",
                "output_kind",
                type=click.Choice(OUTPUT_KINDS),
                help="What the model puts out.  [default: told from its outputs]",
            ),
            click.option(
                "--loss",
                metavar="PLACE:NAME",
                help="Loss of output and target; batches are then pairs.  [default: none, no labels needed]",
            ),
            click.option(
                "--save-calibration",
                metavar="FILE",
                help="Keep what was measured, for other budgets: *.safetensors.",
            ),
        )
    ):
        command = option(command)
    return command


def calibration(
    calibrate: str | None,
    samples: int | None,
    output_kind: OutputKind | None,
    loss: str | None,
    save_calibration: str | None,
    own_model: str | None,
) -> CalibrationSource | None:
    """The calibration that the options ask for."""
    given = {"--samples": samples, "--kind": output_kind, "--loss": loss, "--save-calibration": save_calibration}
    asked = [name for name, value in given.items() if value is not None]
    if calibrate is None:
        if asked:
            raise click.UsageError(f"{' and '.join(asked)}: of what? Give --calibrate.")
        return None
    if calibrate.endswith(".safetensors"):
        if asked:
            raise click.UsageError(f"{' and '.join(asked)}: {calibrate} was measured already.")
        return calibrate
    if own_model is None:
        raise click.UsageError("--calibrate runs your model: give --model net.py:build too.")
    return mpocompress.CalibrationInputs(batches=calibrate, samples=samples, kind=output_kind, loss=loss)


def selection(
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    kinds: tuple[tuple[ForcedKind, str], ...],
    min_side: int,
    lstm: LSTMChoice = "auto",
) -> Selection:
    """The selection that the options ask for."""
    return mpocompress.Selection(
        include=include,
        exclude=exclude,
        kinds=last_wins((glob, kind) for kind, glob in kinds),
        min_side=min_side,
        lstm=lstm,
    )


def last_wins(pairs: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """A mapping in the order of the last mention, so that a glob given twice counts where it was given last."""
    found: dict[str, Value] = {}
    for key, value in pairs:
        found.pop(key, None)
        found[key] = value
    return found


def json_option(command: Command) -> Command:
    """The option for output that programs read."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")(command)


def force_option(command: Command) -> Command:
    """The option that allows replacing a file."""
    return click.option("--force", is_flag=True, help="Replace an existing output.")(command)
