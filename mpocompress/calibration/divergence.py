"""What a model puts out: which kind it is, how far two outputs are apart, and what a gradient is taken of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.errors import CalibrationError
from mpocompress.reports.calibration import OutputKind

UNIT_TOLERANCE = 1e-3
"""How far a norm or a sum of probabilities may be from 1."""
LARGEST_ENTROPY = 0.6
"""Share of the entropy of a uniform choice up to which scores are taken for those of a classifier."""
SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How outputs are compared.

    Args:
        kind: classification (KL divergence), embedding (1 - cosine) or regression (relative squared error).
        probabilities: whether a classifier puts out probabilities; otherwise scores, or their logarithms.
        said: from where the kind is known, in words.
    """

    kind: OutputKind
    probabilities: bool = False
    said: str = "as asked"

    @property
    def words(self) -> str:
        """What the divergence is, in words."""
        return {
            "classification": "KL divergence, nats",
            "embedding": "1 - cosine",
            "regression": "relative squared error",
        }[self.kind]

    def divergences(
        self,
        reference: Tensor,  # shape: (..., outputs)
        found: Tensor,  # shape: (..., outputs)
    ) -> tuple[Tensor, float]:
        """How far outputs are from those of the original model.

        Args:
            reference: outputs of the original.
            found: outputs for the same inputs.

        Returns:
            One number for every row, not negative, and what their sum has to be divided by.
        """
        rows, others = (one.detach().double().reshape(-1, one.shape[-1]).cpu() for one in (reference, found))
        if self.kind == "classification":
            log_p, log_q = self._logs(rows), self._logs(others)
            kept = log_p != -math.inf  # an answer that is ruled out adds nothing
            terms = torch.where(kept, log_p.exp() * (log_p - log_q), 0.0)
            return terms.sum(dim=1).clamp_min(0.0), float(len(rows))
        if self.kind == "embedding":
            apart = nn.functional.normalize(rows, dim=1) - nn.functional.normalize(others, dim=1)
            return apart.square().sum(dim=1) / 2, float(len(rows))  # that is 1 - cosine, and 0 for two zeros
        return (rows - others).square().sum(dim=1), float(rows.square().sum()) or 1.0

    def agreement(self, reference: Tensor, found: Tensor) -> Tensor:
        """Whether the largest of every row of outputs is at the same place.

        Args:
            reference: outputs of the original, shape (..., outputs).
            found: outputs for the same inputs.

        Returns:
            One truth value for every row.
        """
        return (reference.argmax(dim=-1) == found.argmax(dim=-1)).reshape(-1).cpu()

    def projection(
        self,
        output: Tensor,  # shape: (..., outputs)
        generator: torch.Generator,
    ) -> Tensor:
        """A random number that depends on an output, whose gradients show where the output is sensitive.

        Of a classifier, the log-probability of an answer drawn from its own; so the mean square of a gradient is a
        diagonal entry of the Fisher information. Otherwise a random direction.

        Args:
            output: the output, open to gradients.
            generator: draws.

        Returns:
            A scalar.

        Source:
            Martens 2020, "New insights and perspectives on the natural gradient method", arXiv 1412.1193 (labels drawn
            from the model).
        """
        rows = output.reshape(-1, output.shape[-1])
        if self.kind == "classification":
            logs = self._logs(rows.float())
            drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(rows.device)
            return logs.gather(1, drawn).sum()
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        if self.kind == "embedding":
            return (nn.functional.normalize(rows, dim=1) * noise).sum()
        return (rows * noise).sum() / rows.detach().square().mean().sqrt().clamp_min(torch.finfo(rows.dtype).tiny)

    def _logs(self, rows: Tensor) -> Tensor:
        return rows.clamp_min(SMALLEST_PROBABILITY).log() if self.probabilities else rows.log_softmax(dim=1)


def measure_for(outputs: Sequence[Tensor], *, named: str, kind: OutputKind | None = None) -> Measure:
    """How to compare the outputs of a model.

    Args:
        outputs: some of its outputs, each of shape (..., outputs).
        named: what the model calls them; empty where it does not.
        kind: what they are, where it is known; None to tell it from them.

    Returns:
        The measure.

    Raises:
        CalibrationError: a classifier of one answer.

    Example:
        >>> measure_for([torch.eye(3)], named="", kind=None).probabilities
        True
        >>> measure_for([torch.randn(8, 5, generator=torch.Generator().manual_seed(0))], named="").kind
        'regression'
    """
    rows = torch.cat([one.detach().float().reshape(-1, one.shape[-1]).cpu() for one in outputs])
    width = rows.shape[1]
    sums, norms = rows.sum(dim=1), torch.linalg.vector_norm(rows, dim=1)
    probabilities = width > 1 and bool((rows >= 0).all()) and _all_one(sums)
    if kind == "classification" and width == 1:
        raise CalibrationError(
            where="kind of output",
            found="classification of outputs of one number",
            why="the probability of a single answer is always 1",
            action="Give regression, or none.",
        )
    if kind is not None:
        return Measure(kind=kind, probabilities=probabilities and kind == "classification")
    if probabilities:
        return Measure(kind="classification", probabilities=True, said="its outputs are probabilities")
    if width > 1 and _all_one(rows.logsumexp(dim=1).exp()):
        return Measure(kind="classification", said="its outputs are log-probabilities")
    if width > 1 and "logits" in named:
        return Measure(kind="classification", said="it calls its outputs logits")
    if width > 1 and _all_one(norms):
        return Measure(kind="embedding", said="its outputs have length 1")
    if width > 1:
        entropy = float(torch.special.entr(rows.softmax(dim=1)).sum(dim=1).mean()) / math.log(width)
        if entropy < LARGEST_ENTROPY:
            return Measure(kind="classification", said="its outputs look like the scores of a classifier")
    return Measure(kind="regression", said="its outputs are neither scores, probabilities nor of length 1")


def _all_one(values: Tensor) -> bool:
    return bool(((values - 1.0).abs() < UNIT_TOLERANCE).all())


def primary(output: object) -> tuple[Tensor, str]:
    """The tensor that a model's output is compared by.

    Args:
        output: whatever the model returns: a tensor, or a nest of them.

    Returns:
        The logits of an output that has some, otherwise its first tensor of floating point numbers; and its name, empty
        where it has none.

    Raises:
        CalibrationError: there is none.

    Example:
        >>> primary((torch.ones(2, 3), None))[0].shape
        torch.Size([2, 3])
    """
    found = next(_tensors(output, ""), None)
    if found is None:
        raise CalibrationError(
            where="the model",
            found=f"an output of {type(output).__name__}",
            why="there is no tensor of floating point numbers in it to compare",
            action="Wrap the model in a module that returns one.",
        )
    return found


def _tensors(value: object, name: str) -> Iterator[tuple[Tensor, str]]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.dim() > 0 and value.numel() > 0:
            yield value, name
    elif isinstance(value, Mapping):
        if "logits" in value:
            yield from _tensors(value["logits"], "logits")
        for key, one in value.items():
            yield from _tensors(one, str(key))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one, name)
