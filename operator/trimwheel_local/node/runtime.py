"""Runs containers as processes: spawn through the shim, watch, signal, adopt, clean up.

An `Attempt` is one run of one container, and lives in a folder of its own, `PODS/UID/c/NAME/N`.
Everything needed to find it again after the node died is in that folder. Used by
`node.containers`, and by the supervisor to stop what is left when the cluster goes down.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trimwheel_local.files import private_folder, read_json, write_json
from trimwheel_local.processes import ProcessId, stop_all

SHIM = Path(__file__).with_name("shim.py")
KEPT_ATTEMPTS = 2
"""The current run and the one that `kubectl logs --previous` shows."""
LOST_CODE = 137
"""Exit code of a run whose end nobody saw, as the kubelet reports it."""
STOP_GRACE = 10.0


@dataclass(frozen=True)
class Launch:
    """What a container runs: command, environment and working folder."""

    command: list[str]
    environment: dict[str, str]
    folder: Path


@dataclass(frozen=True)
class Exit:
    """How a run ended; `code` is the exit status, or 128 + signal."""

    code: int
    started: str
    finished: str
    reason: str
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.code == 0


@dataclass(frozen=True)
class Attempt:
    """One run of one container."""

    folder: Path
    number: int

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def shim(self) -> ProcessId | None:
        return ProcessId.load(read_json(self.folder / "shim.json"))

    @property
    def process(self) -> ProcessId | None:
        return ProcessId.load(read_json(self.folder / "state.json"))

    @property
    def started(self) -> str:
        state = read_json(self.folder / "state.json") or {}
        return str(state.get("startedAt", timestamp()))

    @property
    def launch(self) -> Launch:
        """What was started; exec probes run in the same surroundings."""
        spec = json.loads((self.folder / "spec.json").read_bytes())
        return Launch(spec["command"], spec["environment"], Path(spec["folder"]))

    def running(self) -> bool:
        return self.shim is not None and self.shim.alive()

    def signal(self, number: int) -> None:
        """To the command's whole process group."""
        if self.process:
            self.process.signal(number, group=True)

    def exit(self) -> Exit:
        """How it ended; a shim that died without a word counts as killed."""
        end = read_json(self.folder / "exit.json")
        if end is None:
            return Exit(LOST_CODE, self.started, timestamp(), "ContainerStatusUnknown")
        code = int(end["code"])
        if code < 0:
            return Exit(128 - code, self.started, end["finishedAt"], "Error", f"signal {-code}")
        return Exit(code, self.started, end["finishedAt"], "Error" if code else "Completed")

    async def wait(self) -> Exit:
        """Until the run is over, whoever started it."""
        shim = self.shim
        if shim is not None and shim.alive():
            with suppress(ProcessLookupError):
                await _ended(shim.pid)
            # Only the node that started it is its parent and has to reap it.
            with suppress(ChildProcessError):
                os.waitpid(shim.pid, os.WNOHANG)
        if self.process and self.process.alive():
            self.process.signal(signal.SIGKILL, group=True)
        return self.exit()


class StartFailure(Exception):
    """The command could not be executed; the text is the operating system's."""


async def start(folder: Path, number: int, launch: Launch) -> Attempt:
    """Start attempt `number` of the container that lives in `folder`.

    Raises StartFailure when the command cannot be executed.
    """
    for old in attempts(folder)[: 1 - KEPT_ATTEMPTS]:
        shutil.rmtree(old.folder)
    attempt = Attempt(private_folder(folder / str(number)), number)
    spec = {
        "command": launch.command,
        "environment": launch.environment,
        "folder": str(launch.folder),
    }
    write_json(attempt.folder / "spec.json", spec)
    answer = await asyncio.to_thread(_spawn, attempt)
    if "error" in answer:
        raise StartFailure(answer["error"])
    return attempt


def _spawn(attempt: Attempt) -> dict[str, str]:
    with (attempt.folder / "shim.err").open("wb") as errors:
        shim = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SHIM), str(attempt.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            env={},
        )
    identity = ProcessId.of(shim.pid)
    if identity:
        write_json(attempt.folder / "shim.json", identity.dump())
    assert shim.stdout is not None, "stdout was asked for"
    with shim.stdout:
        line = shim.stdout.readline()
    if not line:
        shim.wait()
        text = (attempt.folder / "shim.err").read_text(errors="replace")
        return {"error": f"the shim died: {text.strip()[-500:]}"}
    answer: dict[str, str] = json.loads(line)
    if "error" in answer:
        shim.wait()
    else:
        # Nobody calls wait on the object again; `Attempt.wait` reaps by pid.
        shim.returncode = 0
    return answer


async def _ended(pid: int) -> None:
    """Until the process is gone; works for processes that are not our children."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    handle = os.pidfd_open(pid)
    loop.add_reader(handle, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def attempts(folder: Path) -> list[Attempt]:
    """The kept runs of a container, oldest first."""
    numbers = (int(path.name) for path in folder.glob("*") if path.name.isdigit())
    return [Attempt(folder / str(number), number) for number in sorted(numbers)]


def stop_every_pod(pods: Path) -> None:
    """SIGTERM to every running container below `pods`, SIGKILL after a grace period."""
    stop_all(_live(pods), STOP_GRACE, group=True)


def kill_pod(folder: Path) -> None:
    """Kill what still runs of one pod, and remove its folder."""
    stop_all(_live(folder.parent, folder.name), 0, group=True)
    shutil.rmtree(folder, ignore_errors=True)


def _live(pods: Path, name: str = "*") -> Iterable[ProcessId]:
    for state in pods.glob(f"{name}/c/*/*/state.json"):
        process = ProcessId.load(read_json(state))
        if process and process.alive():
            yield process


def timestamp() -> str:
    """Now, as the API writes times."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
