"""The training data of `benchmarks/finetuning.py`: batches, and held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import click
import torch
from torch import Tensor

from benchmarks.finetuning_settings import Settings
from benchmarks.kjv_lm import streams

CHOICE_SEED = 0
"""Seed of the choice of held-out samples, the same for every method and every seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Training data in batches.

    Args:
        batches: Iterates over the data once, in an order drawn from torch's global generator, which `finetune_module`
            seeds.
        held_out: Batches that are not trained on.
    """

    batches: Callable[[], Iterator[Tensor]]
    held_out: Sequence[Tensor]


def material(training: Tensor, settings: Settings) -> Material:
    """Cut training data into batches.

    Args:
        training: Samples, or a text of tokens if the settings have a window length.
        settings: Sizes of batches, and the number of held-out batches.

    Raises:
        click.ClickException: If there are too few.
    """
    least = settings.batch * (settings.length or 1) * (settings.held_out + settings.batches_per_step)
    if len(training) < least:
        raise click.ClickException(f"{len(training):,} training inputs, but {least:,} are needed")
    if settings.length is None:
        return _samples(training, settings)
    return _windows(training, settings.batch, settings.length, settings.held_out)


def _samples(training: Tensor, settings: Settings) -> Material:
    """Independent samples, reordered in every pass; the incomplete last batch of a pass is skipped."""
    batch = settings.batch
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(CHOICE_SEED))
    held_out, trained = order[: settings.held_out * batch], order[settings.held_out * batch :]
    whole = len(trained) // batch * batch

    def batches() -> Iterator[Tensor]:
        if settings.is_regrouped:
            chosen = torch.split(trained[torch.randperm(len(trained))][:whole], batch)
        else:
            groups = torch.split(trained[:whole], batch)
            chosen = tuple(groups[index] for index in torch.randperm(len(groups)).tolist())
        for indices in chosen:
            yield training[indices]

    return Material(batches=batches, held_out=torch.split(training[held_out], batch))


def _windows(text: Tensor, count: int, length: int, held_out: int) -> Material:
    """Consecutive windows of parallel streams with another offset in every pass; the end is held out."""
    border = len(text) - held_out * count * length

    def cut(part: Tensor) -> tuple[Tensor, ...]:
        parallel = streams(part, count)
        return torch.split(parallel[:, : parallel.shape[1] // length * length], length, 1)

    def batches() -> Iterator[Tensor]:
        offset = int(torch.randint(max(1, min(count * length, border - count * length)), ()))
        yield from cut(text[offset:border])

    return Material(batches=batches, held_out=cut(text[border:]))
