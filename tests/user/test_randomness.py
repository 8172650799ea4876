"""Random numbers of one's own: all three generators, going on where they were, and nobody else disturbed."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
import torch

from mpocompress.user.randomness import LARGEST_SEED, Randomness, Stream, stream_seed

Drawn = tuple[float, float, float]


def drawn() -> Drawn:
    return float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def in_block(draws: Randomness) -> Drawn:
    with draws.drawing():
        return drawn()


def test_what_is_drawn_goes_on_and_is_the_same_for_the_same_seed() -> None:
    one, other, third = Randomness(5), Randomness(5), Randomness(6)
    first, second = in_block(one), in_block(one)

    assert not set(first) & set(second)
    assert (first, second) == (in_block(other), in_block(other))
    assert not set(first) & set(in_block(third))


def test_the_generators_of_all_others_stay_where_they_are() -> None:
    outside = Randomness()
    with outside.drawing():
        wanted = [drawn() for _ in range(2)]

    draws = Randomness(5)
    in_block(draws)
    found = [drawn()]
    in_block(draws)
    found.append(drawn())

    assert found == wanted


def test_a_seed_is_that_of_torch_and_is_noted_for_no_device_that_begins_later(monkeypatch: pytest.MonkeyPatch) -> None:
    with Randomness(0).drawing():
        torch.manual_seed(5)
        wanted = float(torch.rand(()))
    noted: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", noted.append)

    assert in_block(Randomness(5))[0] == wanted
    assert not noted


def test_without_a_seed_it_begins_where_the_generators_are() -> None:
    draws, wanted = Randomness(), drawn()

    assert in_block(draws) == wanted


def test_blocks_can_lie_in_each_other_and_end_with_an_error() -> None:
    one, other, wanted = Randomness(1), Randomness(2), [in_block(again) for again in [Randomness(1)] * 2]
    state = torch.get_rng_state()

    def fails() -> None:
        with other.drawing():
            drawn()
            raise KeyError

    with one.drawing():
        first = drawn()
        with pytest.raises(KeyError):
            fails()
        second = drawn()

    assert [first, second] == wanted
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [0, LARGEST_SEED, LARGEST_SEED + 1, 2**70])
def test_seeds_of_any_size_are_taken(seed: int) -> None:
    assert in_block(Randomness(seed)) == in_block(Randomness(seed))


def test_every_stream_and_position_has_a_seed_of_its_own() -> None:
    positions = [numbers for count in (0, 1, 2) for numbers in product(range(1, 6), repeat=count)]
    seeds = [stream_seed(seed, stream, *numbers) for seed in range(3) for stream in Stream for numbers in positions]

    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed <= LARGEST_SEED for seed in seeds)
    assert stream_seed(2**40, Stream.SCORE) == stream_seed(2**40, Stream.SCORE) != stream_seed(2**41, Stream.SCORE)


def test_seeds_of_streams_are_those_of_their_numbers() -> None:
    """A run that is resumed draws what it would have drawn, so that these must never change."""
    for number, stream in enumerate([Stream.DATA, Stream.TRAINING, Stream.EVALUATION, Stream.SCORE, Stream.GENERATION]):
        assert stream_seed(7, stream, 3) == int(np.random.SeedSequence((7, number, 3)).generate_state(1)[0])
