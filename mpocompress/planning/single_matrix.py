"""One matrix by itself: the best site shape for a target, and its decomposition."""

from __future__ import annotations

from torch import Tensor

from mpocompress.errors import TargetError
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites, SitesChoice, candidates
from mpocompress.mpo.tt_svd import computable, factorise, factorise_within
from mpocompress.planning.curves import best_under_cap, best_under_error, best_under_parameters, survey
from mpocompress.planning.target import Truncation


def decompose(
    weight: Tensor,  # shape: (rows, cols)
    *,
    truncation: Truncation,
    sites: Sites | SitesChoice = "auto",
) -> MPO:
    """Decompose one matrix into a matrix product operator.

    Args:
        weight: a finite matrix of a floating dtype; half types are computed in float32.
        truncation: what to reach. `keep` and `max_params` count the parameters of this matrix.
        sites: a site shape, `auto` (the best candidate), `lowrank`, or a number of balanced sites.

    Returns:
        The MPO, its cores in the dtype of `weight`. It may have more parameters than the matrix: nothing is kept dense
        here.

    Raises:
        DecompositionError: not a matrix, not floating, empty, or with NaN or Inf.
        SitesError: sites that do not fit the matrix.
        TargetError: a target that no site shape can meet, or an error that its dtype is too coarse for.

    Example:
        >>> import torch
        >>> from mpocompress.planning.target import Truncation
        >>> weight = torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0))
        >>> mpo = decompose(weight, truncation=Truncation(max_bond=1), sites="lowrank")
        >>> mpo.bonds, mpo.parameters, bool(torch.allclose(mpo.to_matrix(), weight))
        ((1,), 14, True)
    """
    matrix, _ = computable(weight)
    rows, cols = matrix.shape
    shapes = (sites,) if isinstance(sites, Sites) else candidates(rows, cols, sites)
    budget = truncation.error_budget
    limit = None
    if truncation.kind == "max_params":
        limit = truncation.max_params
    elif truncation.keep is not None:
        limit = int(truncation.keep * matrix.numel())
    if budget is None and limit is None:
        cap = truncation.bond_cap("weight") or min(rows, cols)
        curves = survey(matrix, shapes, max_bond=cap) if len(shapes) > 1 else ()
        shape = (best_under_cap(curves, cap) or curves[0]).sites if curves else shapes[0]
        return factorise(matrix, shape, bonds=shape.capped(cap)).mpo.to(weight.dtype)
    curves = survey(matrix, shapes)
    if budget is not None:
        shape = (best_under_error(curves, budget) or curves[0]).sites
        _, mpo, error = factorise_within(weight, shape, relative_error=budget, stored=weight.dtype)
        if error > budget:
            raise TargetError(
                where=f"matrix {rows} x {cols}",
                found=f"a relative error of {error:.2g} at the largest bonds, at most {budget:.2g} asked for",
                why=f"cores in {str(weight.dtype).removeprefix('torch.')} hold no more digits",
                action="Allow a larger error, or give the weight in a wider dtype.",
            )
        return mpo
    best = best_under_parameters(curves, limit or 0)
    if best is None:
        raise TargetError(
            where=f"matrix {rows} x {cols}",
            found=f"at most {limit:,} parameters asked for",
            why=f"bond 1 already needs {min(s.parameters(s.capped(1)) for s in shapes):,} in the best shape",
            action="Ask for more parameters, or for more sites.",
        )
    curve, cap = best
    return factorise(matrix, curve.sites, bonds=curve.sites.capped(cap)).mpo.to(weight.dtype)
