"""Choose how the weights of a layer form matrices, and the site shape and bonds of every matrix, for a target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mpocompress.errors import SelectionError, TargetError
from mpocompress.layers.names import matches
from mpocompress.layers.specs import LayerSpec, MatrixSpec
from mpocompress.mpo.sites import Sites
from mpocompress.planning.budget import BudgetShare, fewest_parameters, share_budget
from mpocompress.planning.curves import (
    ErrorCurve,
    MatrixCurves,
    best_under_cap,
    best_under_parameters,
    best_within_error,
)
from mpocompress.planning.targets import Budget, TruncationTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class BondChoice:
    """The site shape and bonds chosen for one matrix, or the choice to keep it dense.

    Args:
        layer: path of the module.
        kind: kind of the layer.
        matrix: its tensors.
        sites: the site shape; None to keep the matrix dense.
        bonds: one bond per cut; empty to keep the matrix dense. For an error target and three or more sites, upper
            bounds.
        parameters: predicted number of parameters.
        relative_error: predicted relative error.
        reason: why the matrix stays dense; empty if it does not.
    """

    layer: str
    kind: str
    matrix: MatrixSpec
    sites: Sites | None
    bonds: tuple[int, ...]
    parameters: int
    relative_error: float
    reason: str


def choose_bonds(
    layers: Sequence[LayerSpec],
    curves: Mapping[str, MatrixCurves],
    target: TruncationTarget,
    other_parameters: int,
    *,
    check: bool = True,
) -> tuple[BondChoice, ...]:
    """Choose the form of every layer, and the site shape and bonds of every matrix.

    Args:
        layers: the layers, without tensors that cannot be decomposed.
        curves: the error curves of every matrix of every form, by name.
        target: the target.
        other_parameters: parameters of the model outside the layers; they count under `max_params`.
        check: whether every glob of the target must match one of the layers.

    Returns:
        One choice per matrix of the chosen forms, in file order.

    Raises:
        TargetError: a budget that even the smallest bonds exceed.
        SelectionError: a glob that matches no layer.
    """
    if check:
        check_globs(layers, target)
    eligible = sum(layer.dense_parameters for layer in layers)
    budget = target.budget(eligible=eligible, other=other_parameters)
    if budget is not None:
        return _within_budget(layers, curves, target, budget)
    if target.error_limit is not None:
        return tuple(choice for layer in layers for choice in _within_error(layer, curves, target.error_limit))
    return tuple(choice for layer in layers for choice in _under_caps(layer, curves, target))


def check_globs(layers: Sequence[LayerSpec], target: TruncationTarget) -> None:
    """Refuse a bond cap for single layers whose glob matches no layer.

    Args:
        layers: all layers.
        target: the target.

    Raises:
        SelectionError: a glob that matches no layer.
    """
    names = [name for layer in layers for form in layer.forms for matrix in form for name in _names(layer, matrix)]
    for glob in target.by_layer:
        if not any(matches(glob, name) for name in names):
            raise SelectionError(
                where=f"bond cap for {glob!r}",
                found="the glob matches no layer that can be compressed",
                why="a cap must apply to at least one layer",
                action=f"Use names such as {', '.join(dict.fromkeys(names[:6]))}.",
            )


def _names(layer: LayerSpec, matrix: MatrixSpec) -> tuple[str, ...]:
    return (layer.name, matrix.name, *(name for member in matrix.members for name in member.names))


def _under_caps(layer: LayerSpec, curves: Mapping[str, MatrixCurves], target: TruncationTarget) -> Sequence[BondChoice]:
    """Choose the largest bonds under the caps.

    At the same cap the separate matrices always lose less than the joint one, because they have more parameters. So the
    forms are compared at equal parameters: those of the separate matrices under their caps. If one of the separate
    matrices does not become smaller, the joint one is taken.
    """
    forms = []
    for form in layer.forms:
        choices = []
        for matrix in form:
            cap = min((cap for cap in _caps(layer, matrix, target) if cap is not None), default=None)
            curve = None if cap is None else best_under_cap(curves[matrix.name].curves, cap)
            reason = "no bond was requested for it" if cap is None else _no_smaller(matrix, f"at bond {cap}")
            bonds = curve.sites.capped(cap) if curve is not None and cap is not None else ()
            choices.append(_choice(layer, matrix, curve, bonds, reason, curves))
        forms.append(choices)
    joint, separate = forms[0], forms[-1]
    if len(forms) > 1 and len(_caps(layer, joint[0].matrix, target)) > 1:
        return separate
    if len(forms) == 1 or any(choice.sites is None for choice in separate):
        return joint
    limit = sum(choice.parameters for choice in separate) - sum(choice.parameters for choice in joint[1:])
    best = best_under_parameters(curves[joint[0].matrix.name].curves, limit)
    if best is None or joint[0].sites is None:
        return separate
    curve, cap = best
    # The matrices after the joint one, such as a projection, are in both forms: they are left out of both sums.
    in_joint = separate[: len(separate) - (len(joint) - 1)]
    squared_error = _squared_error(joint[0].matrix, curve.error(curve.sites.capped(cap)), curves)
    if squared_error <= sum(_squared_error(choice.matrix, choice.relative_error, curves) for choice in in_joint):
        return joint
    return separate


def _caps(layer: LayerSpec, matrix: MatrixSpec, target: TruncationTarget) -> set[int | None]:
    """Return the distinct bond caps of the members of a matrix; None stands for no cap."""
    return {target.bond_cap(layer.name, matrix.name, *member.names) for member in matrix.members}


def _within_error(layer: LayerSpec, curves: Mapping[str, MatrixCurves], error_limit: float) -> Sequence[BondChoice]:
    """Choose the fewest parameters with every matrix within the relative error."""
    forms = []
    for form in layer.forms:
        choices = []
        for matrix in form:
            curve = best_within_error(curves[matrix.name].curves, error_limit)
            reason = _no_smaller(matrix, f"within a relative error of {error_limit:.4g}")
            bonds = curve.bonds_for_error(error_limit) if curve is not None else ()
            choices.append(_choice(layer, matrix, curve, bonds, reason, curves))
        forms.append(choices)
    return min(forms, key=lambda choices: sum(choice.parameters for choice in choices))


def _within_budget(
    layers: Sequence[LayerSpec], curves: Mapping[str, MatrixCurves], target: TruncationTarget, budget: Budget
) -> tuple[BondChoice, ...]:
    """Share a parameter budget among all layers."""
    by_matrix = {name: known.curves for name, known in curves.items()}
    fewest = fewest_parameters(layers, by_matrix)
    if budget.parameters < fewest:
        outside = f", {budget.outside:,} of them in layers that are not compressed" if budget.outside else ""
        raise TargetError(
            where=f"{target.name} {target.value:,}",
            found=f"a budget of {budget.parameters + budget.outside:,} parameters",
            why=f"the smallest bonds already need {fewest + budget.outside:,}{outside}",
            action="Allow more parameters, or compress more layers.",
        )
    shares = {share.matrix.name: share for share in _shares(layers, by_matrix, budget.parameters)}
    choices = []
    for layer in layers:
        form = next(form for form in layer.forms if all(matrix.name in shares for matrix in form))
        for matrix in form:
            share = shares[matrix.name]
            choices.append(_choice(layer, matrix, share.curve, share.bonds, share.reason, curves))
    return tuple(choices)


def _shares(
    layers: Sequence[LayerSpec], curves: Mapping[str, Sequence[ErrorCurve]], budget: int
) -> Iterator[BudgetShare]:
    """Share a budget; layers with measured losses and layers without, which cannot be compared, are shared apart.

    The layers without get their proportion of the budget.
    """
    sides: tuple[list[LayerSpec], list[LayerSpec]] = ([], [])
    for layer in layers:
        matrices = (matrix for form in layer.forms for matrix in form)
        measured = any(len(curve.losses) for matrix in matrices for curve in curves[matrix.name])
        sides[measured].append(layer)
    unmeasured, measured_layers = sides
    total = sum(layer.dense_parameters for layer in layers)
    part = budget * sum(layer.dense_parameters for layer in unmeasured) // max(total, 1)
    part = min(max(part, fewest_parameters(unmeasured, curves)), budget - fewest_parameters(measured_layers, curves))
    for side, limit in ((unmeasured, part), (measured_layers, budget - part)):
        names = {matrix.name for layer in side for form in layer.forms for matrix in form}
        yield from share_budget(side, {name: curves[name] for name in names}, limit)


def _choice(
    layer: LayerSpec,
    matrix: MatrixSpec,
    curve: ErrorCurve | None,
    bonds: tuple[int, ...],
    reason: str,
    curves: Mapping[str, MatrixCurves],
) -> BondChoice:
    """Return the choice of a curve and bonds; `reason` applies if there is no curve."""
    return BondChoice(
        layer=layer.name,
        kind=layer.kind,
        matrix=matrix,
        sites=curve.sites if curve is not None else None,
        bonds=bonds,
        parameters=curve.sites.parameters(bonds) if curve is not None else matrix.dense_parameters,
        relative_error=curve.error(bonds) if curve is not None else 0.0,
        reason="" if curve is not None else curves[matrix.name].problem or reason,
    )


def _squared_error(matrix: MatrixSpec, relative_error: float, curves: Mapping[str, MatrixCurves]) -> float:
    return relative_error**2 * curves[matrix.name].squared_norm


def _no_smaller(matrix: MatrixSpec, condition: str) -> str:
    return f"{condition} no site shape is smaller than the dense {matrix.dense_parameters:,} parameters"
