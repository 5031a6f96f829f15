"""Identity of a process that outlives its pid: pid plus start time.

A pid alone is not an identity: after a crash or a reboot it may belong to somebody else, and
killing it would hurt a stranger. Used by the supervisor, `Cluster` and the node's runtime.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProcessId:
    """A process for as long as it lives: pid and start time in clock ticks since boot."""

    pid: int
    start: int

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a live process, or None (gone, or a zombie waiting to be reaped)."""
        fields = _stat(pid)
        return None if fields is None else cls(pid, fields)

    @classmethod
    def load(cls, value: Any) -> ProcessId | None:
        """Read what `dump` wrote; anything else is None."""
        if not isinstance(value, dict):
            return None
        pid, start = value.get("pid"), value.get("start")
        return cls(pid, start) if type(pid) is int and type(start) is int else None

    def dump(self) -> dict[str, int]:
        return {"pid": self.pid, "start": self.start}

    def alive(self) -> bool:
        return _stat(self.pid) == self.start

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, to the whole process group if asked; a dead process is no error."""
        if not self.alive():
            return
        with suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)


def _stat(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (start time); the command name may itself hold spaces."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def stop_all(targets: Iterable[ProcessId], grace: float, *, group: bool = False) -> None:
    """SIGTERM to each, then SIGKILL to those still alive after `grace` seconds."""
    waiting = [target for target in targets if target.alive()]
    for target in waiting:
        target.signal(signal.SIGTERM, group=group)
    deadline = time.monotonic() + grace
    while waiting and time.monotonic() < deadline:
        waiting = [target for target in waiting if target.alive()]
        time.sleep(0.05)
    for target in waiting:
        target.signal(signal.SIGKILL, group=group)
    while any(target.alive() for target in waiting):
        time.sleep(0.01)
