"""Targets of a truncation, one class per kind.

A target limits the bonds of a matrix, its error, or the parameters of all matrices together; `choose_bonds` has one
algorithm for each of these limits. Everything else that depends on the kind of a target is in its class. To add a
target, add a class: `Truncation` then takes its name, and the command line, the engine, plans and reports use it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from numbers import Real
from types import MappingProxyType
from typing import ClassVar, TypedDict, TypeGuard, Unpack, cast

from mpocompress.errors import TargetError
from mpocompress.layers.names import matches
from mpocompress.reports.matrix import MatrixReport
from mpocompress.reports.plan import PlannedMatrix

Matrices = Sequence[MatrixReport] | Sequence[PlannedMatrix]

TARGETS: dict[str, type[TruncationTarget]] = {}
"""Kind -> class, in the order of their definition."""

BUDGET_EXCEEDED = "The budget is exceeded, because some matrices had to be kept dense."
NOTHING_COMPRESSED = "No matrix could be made smaller under this target; all were kept dense."

_MOST_DIGITS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit on parameters.

    Args:
        parameters: limit for the layers that can be compressed, together.
        outside: parameters of the rest of the model, if the target counts them too.
    """

    parameters: int
    outside: int


@dataclass(frozen=True, slots=True)
class TruncationTarget(ABC):
    """A kind of target, with its value; every subclass is registered in `TARGETS`.

    A subclass overrides `error_limit`, `budget`, or `bond_cap` and `largest_bond`, whichever it limits.

    Args:
        value: the value asked for.

    Raises:
        TargetError: the value is out of range.
    """

    value: float | None

    kind: ClassVar[str]
    """Name of the kind in documents."""
    name: ClassVar[str]
    """Argument of `Truncation`."""
    title: ClassVar[str]
    """Name in tables."""
    flag: ClassVar[str]
    """Flag on the command line."""
    metavar: ClassVar[str]
    """Placeholder of the value in the help of the command line."""
    help: ClassVar[str]
    """Help text of the command line."""
    allowed: ClassVar[str]
    """Description of the allowed values."""
    takes_globs: ClassVar[bool] = False
    """Whether individual layers can have different values, as GLOB=VALUE on the command line."""
    is_whole: ClassVar[bool] = False
    """Whether the value is an integer."""
    is_budget: ClassVar[bool] = False
    """Whether the bonds of all matrices are chosen together."""
    is_countable: ClassVar[bool] = False
    """Whether the number of remaining parameters follows from shapes alone."""

    def __init_subclass__(cls) -> None:
        """Register the class."""
        TARGETS[cls.kind] = cls

    def __post_init__(self) -> None:
        """Check the value."""
        _check(self.name, self.value, self.allowed, self.accepts(self.value))

    @classmethod
    @abstractmethod
    def accepts(cls, value: object) -> bool:
        """Return whether a value is in range."""

    @classmethod
    def parse(cls, text: str) -> float:
        """Read a value from text, such as `16`, `0.25` or `1/4`.

        Args:
            text: the text.

        Raises:
            ValueError: a description of the allowed values.

        Example:
            >>> Keep.parse("1/4"), MaxBond.parse("16")
            (0.25, 16)
        """
        value = _integer(text) if cls.is_whole else _fraction(text)
        if value is None or not cls.accepts(value):
            raise ValueError(cls.allowed)
        return value

    @property
    def by_layer(self) -> Mapping[str, int]:
        """Bond caps of single layers: glob -> cap."""
        return MappingProxyType({})

    @property
    def largest_bond(self) -> int | None:
        """The largest bond cap; None if bonds are not capped."""
        return None

    def bond_cap(self, *names: str) -> int | None:
        """Return the bond cap of a matrix; None if it has none.

        Args:
            names: names of its layer and of its tensors.
        """
        return None

    @property
    def error_limit(self) -> float | None:
        """The largest relative error of every matrix; None if errors are not limited."""
        return None

    def budget(self, *, eligible: int, other: int) -> Budget | None:
        """Return the limit on the parameters of all matrices together; None if there is none.

        Args:
            eligible: parameters of the layers that can be compressed.
            other: parameters of the rest of the model.
        """
        return None

    @abstractmethod
    def achieved(self, matrices: Matrices, parameters: int | None) -> float | None:
        """Return the figure that the target is about, from the finished or planned matrices.

        Args:
            matrices: every eligible matrix.
            parameters: parameters of the whole model; None if the target cannot be met.

        Returns:
            The figure, to be compared with `value`; None if nothing was compressed.
        """

    def unmet(self, achieved: float | None, matrices: Matrices) -> tuple[str, ...]:
        """Return what was not met, a sentence each.

        Args:
            achieved: the figure, from `achieved`.
            matrices: every eligible matrix.
        """
        return () if any(matrix.bonds for matrix in matrices) else (NOTHING_COMPRESSED,)

    @classmethod
    def show(cls, value: float) -> str:
        """Return a value as text."""
        return f"{value:,}" if cls.is_whole else f"{value:g}"

    @classmethod
    def show_short(cls, value: float) -> str:
        """Return a value as text for the heading of a table."""
        return cls.show(value)

    @classmethod
    def show_achieved(cls, value: float) -> str:
        """Return an achieved figure as text."""
        return f"{value:,}" if cls.is_whole else f"{value:.5g}"


