from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from mpocompress.nn.buffer_pool import Rooms


@pytest.fixture
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_a_room_is_made_when_none_is_free_and_taken_again_when_one_is() -> None:
    rooms = Rooms[list[int]](list)
    first, second = rooms.take(), rooms.take()
    rooms.give(first)

    assert first is not second
    assert rooms.take() is first


class _JustTaken(list[list[int]]):
    """As it is found when another thread takes the last room between a look and a grasp."""

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return 1


def test_another_is_made_when_the_last_one_was_just_taken() -> None:
    rooms = Rooms[list[int]](list)
    rooms._free = _JustTaken()

    assert rooms.take() == []


@pytest.mark.usefixtures("_threads_take_turns_often")
def test_no_two_threads_have_one_room() -> None:
    rooms = Rooms[list[int]](list)
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            for _ in range(3000):
                room = rooms.take()
                room.append(1)
                if len(room) != 1:
                    raise AssertionError("two threads in one room")
                room.clear()
                rooms.give(room)
        except BaseException as error:  # noqa: BLE001 - whatever a thread raises is the result
            failures.append(error)

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
