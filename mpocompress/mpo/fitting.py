"""Fit cores of any site shape to a matrix in a metric, by gradient steps on all cores at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mpocompress.errors import DecompositionError
from mpocompress.mpo.contraction import to_matrix
from mpocompress.mpo.metric import OutputWeights, scaled
from mpocompress.mpo.mpo import MPO

STEPS = 60
"""Steps after which further ones gain little."""
HISTORY = 12


def fit(
    start: MPO,
    weight: Tensor,  # shape: (rows, cols)
    second: Tensor,  # shape: (cols, cols)
    outputs: OutputWeights,
    steps: int = STEPS,
) -> MPO:
    """Minimise the error of an MPO in a metric by L-BFGS, with its site shape and bonds unchanged.

    There is no closed form: multiplied by a dense metric, a general MPO does not keep its bonds.

    Args:
        start: the MPO to start from, such as a truncated sweep.
        weight: the matrix, finite.
        second: second moment C of its inputs, positive definite.
        outputs: weights G of the output errors.
        steps: maximum number of steps.

    Returns:
        The MPO in float32; its error in the metric is at most that of `start`.

    Raises:
        DecompositionError: `start` has another shape than the matrix.

    Source:
        Liu, Nocedal 1989, "On the limited memory BFGS method for large scale optimization", doi:10.1007/BF01589116.

    Example:
        >>> from mpocompress.mpo.tt_svd import factorise
        >>> from mpocompress.mpo.sites import balanced
        >>> weight = torch.eye(16)
        >>> start = factorise(weight, balanced(16, 16, 2), bonds=(1,)).mpo
        >>> fit(start, weight, torch.eye(16), OutputWeights(torch.ones(16))).bonds
        (1,)
    """
    if start.shape != tuple(weight.shape):
        raise DecompositionError(
            where=f"matrix {weight.shape[0]} x {weight.shape[1]}",
            found=f"cores of {start.shape[0]} x {start.shape[1]}",
            why="cores are fitted to a matrix of their own shape",
            action="Start from a decomposition of the matrix.",
        )
    target, metric = weight.float(), second.float()
    weights = (outputs.floored / (outputs.scale or 1.0)).float()
    scale = float((scaled(weights, target @ metric) * target).sum())
    if not (math.isfinite(scale) and scale > 0.0):
        return start.to(torch.float32)
    cores = _with_equal_norms(start)
    optimizer = torch.optim.LBFGS(
        cores,
        max_iter=steps,
        max_eval=2 * steps,
        history_size=HISTORY,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    best: list[tuple[float, list[Tensor]]] = []

    def closure() -> float:
        optimizer.zero_grad()
        matrix = to_matrix(cores, start.sites)
        error = target - matrix.detach()
        weighted = scaled(weights, error @ metric) / scale
        loss = float((weighted * error).sum())
        matrix.backward(-2.0 * weighted)  # type: ignore[no-untyped-call]
        if math.isfinite(loss) and (not best or loss < best[0][0]):
            best[:] = [(loss, [core.detach().clone() for core in cores])]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    if not best:
        return start.to(torch.float32)
    return MPO(cores=tuple(best[0][1]), sites=start.sites)


def _with_equal_norms(start: MPO) -> list[Tensor]:
    """Return copies of the cores in float32, scaled to one norm, so that gradient steps have similar sizes in all."""
    norms = [float(torch.linalg.vector_norm(core.double())) for core in start.cores]
    common = math.prod(norms) ** (1 / len(norms))
    if not (math.isfinite(common) and common > 0.0):
        return [core.detach().float().contiguous().clone().requires_grad_() for core in start.cores]
    return [
        (core.detach().double() * (common / norm)).float().contiguous().requires_grad_()
        for core, norm in zip(start.cores, norms, strict=True)
    ]
