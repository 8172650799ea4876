"""Ctrl-C during training: noted when it arrives, and acted on between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

SAME_SIGNAL_S = 1.0
"""Signals that come so soon after the first are the same one, sent to a whole group of processes."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Yield an event that SIGINT (Ctrl-C) and SIGTERM set in the block; a second one, a while later, acts at once."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    first_s = 0.0

    def request(number: int, frame: Any) -> None:
        nonlocal first_s
        if requested.is_set() and time.monotonic() - first_s > SAME_SIGNAL_S:
            raise KeyboardInterrupt
        first_s = first_s if requested.is_set() else time.monotonic()
        requested.set()

    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before not in (signal.SIG_IGN, None):
                stack.callback(signal.signal, number, before)
                signal.signal(number, request)
        yield requested
