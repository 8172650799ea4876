"""Parallel work on many matrices: threads with one BLAS thread each, ordered results, bounded memory."""

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
"""Memory limit of all jobs that run at the same time; a job that needs more runs alone."""
SMALL_BYTES = 2**17
"""Jobs that need less memory than this run one at a time: they spend most of their time in Python, holding its lock."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, the number of items done, and the number of all items."""


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
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
    """Apply a function to every item, in parallel as far as memory allows.

    Every job runs on one BLAS thread, whatever the number of jobs: two jobs of one thread are faster than one job of
    two, and sums are formed in the same order, so that results do not depend on the number of jobs.

    Args:
        work: the function; calls must not share state.
        items: its arguments.
        jobs: number of threads.
        step: name of the step, for `progress`.
        progress: called after every item, in the calling thread.
        size_bytes: memory that an item needs; an item waits until it fits (see `MEMORY_BYTES`), and small ones run one
            at a time (see `SMALL_BYTES`).

    Returns:
        The results, in the order of the items.

    Raises:
        Exception: the error of the first item that fails, in the order of the items; items not yet started are dropped.

    Example:
        >>> run_jobs(len, ["a", "bc"], jobs=2, step="count")
        [1, 2]
    """
    results = []
    memory, small = _MemoryLimit(MEMORY_BYTES), threading.Lock()

    def bounded(item: Item) -> Result:
        size = size_bytes(item) if size_bytes is not None else SMALL_BYTES
        with memory.reserved(size), small if size < SMALL_BYTES else nullcontext():
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


class _MemoryLimit:
    """A number of bytes that threads reserve parts of."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._reserved_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserved(self, size_bytes: int) -> Iterator[None]:
        """Reserve `size_bytes` in the block; wait until they fit. A single job may exceed the limit."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._reserved_bytes or self._reserved_bytes + size_bytes <= self._limit_bytes
            )
            self._reserved_bytes += size_bytes
        try:
            yield
        finally:
            with self._changed:
                self._reserved_bytes -= size_bytes
                self._changed.notify_all()


def one_blas_thread() -> AbstractContextManager[None]:
    """Run every product in the block on one thread; more threads make small products slower."""
    return blas_threads(1)


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Run every product in the block on `count` threads.

    Args:
        count: number of threads.

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
