"""Work on many matrices side by side: threads, each with one BLAS thread, results in order, memory bounded."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_BYTES = 128 * 2**20
"""Memory that jobs running at the same time may ask for together; what needs more runs alone."""
SMALL_BYTES = 2**17
"""Jobs that need less than this take turns: most of their time is spent in Python, where threads only get in each
other's way."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many items are done, and how many there are."""


def available_cores() -> int:
    """Number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int,
    step: str,
    progress: Progress | None = None,
    size_bytes: Callable[[Item], int] | None = None,
) -> list[Result]:
    """Apply a function to every item, several at a time as far as memory goes.

    Every job runs on one BLAS thread, however many jobs there are: two threads of one each are faster than one of two,
    and the same sums are then formed in the same order, so that the result does not depend on the number of jobs.

    Args:
        work: the function; it must not share state between items.
        items: what to apply it to.
        jobs: how many at a time.
        step: name of the step, for `progress`.
        progress: told after every item, in the calling thread.
        size_bytes: memory that an item needs; an item waits until it fits beside those running (see `MEMORY_BYTES`),
            and small ones take turns (see `SMALL_BYTES`).

    Returns:
        The results, in the order of the items.

    Raises:
        Exception: whatever `work` raises first, in the order of the items; what has not started is dropped.

    Example:
        >>> run_jobs(len, ["a", "bc"], jobs=2, step="count")
        [1, 2]
    """
    results = []
    share, turn = _Share(MEMORY_BYTES), threading.Lock()

    def bounded(item: Item) -> Result:
        size = size_bytes(item) if size_bytes is not None else SMALL_BYTES
        with share.of(size), turn if size < SMALL_BYTES else nullcontext():
            return work(item)

    with one_blas_thread(), ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(bounded, item) for item in items]
        try:
            for done, future in enumerate(futures):
                if progress is not None:
                    progress(step, done, len(items))
                results.append(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if progress is not None:
        progress(step, len(items), len(items))
    return results


class _Share:
    """A number of bytes shared out among threads."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size_bytes: int) -> Iterator[None]:
        """Hold so many bytes; wait for others to give theirs back, unless nobody holds any."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size_bytes <= self._size_bytes)
            self._taken += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size_bytes
                self._changed.notify_all()


def one_blas_thread() -> AbstractContextManager[None]:
    """Let every product in the block run on one thread: small ones only lose by more."""
    return blas_threads(1)


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Let every product in the block run on so many threads.

    Args:
        count: how many.

    Example:
        >>> with blas_threads(1):
        ...     torch.get_num_threads()
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
