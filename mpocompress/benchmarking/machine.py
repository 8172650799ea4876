"""What figures of speed depend on: the processor."""

from __future__ import annotations

import platform
from pathlib import Path

CPU_FILE = Path("/proc/cpuinfo")


def processor() -> str:
    """The name of the processor, as the system tells it.

    Returns:
        Its name; the kind of machine where the system does not tell.

    Example:
        >>> processor() != ""
        True
    """
    models = CPU_FILE.read_text().split("model name")[1:2] if CPU_FILE.exists() else []
    return models[0].partition("\n")[0].strip(" \t:") if models else platform.machine()