@dataclass(frozen=True, slots=True)
class MaxBond(TruncationTarget):
    """A cap on every bond.

    Args:
        value: the cap; None if only single layers have one, and the others stay dense.
        by_layer: caps of single layers: glob of layer or tensor names -> cap; the last match wins.

    Example:
        >>> MaxBond(16, by_layer={"fc*": 4}).bond_cap("fc", "fc.weight")
        4
    """

    value: int | None
    by_layer: Mapping[str, int] = field(default_factory=dict)

    kind = "bond"
    name = "max_bond"
    title = "bond"
    flag = "--bond"
    metavar = "N"
    help = "Maximum bond."
    allowed = "an integer of 1 or more, below 1e15"
    takes_globs = True
    is_whole = True
    is_countable = True

    def __post_init__(self) -> None:
        """Check the caps."""
        caps = {} if self.value is None else {self.name: self.value}
        for where, cap in (caps | dict(self.by_layer)).items():
            _check(where, cap, self.allowed, self.accepts(cap))

    @classmethod
    def accepts(cls, value: object) -> bool:
        """Return whether a value is a bond."""
        return _is_count(value)

    @property
    def largest_bond(self) -> int | None:
        """The largest cap."""
        return max(cap for cap in (self.value, *self.by_layer.values()) if cap is not None)

    def bond_cap(self, *names: str) -> int | None:
        """Return the cap of a matrix: that of the last glob that matches one of its names, else the general one.

        Args:
            names: names of its layer and of its tensors.
        """
        for pattern, bond in reversed(tuple(self.by_layer.items())):
            if any(matches(pattern, name) for name in names):
                return bond
        return self.value

    def achieved(self, matrices: Matrices, parameters: int | None) -> float | None:
        """Return the largest bond."""
        return max((bond for matrix in matrices for bond in matrix.bonds), default=None)

    @classmethod
    def show_achieved(cls, value: float) -> str:
        """Return the largest bond as text."""
        return f"largest bond {value:.0f}"


@dataclass(frozen=True, slots=True)
class Energy(TruncationTarget):
    """A fraction of the sum of the squared singular values to keep in every matrix.

    It is the same as `MaxError` with the square root of 1 - energy.
    """

    value: float

    kind = "energy"
    name = "energy"
    title = "energy"
    flag = "--energy"
    metavar = "E"
    help = "Fraction of the squared singular values to keep in every matrix."
    allowed = "a number above 0 and at most 1"

    @classmethod
    def accepts(cls, value: object) -> bool:
        """Return whether a value is a fraction."""
        return _is_number(value) and 0 < value <= 1

    @property
    def error_limit(self) -> float | None:
        """The largest relative error of every matrix."""
        return math.sqrt(1.0 - self.value)

    def achieved(self, matrices: Matrices, parameters: int | None) -> float | None:
        """Return the smallest fraction kept in a matrix."""
        errors = _errors(matrices)
        return 1 - max(errors) ** 2 if errors else None


