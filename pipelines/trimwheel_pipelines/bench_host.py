"""What a figure was measured on: every bench puts this next to its numbers."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

_LIBRARIES = ("numpy", "scipy", "numba")


def host() -> dict[str, Any]:
    """Processor, number of CPUs and versions."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in _LIBRARIES},
    }


def _processor() -> str:
    """The model name where Linux tells it, else the architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.partition(":")[2].strip() for line in stream if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
