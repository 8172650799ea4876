"""Texts that a language model writes itself, to be trained on where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.data import Example
from mpocompress.finetuning.objective import called, compared
from mpocompress.finetuning.recurrent_state import Carrier
from mpocompress.user.randomness import Randomness, Stream, stream_seed

_PROBE_LENGTH = 6
_CLOSE = 1e-3
"""Logits that differ by no more than this share of their spread are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfGenerated:
    """Texts that the teacher writes, in place of data: it draws every token from its own prediction.

    For language models, which are called with token ids of shape (batch, length) and put out logits of shape
    (batch, length, vocabulary). The first token of every text is drawn from all alike.

    Args:
        batch_size: texts in a batch.
        length: tokens of a text.
        batches: how many batches are written; they are gone through again and again.

    Raises:
        FinetuneError: a number below 1, or a length below 2.

    Source:
        Liu et al. 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", arXiv 2305.17888,
        which takes the likeliest token for the first few; here all are drawn.

    Example:
        >>> SelfGenerated(length=64).batch_size
        32
    """

    batch_size: int = 32
    length: int = 128
    batches: int = 64

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("length", self.length, 2),
            ("batches", self.batches, 1),
        ):
            if value < least:
                raise FinetuneError(
                    where=f"generated texts, {name}",
                    found=f"got {value}",
                    why=f"it is at least {least}",
                    action=f"Give {least} or more.",
                )


class Generated:
    """The batches of `SelfGenerated`, written when they are first wanted, and kept.

    Args:
        teacher: what writes them, in evaluation mode.
        asked: how many, and how long.
        seed: what is drawn with.
        device: where the teacher is.
    """

    def __init__(self, teacher: nn.Module, asked: SelfGenerated, *, seed: int, device: torch.device) -> None:
        self._teacher, self._asked, self._seed, self._device = teacher, asked, seed, device
        self._written: list[Tensor] = []
        self._vocabulary = self._width()
        self._can_step = self._steps_alike()

    def __iter__(self) -> Iterator[Tensor]:
        """The batches, in the same order each time."""
        for number in range(self._asked.batches):
            if number == len(self._written):
                self._written.append(self._write(number))
            yield self._written[number]

    def _width(self) -> int:
        start = torch.zeros((self._asked.batch_size, 2), dtype=torch.int64, device=self._device)
        logits = self._logits(start)
        if logits.dim() != 3 or logits.shape[:2] != start.shape or logits.shape[2] < 2:
            raise FinetuneError(
                where=type(self._teacher).__name__,
                found=f"outputs of shape {tuple(logits.shape)} for token ids of shape {tuple(start.shape)}",
                why="a model that writes texts puts out a score for every token of its vocabulary at every place",
                action="Give data to train on.",
            )
        return int(logits.shape[2])

    def _steps_alike(self) -> bool:
        """Whether the teacher, called with one token after the other, remembers those before in recurrent layers."""
        generator = torch.Generator().manual_seed(self._seed % 2**32)
        shape = (self._asked.batch_size, _PROBE_LENGTH)
        tokens = torch.randint(self._vocabulary, shape, generator=generator).to(self._device)
        whole = self._logits(tokens)
        try:
            carrier = Carrier(self._teacher)
        except FinetuneError:
            return False
        try:
            steps = torch.cat([self._logits(one) for one in torch.split(tokens, 1, dim=1)], dim=1)
        finally:
            carrier.remove()
        return bool((steps - whole).abs().max() <= _CLOSE * (whole.std() + 1e-12))

    def _write(self, number: int) -> Tensor:
        """One batch of token ids."""
        asked = self._asked
        generator = torch.Generator().manual_seed(stream_seed(self._seed, Stream.GENERATION, number))
        tokens = torch.randint(self._vocabulary, (asked.batch_size, 1), generator=generator)
        carrier = Carrier(self._teacher) if self._can_step else None
        try:
            while tokens.shape[1] < asked.length:
                read = tokens[:, -1:] if carrier is not None else tokens
                chances = self._logits(read.to(self._device))[:, -1].float().softmax(dim=-1).cpu()
                tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], dim=1)
        finally:
            if carrier is not None:
                carrier.remove()
        return tokens

    def _logits(self, tokens: Tensor) -> Tensor:
        with torch.no_grad(), Randomness(self._seed).drawing():
            return compared(called(self._teacher, Example(inputs=tokens)))
