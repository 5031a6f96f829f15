"""Owns the processes of one cluster: starts them in order, restarts the fallen, stops them all.

`Cluster.up` starts it detached (`python -m trimwheel_local.supervisor --state DIR --index N`).
It holds the cluster's lock for as long as it lives, and writes what it knows to
`supervisor.json`, from which `Cluster` reads states and, after a kill -9, whom to clean up.
Children get SIGTERM from the kernel when the supervisor dies. Pods do not: their shims outlive
it on purpose, and the next node adopts them.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimwheel_local import binaries
from trimwheel_local.controlplane import Component, components
from trimwheel_local.files import private_folder, read_json, write_json
from trimwheel_local.layout import Layout
from trimwheel_local.names import DEFAULT_FAKE_GPUS
from trimwheel_local.node.runtime import stop_every_pod
from trimwheel_local.processes import ProcessId, stop_all

TICK = 0.1
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0
CALM = 60.0
"""A component that ran this long, in seconds, starts with the first back-off again."""
STOP_GRACE = 8.0
PR_SET_PDEATHSIG = 1
LOG_LIMIT = 16 * 2**20
"""A component's log is put aside at the next start once it is larger than this, in bytes."""


@dataclass
class Child:
    """One component and its current process."""

    component: Component
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ready: bool = False
    restarts: int = 0
    backoff: float = FIRST_BACKOFF
    not_before: float = 0.0

    def start(self, now: float) -> None:
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_suffix(".log.1"))
        private_folder(self.component.folder)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.component.command,
                cwd=self.component.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self.started, self.ready = now, False

    def check(self, now: float) -> None:
        """Notice an exit, and readiness."""
        if self.process is None:
            return
        if self.process.poll() is not None:
            self.backoff = FIRST_BACKOFF if now - self.started > CALM else self.backoff
            self.not_before = now + self.backoff
            self.backoff = min(2 * self.backoff, LAST_BACKOFF)
            self.process, self.ready = None, False
            self.restarts += 1
        elif not self.ready:
            self.ready = self.component.ready()

    def describe(self) -> dict[str, Any]:
        identity = ProcessId.of(self.process.pid) if self.process else None
        return {
            "process": identity.dump() if identity else None,
            "ready": self.ready,
            "restarts": self.restarts,
            "log": str(self.log),
        }


@dataclass
class Supervisor:
    """The loop over all children."""

    layout: Layout
    children: list[Child]
    stopping: bool = False
    written: Any = field(default=None)

    @classmethod
    def create(cls, layout: Layout) -> Supervisor:
        options = read_json(layout.options) or {}
        gpus = int(options.get("fake_gpus", DEFAULT_FAKE_GPUS))
        logs = private_folder(layout.logs)
        parts = components(layout, binaries.find(), gpus)
        return cls(layout, [Child(part, logs / f"{part.name}.log") for part in parts])

    def run(self) -> None:
        """Until a signal asks to stop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        while not self.stopping:
            self.step(time.monotonic())
            time.sleep(TICK)
        self.stop()

    def step(self, now: float) -> None:
        """One look at every child: notice, start what may start, write down."""
        ready = {child.component.name for child in self.children if child.ready}
        for child in self.children:
            child.check(now)
            after = child.component.after
            # Only the first start waits for its predecessor: a restarted API server is no reason
            # to hold back a controller that retries by itself.
            free = child.restarts > 0 or after is None or after in ready
            if child.process is None and free and now >= child.not_before:
                child.start(now)
        self._write()

    def stop(self) -> None:
        """Pods first, then the parts in reverse order."""
        by_name = {child.component.name: child for child in self.children}
        self._end(by_name["node"])
        stop_every_pod(self.layout.pods)
        for child in reversed(self.children):
            self._end(child)
        self.layout.record.unlink(missing_ok=True)

    def _end(self, child: Child) -> None:
        if child.process and (identity := ProcessId.of(child.process.pid)):
            stop_all([identity], STOP_GRACE, group=True)
            child.process.wait()
        child.process = None

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def _write(self) -> None:
        own = ProcessId.of(os.getpid())
        assert own is not None, "a running process has an entry in /proc"
        record = {
            "process": own.dump(),
            "components": {child.component.name: child.describe() for child in self.children},
        }
        if record != self.written:
            write_json(self.layout.record, record)
            self.written = record


# Looked up before the fork: nothing may be loaded between fork and exec.
_PRCTL: Callable[[int, int], int] = ctypes.CDLL(None).prctl


def _die_with_parent() -> None:
    """Runs in the child between fork and exec: SIGTERM when the supervisor dies."""
    _PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Take the lock, then supervise."""
    parser = argparse.ArgumentParser(description="Supervise one embedded cluster.")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--index", type=int, required=True)
    arguments = parser.parse_args()
    layout = Layout(arguments.state, arguments.index)
    with layout.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"cluster {layout.index} has a supervisor already") from None
        Supervisor.create(layout).run()


if __name__ == "__main__":
    main()
