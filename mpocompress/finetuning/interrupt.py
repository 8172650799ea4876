"""Ctrl-C while a model is trained: noted, and acted upon between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

AGAIN_S = 1.0
"""Signals that come so soon after the first are the same one, sent to a whole group of processes."""


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Note Ctrl-C, and being told to end, in the block; a second time, a while later, they act at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    first_s = 0.0

    def note(number: int, frame: Any) -> None:
        nonlocal first_s
        if asked.is_set() and time.monotonic() - first_s > AGAIN_S:
            raise KeyboardInterrupt
        first_s = first_s if asked.is_set() else time.monotonic()
        asked.set()

    with ExitStack() as stack:
        for one in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(one)
            if before not in (signal.SIG_IGN, None):
                stack.callback(signal.signal, one, before)
                signal.signal(one, note)
        yield asked
