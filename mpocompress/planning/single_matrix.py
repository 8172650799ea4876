"""Decompose one matrix in the best site shape for a target."""

from __future__ import annotations

from torch import Tensor

from mpocompress.errors import TargetError
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, SitesChoice, candidates
from mpocompress.mpo.tt_svd import factorise, factorise_within, finite_matrix
from mpocompress.planning.curves import best_under_cap, best_under_parameters, best_within_error, error_curves
from mpocompress.planning.targets import Truncation


def decompose(
    weight: Tensor,  # shape: (rows, cols)
    *,
    truncation: Truncation,
    sites: Sites | SitesChoice = "auto",
) -> MPO:
    """Decompose one matrix into a matrix product operator.

    Args:
        weight: a finite matrix of a floating dtype; half types are computed in float32.
        truncation: the target. `keep` and `max_params` count the parameters of this matrix.
        sites: a site shape, `auto` (the best candidate), `lowrank`, or a number of balanced sites.

    Returns:
        The MPO, with cores in the dtype of `weight`. It may have more parameters than the matrix.

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.
        SitesError: sites that do not fit the matrix.
        TargetError: a target that no site shape meets, or an error limit too small for the dtype.

    Example:
        >>> import torch
        >>> from mpocompress.planning.targets import Truncation
        >>> weight = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
        >>> mpo = decompose(weight, truncation=Truncation(max_bond=1), sites="lowrank")
        >>> mpo.bonds, mpo.parameters, bool(torch.allclose(mpo.to_matrix(), weight))
        ((1,), 14, True)
    """
    matrix, target = finite_matrix(weight), truncation.target
    rows, cols = matrix.shape
    shapes = (sites,) if isinstance(sites, Sites) else candidates(rows, cols, sites)
    budget, error_limit = target.budget(eligible=rows * cols, other=0), target.error_limit
    if budget is None and error_limit is None:
        cap = target.bond_cap("weight") or min(rows, cols)
        curves = error_curves(matrix, shapes, max_bond=cap) if len(shapes) > 1 else ()
        shape = (best_under_cap(curves, cap) or curves[0]).sites if curves else shapes[0]
        return factorise(matrix, shape, bonds=shape.capped(cap)).mpo.to(weight.dtype)
    curves = error_curves(matrix, shapes)
    if budget is None:
        limit = error_limit or 0.0
        shape = (best_within_error(curves, limit) or curves[0]).sites
        _, mpo, error = factorise_within(matrix, shape, relative_error=limit, stored=weight.dtype)
        if error > limit:
            raise TargetError(
                where=f"matrix {rows} x {cols}",
                found=f"a relative error of {error:.2g} at the largest bonds, with a limit of {limit:.2g}",
                why=f"rounding the cores to {str(weight.dtype).removeprefix('torch.')} exceeds the limit",
                action="Allow a larger error, or pass the weight in a wider dtype.",
            )
        return mpo
    best = best_under_parameters(curves, budget.parameters)
    if best is None:
        fewest = min(shape.parameters(shape.capped(1)) for shape in shapes)
        raise TargetError(
            where=f"matrix {rows} x {cols}",
            found=f"a limit of {budget.parameters:,} parameters",
            why=f"bond 1 already needs {fewest:,} in the best site shape",
            action="Allow more parameters, or more sites.",
        )
    curve, cap = best
    return factorise(matrix, curve.sites, bonds=curve.sites.capped(cap)).mpo.to(weight.dtype)
