"""How much memory the demo's own processes take, and the most that was seen.

A process counts with its proportional set size (PSS): shared pages are divided among those that
share them, so the sum over processes is what they take together, and other programs of the machine
do not count. Started by `world`, read by `play`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import psutil

from trimwheel_demo import load
from trimwheel_local.files import read_json
from trimwheel_local.processes import ProcessId

SECONDS = 5.0
"""Reading PSS walks page tables, so not too often."""
MEASURED = (
    f"PSS of the demo's own local processes, every {SECONDS:g} s: this program, control plane, "
    "node, add-ons, pods with their Ray, load generator"
)


class MemoryWatch(threading.Thread):
    """Samples until the program ends; `peak` is the most so far, in bytes."""

    def __init__(self, supervisor: Path, load_folder: load.Folder) -> None:
        """`supervisor`: where the embedded cluster's supervisor notes its process."""
        super().__init__(daemon=True, name="memory")
        self._supervisor = supervisor
        self._load = load_folder
        self._ended = threading.Event()
        self.peak = 0

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._ended.wait(SECONDS):
            self.peak = max(self.peak, proportional_size(self._roots()))

    def stop(self) -> int:
        """End, and return the peak."""
        self._ended.set()
        return self.peak

    def _roots(self) -> list[int]:
        """This program, and what it may have found running rather than started."""
        supervisor = ProcessId.load((read_json(self._supervisor) or {}).get("process"))
        running = [supervisor.pid] if supervisor is not None and supervisor.alive() else []
        generator = self._load.running()
        return [psutil.Process().pid, *running, *([generator] if generator else [])]


def proportional_size(roots: Iterable[int]) -> int:
    """PSS of these processes and all their descendants; one that ends meanwhile counts nothing."""
    family: dict[int, psutil.Process] = {}
    for pid in roots:
        try:
            process = psutil.Process(pid)
            family |= {one.pid: one for one in (process, *process.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue
    return sum(_size(process) for process in family.values())


def _size(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
