"""The plan: form, site shape and bonds of every matrix for a target, before any core is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mpocompress.errors import SelectionError, TargetError
from mpocompress.layers.names import matches
from mpocompress.layers.specs import LayerSpec, MatrixSpec
from mpocompress.mpo.sites import Sites
from mpocompress.planning.budget import Choice, least_parameters, spread
from mpocompress.planning.curves import Curve, best_under_cap, best_under_error, best_under_parameters
from mpocompress.planning.target import Truncation


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is known of one matrix before a target is applied.

    Args:
        curves: its candidate site shapes, fastest first; empty where none exists.
        squared_norm: squared Frobenius norm.
        problem: why it cannot be decomposed; empty where it can.
    """

    curves: tuple[Curve, ...]
    squared_norm: float
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPlan:
    """What becomes of one matrix.

    Args:
        layer: path of the module.
        kind: kind of the layer.
        matrix: its tensors.
        sites: the site shape; None to keep it dense.
        bonds: a bond for every cut; empty to keep it dense. With more than two sites and an error target, at
            most these.
        parameters: predicted parameters.
        relative_error: predicted relative error.
        reason: why it stays dense; may be empty otherwise.
    """

    layer: str
    kind: str
    matrix: MatrixSpec
    sites: Sites | None
    bonds: tuple[int, ...]
    parameters: int
    relative_error: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What becomes of every eligible matrix under one target.

    Args:
        matrices: one entry for every matrix, in file order.
    """

    matrices: tuple[MatrixPlan, ...]

    @property
    def eligible_parameters(self) -> int:
        """Parameters of the eligible matrices, dense."""
        return sum(entry.matrix.dense_parameters for entry in self.matrices)

    @property
    def parameters(self) -> int:
        """Predicted parameters of the eligible matrices."""
        return sum(entry.parameters for entry in self.matrices)


def make_plan(
    layers: Sequence[LayerSpec],
    surveys: Mapping[str, Survey],
    truncation: Truncation,
    other_parameters: int,
    *,
    check: bool = True,
) -> Plan:
    """Choose form, site shape and bonds of every matrix.

    Args:
        layers: the layers, without those that cannot be decomposed.
        surveys: what is known of every matrix of every form, by name.
        truncation: the target.
        other_parameters: parameters of the model outside the layers; they count under `max_params`.
        check: whether every bond pattern must match one of the layers.

    Returns:
        The plan.

    Raises:
        TargetError: a budget below what any choice of bonds needs.
        SelectionError: a bond for layers that do not exist.
    """
    if check:
        check_patterns(layers, truncation)
    if truncation.is_budget:
        entries = _by_budget(layers, surveys, truncation, other_parameters)
    elif truncation.error_budget is not None:
        entries = [entry for layer in layers for entry in _by_error(layer, surveys, truncation.error_budget)]
    else:
        entries = [entry for layer in layers for entry in _by_bond(layer, surveys, truncation)]
    return Plan(matrices=tuple(entries))


def check_patterns(layers: Sequence[LayerSpec], truncation: Truncation) -> None:
    """Refuse a bond whose glob means no layer.

    Args:
        layers: all layers.
        truncation: the target.

    Raises:
        SelectionError: a bond for layers that do not exist.
    """
    names = [name for layer in layers for form in layer.forms for matrix in form for name in _names(layer, matrix)]
    for glob in truncation.bond_by_layer:
        if not any(matches(glob, name) for name in names):
            raise SelectionError(
                where=f"bond pattern {glob!r}",
                found="matches no layer that can be compressed",
                why="a pattern that selects nothing is a mistake",
                action=f"Names look like {', '.join(dict.fromkeys(names[:6]))}.",
            )


def _names(layer: LayerSpec, matrix: MatrixSpec) -> tuple[str, ...]:
    return (layer.name, matrix.name, *(name for member in matrix.members for name in member.names))


def _by_bond(layer: LayerSpec, surveys: Mapping[str, Survey], truncation: Truncation) -> list[MatrixPlan]:
    """Every bond as large as the cap allows.

    A bond cap alone would always prefer the weights apart, which cost more. So the forms are compared at equal
    parameters: the joint matrix with as many as the separate ones have under the cap. Where the separate ones would not
    get smaller there is nothing to compare.
    """
    plans = []
    for form in layer.forms:
        entries = []
        for matrix in form:
            caps = _bond_caps(layer, matrix, truncation)
            cap = min((one for one in caps if one is not None), default=None)
            curve = None if cap is None else best_under_cap(surveys[matrix.name].curves, cap)
            reason = "no bond was asked for it" if cap is None else _no_smaller(matrix, f"at bond {cap}")
            bonds = curve.sites.capped(cap) if curve is not None and cap is not None else ()
            entries.append(_entry(layer, matrix, curve, bonds, reason, surveys))
        plans.append(entries)
    joint, apart = plans[0], plans[-1]
    if len(plans) > 1 and len(_bond_caps(layer, joint[0].matrix, truncation)) > 1:
        return apart
    if len(plans) == 1 or any(entry.sites is None for entry in apart):
        return joint
    limit = sum(entry.parameters for entry in apart) - sum(entry.parameters for entry in joint[1:])
    best = best_under_parameters(surveys[joint[0].matrix.name].curves, limit)
    if best is None or joint[0].sites is None:
        return apart
    curve, cap = best
    missed_joint = _missed(joint[0].matrix, curve.error(curve.sites.capped(cap)), surveys)
    missed_apart = sum(
        _missed(entry.matrix, entry.relative_error, surveys) for entry in apart[: len(apart) - len(joint) + 1]
    )
    return joint if missed_joint <= missed_apart else apart


def _bond_caps(layer: LayerSpec, matrix: MatrixSpec, truncation: Truncation) -> set[int | None]:
    """The different caps asked for the members of a matrix; None stands for no cap at all."""
    return {truncation.bond_cap(layer.name, matrix.name, *member.names) for member in matrix.members}


def _by_error(layer: LayerSpec, surveys: Mapping[str, Survey], relative_error: float) -> list[MatrixPlan]:
    """The fewest parameters that keep every matrix within the error."""
    plans = []
    for form in layer.forms:
        entries = []
        for matrix in form:
            curve = best_under_error(surveys[matrix.name].curves, relative_error)
            reason = _no_smaller(matrix, f"within a relative error of {relative_error:.4g}")
            bonds = curve.bonds_for_error(relative_error) if curve is not None else ()
            entries.append(_entry(layer, matrix, curve, bonds, reason, surveys))
        plans.append(entries)
    return min(plans, key=lambda entries: sum(entry.parameters for entry in entries))


def _by_budget(
    layers: Sequence[LayerSpec], surveys: Mapping[str, Survey], truncation: Truncation, other_parameters: int
) -> list[MatrixPlan]:
    """A parameter budget over all layers together."""
    eligible = sum(layer.dense_parameters for layer in layers)
    curves = {name: survey.curves for name, survey in surveys.items()}
    if truncation.keep is not None:
        budget, outside = int(truncation.keep * eligible), 0
    else:
        budget, outside = (truncation.max_params or 0) - other_parameters, other_parameters
    least = least_parameters(layers, curves)
    if budget < least:
        raise TargetError(
            where=f"{truncation.kind} {truncation.asked:,}",
            found=f"a budget of {budget + outside:,} parameters",
            why=f"the smallest bonds already need {least + outside:,}"
            + (f", {outside:,} of them in layers that are not compressed" if outside else ""),
            action="Ask for more, or let more layers be compressed.",
        )
    by_name = {choice.matrix.name: choice for choice in _spread(layers, curves, budget)}
    entries = []
    for layer in layers:
        form = next(form for form in layer.forms if all(matrix.name in by_name for matrix in form))
        for matrix in form:
            choice = by_name[matrix.name]
            entries.append(_entry(layer, matrix, choice.curve, choice.bonds, choice.reason, surveys))
    return entries


def _spread(layers: Sequence[LayerSpec], curves: Mapping[str, Sequence[Curve]], budget: int) -> Iterator[Choice]:
    """Spread a budget; layers whose losses were not measured beside others that were get their own share of it."""
    sides: tuple[list[LayerSpec], list[LayerSpec]] = ([], [])
    for layer in layers:
        matrices = (matrix for form in layer.forms for matrix in form)
        measured = any(len(curve.losses) for matrix in matrices for curve in curves[matrix.name])
        sides[measured].append(layer)
    unknown, known = sides
    whole = sum(layer.dense_parameters for layer in layers)
    share = budget * sum(layer.dense_parameters for layer in unknown) // max(whole, 1)
    share = min(max(share, least_parameters(unknown, curves)), budget - least_parameters(known, curves))
    for part, limit in ((unknown, share), (known, budget - share)):
        names = {matrix.name for layer in part for form in layer.forms for matrix in form}
        yield from spread(part, {name: curves[name] for name in names}, limit)


def _entry(
    layer: LayerSpec,
    matrix: MatrixSpec,
    curve: Curve | None,
    bonds: tuple[int, ...],
    reason: str,
    surveys: Mapping[str, Survey],
) -> MatrixPlan:
    """One entry; `reason` is used where there is no curve."""
    return MatrixPlan(
        layer=layer.name,
        kind=layer.kind,
        matrix=matrix,
        sites=curve.sites if curve is not None else None,
        bonds=bonds,
        parameters=curve.sites.parameters(bonds) if curve is not None else matrix.dense_parameters,
        relative_error=curve.error(bonds) if curve is not None else 0.0,
        reason="" if curve is not None else surveys[matrix.name].problem or reason,
    )


def _missed(matrix: MatrixSpec, relative_error: float, surveys: Mapping[str, Survey]) -> float:
    return relative_error**2 * surveys[matrix.name].squared_norm


def _no_smaller(matrix: MatrixSpec, condition: str) -> str:
    return f"{condition} no site shape is smaller than the dense {matrix.dense_parameters:,} parameters"
