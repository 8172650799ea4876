"""What `benchmarks/finetuning.py` trains on: batches out of the training part of a model's data, and some held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import click
import torch
from torch import Tensor

from benchmarks.finetuning_settings import Settings
from benchmarks.kjv_lm import streams

CHOICE_SEED = 0
"""Chooses which samples are held out: the same ones for every method and every seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Batches to train on.

    Args:
        batches: goes through the data once, in an order that is drawn from torch's global generator, which `finetune`
            seeds.
        held_out: batches that are never trained on.
    """

    batches: Callable[[], Iterator[Tensor]]
    held_out: Sequence[Tensor]


def material(training: Tensor, settings: Settings) -> Material:
    """Cut training data into batches.

    Args:
        training: samples, or a text of tokens where the settings name the length of a window.
        settings: how they are cut, and how many are held out.

    Raises:
        click.ClickException: there are too few.
    """
    least = settings.batch * (settings.length or 1) * (settings.held_out + settings.batches_per_step)
    if len(training) < least:
        raise click.ClickException(f"{len(training):,} inputs to train on, {least:,} are needed")
    if settings.length is None:
        return _samples(training, settings)
    return _windows(training, settings.batch, settings.length, settings.held_out)


def _samples(training: Tensor, settings: Settings) -> Material:
    """Samples by themselves, in another order in every pass; those left over in a pass are not seen in it."""
    batch = settings.batch
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(CHOICE_SEED))
    kept, trained = order[: settings.held_out * batch], order[settings.held_out * batch :]
    whole = len(trained) // batch * batch

    def batches() -> Iterator[Tensor]:
        if settings.is_regrouped:
            chosen = torch.split(trained[torch.randperm(len(trained))][:whole], batch)
        else:
            together = torch.split(trained[:whole], batch)
            chosen = tuple(together[place] for place in torch.randperm(len(together)).tolist())
        for places in chosen:
            yield training[places]

    return Material(batches=batches, held_out=torch.split(training[kept], batch))


def _windows(text: Tensor, count: int, length: int, held_out: int) -> Material:
    """Consecutive windows of streams side by side, which begin elsewhere in every pass; the end is held out."""
    border = len(text) - held_out * count * length

    def cut(part: Tensor) -> tuple[Tensor, ...]:
        side_by_side = streams(part, count)
        return torch.split(side_by_side[:, : side_by_side.shape[1] // length * length], length, 1)

    def batches() -> Iterator[Tensor]:
        offset = int(torch.randint(max(1, min(count * length, border - count * length)), ()))
        yield from cut(text[offset:border])

    return Material(batches=batches, held_out=cut(text[border:]))
