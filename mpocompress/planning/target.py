"""The one truncation rule: singular values in, bond and discarded weight out; and what a caller may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mpocompress.errors import TargetError
from mpocompress.layers.names import matches

LARGEST = 10**15


TargetKind = Literal["bond", "energy", "max_error", "keep", "max_params"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """What a compression must reach. Exactly one target; bonds for single layers may come on top of a bond cap.

    Args:
        max_bond: cap of every bond, 1 or more.
        energy: fraction of the sum of squared singular values to keep in every matrix, in (0, 1]. The same as
            `max_error = sqrt(1 - energy)`.
        max_error: largest relative error (Frobenius norm, against the dense weight) of every matrix, in [0, 1).
        keep: fraction of the eligible parameters to keep, over all layers together, in (0, 1].
        max_params: largest number of parameters of the whole compressed model, 1 or more.
        bond_by_layer: glob of layer or tensor names -> cap for those alone; the last match wins. Only with, or
            instead of, `max_bond`: layers that no glob matches are then left dense.

    Raises:
        TargetError: none or several targets, or a value out of range.

    Example:
        >>> Truncation(keep=0.25).kind
        'keep'
    """

    max_bond: int | None = None
    energy: float | None = None
    max_error: float | None = None
    keep: float | None = None
    max_params: int | None = None
    bond_by_layer: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_budget(self) -> bool:
        """Whether it is one number of parameters for all matrices together."""
        return self.keep is not None or self.max_params is not None

    def __post_init__(self) -> None:
        """Check that there is exactly one target and that it can be met by something."""
        given = [
            kind for kind in ("bond", "energy", "max_error", "keep", "max_params") if self._value(kind) is not None
        ]
        if self.bond_by_layer and not given:
            given = ["bond"]
        if len(given) != 1:
            raise TargetError(
                where="truncation target",
                found="none given" if not given else f"{len(given)} given ({', '.join(given)})",
                why="a compression has exactly one",
                action="Give one of: bond, energy, max_error, keep, max_params.",
            )
        if self.bond_by_layer and given != ["bond"]:
            raise TargetError(
                where="truncation target",
                found=f"bonds for single layers together with {given[0]}",
                why=f"{given[0]} chooses every bond itself",
                action="Give bonds for single layers only with a bond cap, or alone.",
            )
        for name, value in (("bond", self.max_bond), ("max_params", self.max_params), *self.bond_by_layer.items()):
            _check(
                name,
                value,
                "an integer of 1 or more, below 1e15",
                value is None or (type(value) is int and 1 <= value < LARGEST),
            )
        for name, fraction in (("energy", self.energy), ("keep", self.keep)):
            _check(name, fraction, "a number above 0 and at most 1", fraction is None or 0 < fraction <= 1)
        _check(
            "max_error", self.max_error, "a number from 0 to below 1", self.max_error is None or 0 <= self.max_error < 1
        )

    @property
    def kind(self) -> TargetKind:
        """Which target was given."""
        kinds: tuple[TargetKind, ...] = ("energy", "max_error", "keep", "max_params")
        return next((kind for kind in kinds if self._value(kind) is not None), "bond")

    @property
    def asked(self) -> float | None:
        """The value of the target; None when there are only bonds for single layers."""
        return self._value(self.kind)

    @property
    def error_budget(self) -> float | None:
        """The relative error that an energy or error target allows in every matrix; None for other targets."""
        if self.energy is not None:
            return math.sqrt(1.0 - self.energy)
        return self.max_error

    def bond_cap(self, *names: str) -> int | None:
        """The cap for a matrix known under these names.

        Args:
            names: names of the layer and of its tensors.

        Returns:
            The cap, or None when no bond was asked for it.
        """
        for pattern, bond in reversed(tuple(self.bond_by_layer.items())):
            if any(matches(pattern, name) for name in names):
                return bond
        return self.max_bond

    def _value(self, kind: str) -> float | None:
        value: float | None = getattr(self, "max_bond" if kind == "bond" else kind)
        return value


def _check(name: str, value: object, wanted: str, holds: bool) -> None:
    if not holds:
        raise TargetError(where=name, found=f"got {value}", why=f"it must be {wanted}", action="Give such a value.")


PLAN_TARGETS = (
    *(Truncation(max_bond=bond) for bond in (4, 8, 16, 32, 64, 128)),
    *(Truncation(keep=1 / times) for times in (2, 4, 8, 16, 32)),
)
"""The targets of a plan by default."""

_MOST_DIGITS = 9


def _integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:_MOST_DIGITS])) or len(text) > _MOST_DIGITS:
        raise ValueError("an integer of 1 or more")
    return int(text)


def _error(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < 1:
        raise ValueError("a number from 0 to below 1")
    return number


def _fraction(text: str) -> float:
    above, slash, below = text.partition("/")
    try:
        number = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        number = math.nan
    if not 0 < number <= 1:
        raise ValueError("a number above 0 and at most 1, such as 1/8")
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOption:
    """A target on the command line.

    Args:
        name: argument of `Truncation`.
        flag: its flag.
        metavar: placeholder of its value.
        help: what it does.
        parse: reads its value; raises ValueError with what the value should be.
    """

    name: str
    flag: str
    metavar: str
    help: str
    parse: Callable[[str], float]


TARGETS = (
    TargetOption(name="max_bond", flag="--bond", metavar="N", help="Largest bond.", parse=_integer),
    TargetOption(
        name="energy",
        flag="--energy",
        metavar="E",
        help="Fraction of the squared singular values to keep in every matrix.",
        parse=_fraction,
    ),
    TargetOption(
        name="max_error",
        flag="--max-error",
        metavar="E",
        help="Largest relative error of every matrix.",
        parse=_error,
    ),
    TargetOption(
        name="keep",
        flag="--keep",
        metavar="F",
        help="Fraction of the eligible parameters to keep, over all layers.",
        parse=_fraction,
    ),
    TargetOption(
        name="max_params",
        flag="--max-params",
        metavar="N",
        help="Largest number of parameters of the whole model.",
        parse=_integer,
    ),
)
"""The targets, of which exactly one is given."""
