from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from mpocompress.nn.buffer_pool import BufferPool
from tests.programs import run_threads


@pytest.fixture
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_buffer_is_made_when_none_is_free_and_taken_again_when_one_is() -> None:
    pool = BufferPool[list[int]](list)
    first, second = pool.take(), pool.take()
    pool.give_back(first)

    assert first is not second
    assert pool.take() is first


class _JustTaken(list[list[int]]):
    """As it is found when another thread takes the last buffer between a check and its removal."""

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return 1


def test_another_is_made_when_the_last_one_was_just_taken() -> None:
    pool = BufferPool[list[int]](list)
    pool._free = _JustTaken()

    assert pool.take() == []


@pytest.mark.usefixtures("_threads_take_turns_often")
def test_no_two_threads_have_one_buffer() -> None:
    pool = BufferPool[list[int]](list)

    def visit() -> None:
        for _ in range(3000):
            buffer = pool.take()
            buffer.append(1)
            assert len(buffer) == 1, "two threads have one buffer"
            buffer.clear()
            pool.give_back(buffer)

    run_threads([visit] * 4)
