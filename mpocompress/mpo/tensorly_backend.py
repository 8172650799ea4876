"""tensorly with torch as its backend, imported on first use: the import takes long and loads scipy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def tensorly_on_torch() -> Iterator[Any]:
    """Import tensorly and yield it, with torch as its backend in this thread.

    Example:
        >>> with tensorly_on_torch() as tensorly:
        ...     tensorly.get_backend()
        'pytorch'
    """
    tensorly = import_module("tensorly")
    with tensorly.backend_context("pytorch", local_threadsafe=True):
        yield tensorly
