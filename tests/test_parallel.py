"""Many items side by side: results in order, errors as they are, threads as they were."""

from __future__ import annotations

import os
import threading
from typing import NoReturn

import pytest
import torch

from mpocompress.parallel import MEMORY_BYTES, available_cores, run_jobs


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(jobs: int) -> None:
    assert run_jobs(lambda item: item * item, range(20), jobs=jobs, step="square") == [item**2 for item in range(20)]


def test_no_items_are_no_results() -> None:
    said: list[tuple[str, int, int]] = []

    assert run_jobs(str, [], jobs=2, step="nothing", progress=lambda *one: said.append(one)) == []
    assert said == [("nothing", 0, 0)]


def test_progress_is_told_in_the_calling_thread_from_none_to_all() -> None:
    said: list[tuple[str, int, int]] = []
    threads: set[int] = set()

    def progress(step: str, done: int, count: int) -> None:
        said.append((step, done, count))
        threads.add(threading.get_ident())

    run_jobs(str, [1, 2, 3], jobs=2, step="work", progress=progress)

    assert said == [("work", done, 3) for done in range(4)]
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("jobs", [1, 3])
def test_jobs_run_side_by_side(jobs: int) -> None:
    """As many items as jobs meet at a barrier; with fewer threads they would wait for ever."""
    barrier = threading.Barrier(jobs)

    assert len(run_jobs(lambda _: barrier.wait(timeout=30), range(jobs), jobs=jobs, step="meet")) == jobs


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_error_in_the_order_of_the_items_is_raised_and_the_rest_dropped(jobs: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item in (1, 2):
            raise ValueError(f"item {item}")
        return item

    with pytest.raises(ValueError, match="item 1"):
        run_jobs(work, range(10_000), jobs=jobs, step="work")

    assert len(begun) < 10_000


def test_an_interrupt_in_progress_stops_the_work() -> None:
    def interrupt(_step: str, done: int, _count: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs(str, range(100), jobs=2, step="work", progress=interrupt)


def test_every_job_has_one_thread_and_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(run_jobs(lambda _: torch.get_num_threads(), range(4), jobs=2, step="count")) == {1}
        assert torch.get_num_threads() == 2

        def fail(_: int) -> NoReturn:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run_jobs(fail, [0], jobs=1, step="fail")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_cores_are_those_this_process_may_use() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_items_that_do_not_fit_together_run_one_after_another() -> None:
    running: list[int] = []
    together: list[int] = []

    def work(size: int) -> None:
        running.append(size)
        together.append(sum(running))
        running.remove(size)

    sizes = [MEMORY_BYTES // 2 + 1] * 20 + [2 * MEMORY_BYTES]
    run_jobs(work, sizes, jobs=4, step="hold", size_bytes=lambda size: size)

    assert max(together) == 2 * MEMORY_BYTES  # that one alone
    assert sorted(together) == sorted(sizes)


def test_items_that_fit_together_run_together() -> None:
    meeting = threading.Barrier(2)

    run_jobs(lambda _: meeting.wait(timeout=30), [1, 2], jobs=2, step="meet", size_bytes=lambda _: MEMORY_BYTES // 2)


def test_memory_is_given_back_by_an_item_that_fails() -> None:
    def work(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError):
        run_jobs(work, [0, 1, 2], jobs=2, step="fail", size_bytes=lambda _: MEMORY_BYTES)
