"""Training data that a language model generates itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpocompress.errors import FinetuneError
from mpocompress.finetuning.forward import compared_output, run_model
from mpocompress.finetuning.recurrent_state import StatefulRNN
from mpocompress.user.batches import Batch
from mpocompress.user.randomness import Randomness, Stream, stream_seed

_PROBE_LENGTH = 6
_CLOSE = 1e-3
"""Largest difference of logits that count as equal, relative to their standard deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfGenerated:
    """Texts that the teacher generates, in place of data: it draws every token from its own prediction.

    For language models, which are called with token ids of shape (batch, length) and return logits of shape (batch,
    length, vocabulary). The first token of every text is drawn from the uniform distribution.

    Args:
        batch_size: texts in a batch.
        length: tokens of a text.
        batches: number of batches, which are passed over again and again.

    Raises:
        FinetuneError: a number below 1, or a length below 2.

    Source:
        Liu et al. 2023, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", arXiv 2305.17888,
        which takes the most likely token for the first few; here all are drawn.

    Example:
        >>> SelfGenerated(length=64).batch_size
        32
    """

    __module__ = "mpocompress"

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
                    why=f"it must be {least} or more",
                    action="Give such a number.",
                )

    def __str__(self) -> str:
        return f"{self.batches} x {self.batch_size} texts of {self.length} tokens that the teacher wrote"


class GeneratedTexts:
    """The batches of `SelfGenerated`, generated when first needed, and kept.

    Args:
        teacher: the model that generates them, in evaluation mode.
        settings: their number and size.
        seed: seed of the run.
        device: device of the teacher.

    Raises:
        FinetuneError: the outputs of the teacher are no logits for token ids.
    """

    def __init__(self, teacher: nn.Module, settings: SelfGenerated, *, seed: int, device: torch.device) -> None:
        self._teacher, self._settings, self._seed, self._device = teacher, settings, seed, device
        self._generated: list[Tensor] = []
        self._vocabulary = self._vocabulary_size()
        self._is_stepwise = self._can_step()

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the batches, in the same order each time."""
        for number in range(self._settings.batches):
            if number == len(self._generated):
                self._generated.append(self._generate(number))
            yield self._generated[number]

    def _vocabulary_size(self) -> int:
        tokens = torch.zeros((self._settings.batch_size, 2), dtype=torch.int64, device=self._device)
        logits = self._logits(tokens)
        if logits.dim() != 3 or logits.shape[:2] != tokens.shape or logits.shape[2] < 2:
            raise FinetuneError(
                where=type(self._teacher).__name__,
                found=f"outputs of shape {tuple(logits.shape)} for token ids of shape {tuple(tokens.shape)}",
                why="a model that generates texts returns a logit for every token of its vocabulary at every position",
                action="Give data to train on.",
            )
        return int(logits.shape[2])

    def _can_step(self) -> bool:
        """Return whether the teacher can be called with one token at a time, its past in the recurrent states."""
        generator = torch.Generator().manual_seed(self._seed % 2**32)
        shape = (self._settings.batch_size, _PROBE_LENGTH)
        tokens = torch.randint(self._vocabulary, shape, generator=generator).to(self._device)
        whole = self._logits(tokens)
        try:
            hooks = StatefulRNN(self._teacher)
        except FinetuneError:
            return False
        try:
            steps = torch.cat([self._logits(token) for token in torch.split(tokens, 1, dim=1)], dim=1)
        finally:
            hooks.remove()
        return bool((steps - whole).abs().max() <= _CLOSE * (whole.std() + 1e-12))

    def _generate(self, number: int) -> Tensor:
        """Return one batch of token ids."""
        settings = self._settings
        generator = torch.Generator().manual_seed(stream_seed(self._seed, Stream.GENERATION, number))
        tokens = torch.randint(self._vocabulary, (settings.batch_size, 1), generator=generator)
        hooks = StatefulRNN(self._teacher) if self._is_stepwise else None
        try:
            while tokens.shape[1] < settings.length:
                inputs = tokens[:, -1:] if hooks is not None else tokens
                probabilities = self._logits(inputs.to(self._device))[:, -1].float().softmax(dim=-1).cpu()
                tokens = torch.cat([tokens, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
        finally:
            if hooks is not None:
                hooks.remove()
        return tokens

    def _logits(self, tokens: Tensor) -> Tensor:
        with torch.no_grad(), Randomness(self._seed).drawing():
            return compared_output(run_model(self._teacher, Batch(inputs=tokens)))
