"""Work on many matrices side by side: threads, each with one BLAS thread, results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

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
) -> list[Result]:
    """Apply a function to every item, several at a time.

    Every job runs on one BLAS thread, however many jobs there are: two threads of one each are faster than one of two,
    and the same sums are then formed in the same order, so that the result does not depend on the number of jobs.

    Args:
        work: the function; it must not share state between items.
        items: what to apply it to.
        jobs: how many at a time.
        step: name of the step, for `progress`.
        progress: told after every item, in the calling thread.

    Returns:
        The results, in the order of the items.

    Raises:
        Exception: whatever `work` raises first, in the order of the items; what has not started is dropped.

    Example:
        >>> run_jobs(len, ["a", "bc"], jobs=2, step="count")
        [1, 2]
    """
    results = []
    with _one_blas_thread(), ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(work, item) for item in items]
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


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