@dataclass(frozen=True, slots=True)
class MaxError(TruncationTarget):
    """A limit on the relative error (Frobenius norm, against the dense weight) of every matrix."""

    value: float

    kind = "max_error"
    name = "max_error"
    title = "max error"
    flag = "--max-error"
    metavar = "E"
    help = "Maximum relative error of every matrix."
    allowed = "a number from 0 to below 1"

    @classmethod
    def accepts(cls, value: object) -> bool:
        """Return whether a value is an error below 1."""
        return _is_number(value) and 0 <= value < 1

    @property
    def error_limit(self) -> float | None:
        """The limit."""
        return self.value

    def achieved(self, matrices: Matrices, parameters: int | None) -> float | None:
        """Return the largest relative error."""
        return max(_errors(matrices), default=None)


@dataclass(frozen=True, slots=True)
class Keep(TruncationTarget):
    """A fraction of the eligible parameters to keep, over all layers together."""

    value: float

    kind = "keep"
    name = "keep"
    title = "keep"
    flag = "--keep"
    metavar = "F"
    help = "Fraction of the eligible parameters to keep, over all layers."
    allowed = "a number above 0 and at most 1"
    is_budget = True
    is_countable = True

    @classmethod
    def accepts(cls, value: object) -> bool:
        """Return whether a value is a fraction."""
        return _is_number(value) and 0 < value <= 1

    def budget(self, *, eligible: int, other: int) -> Budget | None:
        """Return the fraction of the eligible parameters."""
        return Budget(parameters=int(self.value * eligible), outside=0)

    def achieved(self, matrices: Matrices, parameters: int | None) -> float | None:
        """Return the fraction that is left."""
        if not matrices:
            return None
        return sum(matrix.parameters for matrix in matrices) / sum(matrix.dense_parameters for matrix in matrices)

    def unmet(self, achieved: float | None, matrices: Matrices) -> tuple[str, ...]:
        """Return what was not met: a fraction that is exceeded."""
        return _exceeded(achieved, self.value)

    @classmethod
    def show_short(cls, value: float) -> str:
        """Return the fraction as text: one over an integer if it is that.

        Example:
            >>> Keep.show_short(0.125), Keep.show_short(0.3)
            ('1/8', '0.3')
        """
        inverse = round(1 / value) if value else 0
        return f"1/{inverse}" if inverse > 1 and abs(value * inverse - 1) < 1e-9 else cls.show(value)


@dataclass(frozen=True, slots=True)
class MaxParams(TruncationTarget):
    """A limit on the number of parameters of the whole model."""

    value: int

    kind = "max_params"
    name = "max_params"
    title = "max parameters"
    flag = "--max-params"
    metavar = "N"
    help = "Maximum number of parameters of the whole model."
    allowed = "an integer of 1 or more, below 1e15"
    is_whole = True
    is_budget = True

    @classmethod
    def accepts(cls, value: object) -> bool:
        """Return whether a value is a number of parameters."""
        return _is_count(value)

    def budget(self, *, eligible: int, other: int) -> Budget | None:
        """Return what the rest of the model leaves of the limit."""
        return Budget(parameters=self.value - other, outside=other)

    def achieved(self, matrices: Matrices, parameters: int | None) -> float | None:
        """Return the parameters of the whole model."""
        return parameters

    def unmet(self, achieved: float | None, matrices: Matrices) -> tuple[str, ...]:
        """Return what was not met: a limit that is exceeded."""
        return _exceeded(achieved, self.value)


