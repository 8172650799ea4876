"""Divergence between the outputs of two models: its measure by the kind of outputs, and its mean over many outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.errors import CalibrationError
from mpocompress.reports.calibration import OutputKind

UNIT_TOLERANCE = 1e-3
"""Largest distance of a norm or a sum of probabilities from 1."""
LARGEST_ENTROPY = 0.6
"""Entropy, as a share of that of the uniform distribution, up to which outputs count as scores of a classifier."""
SMALLEST_PROBABILITY = 1e-12
CHUNK_ENTRIES = 2**24
"""Entries that are converted to float64 at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceTotals:
    """Sums over rows of outputs; totals of several outputs are added up with `+`.

    Args:
        divergence: sum of the divergences of all rows.
        divisor: what that sum is divided by: the number of rows, or for regression the squares of the reference.
        agreed: for classification, rows with their largest entry at the same place; 0 for other kinds.
        rows: number of rows.
    """

    divergence: float = 0.0
    divisor: float = 0.0
    agreed: int = 0
    rows: int = 0

    def __add__(self, other: DivergenceTotals) -> DivergenceTotals:
        return DivergenceTotals(
            divergence=self.divergence + other.divergence,
            divisor=self.divisor + other.divisor,
            agreed=self.agreed + other.agreed,
            rows=self.rows + other.rows,
        )

    @property
    def mean(self) -> float:
        """Mean divergence; 0 without rows."""
        return self.divergence / self.divisor if self.divisor else 0.0

    @property
    def agreement(self) -> float | None:
        """Fraction of rows that agree; None without rows."""
        return self.agreed / self.rows if self.rows else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How outputs of a model are compared.

    Args:
        kind: classification (KL divergence), embedding (1 - cosine) or regression (relative squared error).
        probabilities: for classification, whether the outputs are probabilities; otherwise they are logits or
            log-probabilities.
        kind_from: source of the kind, as text.
    """

    kind: OutputKind
    probabilities: bool = False
    kind_from: str = "as asked"

    @property
    def name(self) -> str:
        """Name of the divergence."""
        return {
            "classification": "KL divergence, nats",
            "embedding": "1 - cosine",
            "regression": "relative squared error",
        }[self.kind]

    def terms(
        self,
        reference: Tensor,  # shape: (rows, outputs)
        outputs: Tensor,  # shape: (rows, outputs)
    ) -> Tensor:
        """Return the contribution of every entry to the divergence of its row, differentiable.

        For regression these are squared errors, not yet relative to the reference.
        """
        if self.kind == "classification":
            log_p, log_q = self.log_probabilities(reference), self.log_probabilities(outputs)
            is_possible = log_p != -torch.inf
            # Filled before the difference: a class of probability 0 adds nothing, and its gradient must not be NaN.
            difference = log_p.masked_fill(~is_possible, 0.0) - log_q.masked_fill(~is_possible, 0.0)
            return torch.where(is_possible, log_p.exp() * difference, 0.0)
        if self.kind == "embedding":
            difference = nn.functional.normalize(reference, dim=1) - nn.functional.normalize(outputs, dim=1)
            return difference.square() / 2  # adds up to 1 - cosine without its cancellation, and to 0 for two zeros
        return (outputs - reference).square()

    def loss(
        self,
        reference: Tensor,  # shape: (rows, outputs)
        outputs: Tensor,  # shape: (rows, outputs)
        *,
        scale: float = 1.0,
    ) -> Tensor:
        """Return the mean divergence of a batch in float32, differentiable.

        Args:
            reference: outputs of the reference model.
            outputs: outputs of the trained model.
            scale: for regression, the mean square that errors are relative to.

        Returns:
            A scalar: the KL divergence in nats, 1 - cosine, or the mean squared error over `scale`.

        Source:
            Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, at
            temperature 1.
        """
        terms = self.terms(reference.float(), outputs.float())
        return terms.mean() / scale if self.kind == "regression" else terms.sum(dim=1).mean()

    def divergences(
        self,
        reference: Tensor,  # shape: (..., outputs)
        outputs: Tensor,  # shape: (..., outputs)
    ) -> Tensor:
        """Return the divergence of every row, in float64 and not negative; the squared error for regression."""
        pairs = zip(_in_chunks(reference), _in_chunks(outputs), strict=True)
        return torch.cat([self.terms(*pair).sum(dim=1).clamp_min(0.0) for pair in pairs])

    def totals(
        self,
        reference: Tensor,  # shape: (..., outputs)
        outputs: Tensor,  # shape: (..., outputs)
    ) -> DivergenceTotals:
        """Return the sums over all rows, from which the mean divergence of many outputs is computed."""
        rows = reference.numel() // reference.shape[-1]
        if self.kind == "regression":
            divisor = sum(float(chunk.square().sum()) for chunk in _in_chunks(reference)) or 1.0
        else:
            divisor = float(rows)
        agreed = 0
        if self.kind == "classification":
            agreed = int((reference.argmax(dim=-1) == outputs.argmax(dim=-1)).sum())
        total = float(self.divergences(reference, outputs).sum())
        return DivergenceTotals(divergence=total, divisor=divisor, agreed=agreed, rows=rows)

    def projection(
        self,
        output: Tensor,  # shape: (..., outputs)
        generator: torch.Generator,
    ) -> Tensor:
        """Return a random scalar whose gradients show where the output is sensitive.

        For classification, the log-probability of a class drawn from the model's own distribution: the mean square of
        its gradient is a diagonal entry of the Fisher information. Otherwise, the output in a random direction.

        Args:
            output: the output, with gradients.
            generator: source of random numbers.

        Source:
            Martens 2020, "New insights and perspectives on the natural gradient method", arXiv 1412.1193 (labels drawn
            from the model).
        """
        rows = output.reshape(-1, output.shape[-1])
        if self.kind == "classification":
            logs = self.log_probabilities(rows.float())
            drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(rows.device)
            return logs.gather(1, drawn).sum()
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        if self.kind == "embedding":
            return (nn.functional.normalize(rows, dim=1) * noise).sum()
        return (rows * noise).sum() / rows.detach().square().mean().sqrt().clamp_min(torch.finfo(rows.dtype).tiny)

    def log_probabilities(
        self,
        rows: Tensor,  # shape: (rows, classes)
    ) -> Tensor:
        """Return the logarithms of the probabilities that outputs of a classifier stand for."""
        return rows.clamp_min(SMALLEST_PROBABILITY).log() if self.probabilities else rows.log_softmax(dim=1)


def measure_for(outputs: Sequence[Tensor], *, named: str, kind: OutputKind | None = None) -> Measure:
    """Return the measure that suits the outputs of a model.

    Args:
        outputs: some of its outputs, each of shape (..., outputs).
        named: their name in the model's output, as `primary` returns it.
        kind: their kind; None to infer it.

    Raises:
        CalibrationError: classification of a single class.

    Example:
        >>> measure_for([torch.eye(3)], named="", kind=None).probabilities
        True
        >>> measure_for([torch.randn(8, 5, generator=torch.Generator().manual_seed(0))], named="").kind
        'regression'
    """
    rows = torch.cat([output.detach().float().reshape(-1, output.shape[-1]).cpu() for output in outputs])
    width = rows.shape[1]
    sums, norms = rows.sum(dim=1), torch.linalg.vector_norm(rows, dim=1)
    probabilities = width > 1 and bool((rows >= 0).all()) and _all_one(sums)
    if kind == "classification" and width == 1:
        raise CalibrationError(
            where="kind of output",
            found="classification of outputs with one entry",
            why="the probability of a single class is always 1",
            action="Give regression, or leave the kind out.",
        )
    if kind is not None:
        return Measure(kind=kind, probabilities=probabilities and kind == "classification")
    if probabilities:
        return Measure(kind="classification", probabilities=True, kind_from="its outputs are probabilities")
    if width > 1 and _all_one(rows.logsumexp(dim=1).exp()):
        return Measure(kind="classification", kind_from="its outputs are log-probabilities")
    if width > 1 and "logits" in named:
        return Measure(kind="classification", kind_from="its outputs are named logits")
    if width > 1 and _all_one(norms):
        return Measure(kind="embedding", kind_from="its outputs have length 1")
    if width > 1:
        entropy = float(torch.special.entr(rows.softmax(dim=1)).sum(dim=1).mean()) / math.log(width)
        if entropy < LARGEST_ENTROPY:
            return Measure(kind="classification", kind_from="its outputs look like the scores of a classifier")
    return Measure(kind="regression", kind_from="its outputs are neither scores, probabilities nor of length 1")


def unrelated_divergence(measure: Measure, outputs: Iterable[Tensor]) -> float | None:
    """Return the divergence between outputs for different inputs, the scale that a divergence is compared with.

    Every sample is compared with the previous one of its batch; if all batches have one sample, with the next batch.

    Args:
        measure: how outputs are compared.
        outputs: outputs of one model, one tensor per batch, shape (samples, ..., outputs).

    Returns:
        The mean divergence; None if it is 0 or not finite, or if there is only one sample.
    """
    totals, singles = DivergenceTotals(), list[Tensor]()
    for output in outputs:
        if output.dim() > 1 and len(output) > 1:
            totals += measure.totals(output, output.roll(1, dims=0))
        else:
            singles.append(output)
    if not totals.rows and len(singles) > 1:
        for output, other in zip(singles, [*singles[1:], singles[0]], strict=True):
            if output.shape == other.shape:
                totals += measure.totals(output, other)
    return totals.mean if 0.0 < totals.mean < math.inf else None


def _in_chunks(output: Tensor) -> Iterable[Tensor]:
    """Yield the rows of an output in float64, at most `CHUNK_ENTRIES` entries at a time."""
    rows = output.detach().reshape(-1, output.shape[-1])
    rows = rows.cpu() if rows.device.type == "mps" else rows  # which has no float64
    return (chunk.double() for chunk in torch.split(rows, max(1, CHUNK_ENTRIES // rows.shape[1])))


def _all_one(values: Tensor) -> bool:
    return bool(((values - 1.0).abs() < UNIT_TOLERANCE).all())