class TargetValues(TypedDict, total=False):
    """The arguments of `Truncation` for type checkers: the name of every target, and the type of its value."""

    max_bond: int | None
    energy: float | None
    max_error: float | None
    keep: float | None
    max_params: int | None


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Truncation:
    """What a compression must reach: exactly one target.

    Args:
        max_bond: cap of every bond, 1 or more.
        energy: fraction of the sum of the squared singular values to keep in every matrix, above 0 and at most 1. It is
            the same as `max_error` of sqrt(1 - energy).
        max_error: largest relative error (Frobenius norm, against the dense weight) of every matrix, from 0 to below 1.
        keep: fraction of the eligible parameters to keep, over all layers together, above 0 and at most 1.
        max_params: largest number of parameters of the whole compressed model, 1 or more.
        bond_by_layer: caps of single layers: glob of layer or tensor names -> cap; the last match wins. Allowed only
            with `max_bond` or alone; alone, layers that match no glob stay dense.

    Raises:
        TargetError: no target, several targets, or a value out of range.

    Example:
        >>> Truncation(keep=0.25)
        Truncation(keep=0.25)
        >>> Truncation(max_bond=16, bond_by_layer={"fc": 4}).target.bond_cap("fc", "fc.weight")
        4
    """

    __module__ = "mpocompress"

    target: TruncationTarget

    def __init__(
        self, *, bond_by_layer: Mapping[str, int] = MappingProxyType({}), **values: Unpack[TargetValues]
    ) -> None:
        by_name = {target.name: target for target in TARGETS.values()}
        given = {name: value for name, value in cast(Mapping[str, float | None], values).items() if value is not None}
        unknown = next((name for name in values if name not in by_name), None)
        if unknown is not None:
            raise TypeError(f"Truncation() got an unexpected keyword argument {unknown!r}")
        if len(given) != 1 and not (bond_by_layer and not given):
            raise TargetError(
                where="truncation",
                found="no target" if not given else f"{len(given)} targets ({', '.join(given)})",
                why="a compression has exactly one",
                action=f"Pass one of: {', '.join(by_name)}.",
            )
        name = next(iter(given), MaxBond.name)
        if bond_by_layer and name != MaxBond.name:
            raise TargetError(
                where="truncation",
                found=f"bond caps of single layers together with {name}",
                why=f"{name} chooses every bond",
                action=f"Pass bond_by_layer with {MaxBond.name}, or only bond_by_layer.",
            )
        target = (
            by_name[name](given[name])
            if name != MaxBond.name
            else MaxBond(values.get("max_bond"), by_layer=dict(bond_by_layer))
        )
        object.__setattr__(self, "target", target)

    def __repr__(self) -> str:
        values = {} if self.target.value is None else {self.target.name: self.target.value}
        caps = {"bond_by_layer": dict(self.target.by_layer)} if self.target.by_layer else {}
        return f"Truncation({', '.join(f'{name}={value!r}' for name, value in (values | caps).items())})"


def _errors(matrices: Matrices) -> list[float]:
    """Return the errors of the compressed matrices; weighted ones if they were compressed with calibration data."""
    errors = []
    for matrix in matrices:
        weighted = matrix.weighted_error if isinstance(matrix, MatrixReport) else None
        if matrix.bonds:
            errors.append(matrix.relative_error if weighted is None else weighted)
    return errors


def _exceeded(achieved: float | None, value: float) -> tuple[str, ...]:
    return (BUDGET_EXCEEDED,) if (achieved or 0.0) > value else ()


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 1 <= value < 10**_MOST_DIGITS


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _integer(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def _fraction(text: str) -> float | None:
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        return None


def _check(where: str, value: object, allowed: str, is_allowed: bool) -> None:
    if not is_allowed:
        raise TargetError(where=where, found=f"got {value}", why=f"it must be {allowed}", action="Pass such a value.")


# `help` and documentation show the arguments one by one.
Truncation.__signature__ = Signature(  # type: ignore[attr-defined]
    [
        *(Parameter(target.name, Parameter.KEYWORD_ONLY, default=None) for target in TARGETS.values()),
        Parameter("bond_by_layer", Parameter.KEYWORD_ONLY, default={}),
    ]
)

PLAN_TARGETS = (
    *(Truncation(max_bond=bond) for bond in (4, 8, 16, 32, 64, 128)),
    *(Truncation(keep=1 / times) for times in (2, 4, 8, 16, 32)),
)
"""The targets of a plan by default."""
