"""The life of one container: start, probe, restart with back-off, stop.

`ContainerLoop.run` ends when the restart policy asks for no further run. It adopts a run that an
earlier node started. What it learns it keeps in a `ContainerState`, and calls `changed`.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimwheel_local.node import probes, runtime
from trimwheel_local.node.environment import ConfigError
from trimwheel_local.node.logs import last_lines
from trimwheel_local.node.runtime import Attempt, Exit, Launch, StartFailure
from trimwheel_local.node.status import ContainerState, waiting

Object = dict[str, Any]

FIRST_BACKOFF, LAST_BACKOFF = 1.0, 60.0
"""Seconds between restarts. The kubelet's classic 10 to 300 s suits image pulls, not a laptop;
these are the numbers of its own KubeletCrashLoopBackOffMax feature."""
CALM = 600.0
"""A run this long, in seconds, resets the back-off."""
CONFIG_RETRY = 1.0
STARTING_POLL = 0.01
CANNOT_RUN = 128


@dataclass(frozen=True)
class Surroundings:
    """What a container needs from its pod."""

    folder: Path
    """The pod's folder."""
    address: str
    uid: str
    policy: str
    grace: float
    prepare: Callable[[Object, Path], Awaitable[Launch]]
    """(container, its working folder) -> what to run. Raises ConfigError."""
    changed: Callable[[], None]
    say: Callable[[str, str, str], None]
    """(Normal or Warning, reason, message) -> an Event about the pod."""


class ContainerLoop:
    """One container of one pod."""

    def __init__(self, place: Surroundings, container: Object, *, init: bool = False) -> None:
        self.place = place
        self.container = container
        self.name: str = container["name"]
        self.folder = place.folder / "c" / self.name
        self.status = ContainerState(self.name, container["image"])
        self.attempt: Attempt | None = None
        self.stopping = False
        self._starting = False
        # An init container that is to run for ever makes no sense; Always means OnFailure.
        always = "OnFailure" if init else "Always"
        self.policy = always if place.policy == "Always" else place.policy
        self._backoff = FIRST_BACKOFF

    @property
    def settled(self) -> bool:
        """Whether its last run, if there was one, has ended and was noted."""
        return self.attempt is None or self.status.over

    async def run(self) -> int:
        """Until it has ended for good; returns the last exit code."""
        kept = runtime.attempts(self.folder)
        attempt = kept[-1] if kept else None
        if len(kept) > 1:
            self._remember(kept[-2].exit())
        while True:
            try:
                attempt = attempt or await self._start()
                end = await self._watch(attempt)
            except StartFailure as failure:
                now = runtime.timestamp()
                end = Exit(CANNOT_RUN, now, now, "StartError", str(failure))
                self.place.say("Warning", "Failed", f"container {self.name}: {failure}")
            self._ended(end)
            if self.stopping or not self._again(end):
                self.status.over = True
                self.place.changed()
                return end.code
            self.place.changed()
            await self._back_off(end)
            if self.stopping:
                return end.code
            attempt = None

    async def stop(self, grace: float) -> None:
        """End it: preStop hook, SIGTERM to the group, SIGKILL when the grace period is over."""
        self.stopping = True
        while self._starting:
            await asyncio.sleep(STARTING_POLL)
        attempt = self.attempt
        if attempt is None or not attempt.running():
            return
        deadline = time.monotonic() + grace
        hook = self.container.get("lifecycle", {}).get("preStop")
        if hook:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hook(hook, attempt), grace)
        await _terminate(attempt, max(deadline - time.monotonic(), 0))

    def kill(self) -> None:
        """End it at once."""
        self.stopping = True
        if self.attempt:
            self.attempt.signal(signal.SIGKILL)

    async def _start(self) -> Attempt:
        """Prepare and start the next run; waits for ConfigMaps and the like to appear."""
        number = runtime.attempts(self.folder)[-1].number + 1 if self._kept() else 0
        work = self.folder / "w"
        while True:
            try:
                # A new run gets a new root, as from an image; only volumes keep their files.
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
                launch = await self.place.prepare(self.container, work)
                break
            except ConfigError as error:
                self._wait_state("CreateContainerConfigError", str(error))
                self.place.say("Warning", "Failed", f"container {self.name}: {error}")
                await asyncio.sleep(CONFIG_RETRY)
        # Somebody who wants to stop the container waits for this to be over.
        self._starting = True
        try:
            attempt = self.attempt = await runtime.start(self.folder, number, launch)
        finally:
            self._starting = False
        self.place.say("Normal", "Started", f"Started container {self.name}")
        return attempt

    def _kept(self) -> bool:
        return bool(runtime.attempts(self.folder))

    async def _watch(self, attempt: Attempt) -> Exit:
        """From the start of a run to its end, probing it."""
        self.attempt = attempt
        status = self.status
        status.state = {"running": {"startedAt": attempt.started[:19] + "Z"}}
        status.restarts = attempt.number
        status.container_id = f"process://{self.place.uid}/{self.name}/{attempt.number}"
        status.started = "startupProbe" not in self.container
        status.ready = status.started and "readinessProbe" not in self.container
        self.place.changed()
        probing = asyncio.create_task(self._probe(attempt))
        try:
            return await attempt.wait()
        finally:
            probing.cancel()

    async def _probe(self, attempt: Attempt) -> None:
        startup = self.container.get("startupProbe")
        if startup:
            async for healthy, why in self._verdicts(startup, attempt, eager=True):
                if healthy:
                    break
                await self._unhealthy("Startup", why, attempt)
                return
            self.status.started = True
            self.status.ready = "readinessProbe" not in self.container
            self.place.changed()
        await asyncio.gather(self._readiness(attempt), self._liveness(attempt))

    async def _readiness(self, attempt: Attempt) -> None:
        if probe := self.container.get("readinessProbe"):
            async for healthy, why in self._verdicts(probe, attempt, eager=True):
                self.status.ready = healthy
                self.place.changed()
                if not healthy:
                    message = f"Readiness probe of container {self.name} failed: {why}"
                    self.place.say("Warning", "Unhealthy", message)

    async def _liveness(self, attempt: Attempt) -> None:
        if probe := self.container.get("livenessProbe"):
            async for healthy, why in self._verdicts(probe, attempt, eager=False):
                if not healthy:
                    await self._unhealthy("Liveness", why, attempt)
                    return

    def _verdicts(self, probe: Object, attempt: Attempt, *, eager: bool) -> Any:
        timing = probes.Timing.of(probe, eager=eager)
        check = probes.check_of(probe, self.container, self.place.address, attempt.launch)
        return probes.verdicts(timing, check)

    async def _unhealthy(self, kind: str, why: str, attempt: Attempt) -> None:
        self.place.say("Warning", "Unhealthy", f"{kind} probe of {self.name} failed: {why}")
        self.place.say("Normal", "Killing", f"Container {self.name} is restarted")
        await _terminate(attempt, self.place.grace)

    async def _hook(self, hook: Object, attempt: Attempt) -> None:
        if "sleep" in hook:
            await asyncio.sleep(float(hook["sleep"]["seconds"]))
            return
        address = self.place.address
        why = await probes.check_of(hook, self.container, address, attempt.launch)()
        if why:
            message = f"preStop hook of {self.name}: {why}"
            self.place.say("Warning", "FailedPreStopHook", message)

    def _ended(self, end: Exit) -> None:
        status = self.status
        status.ready = status.started = False
        status.state = {"terminated": self._describe(end)}

    def _describe(self, end: Exit) -> Object:
        message = end.message
        if (
            not end.ok
            and self.attempt
            and self.container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        ):
            message = last_lines(self.attempt.log) or message
        return {
            "exitCode": end.code,
            "reason": end.reason,
            "startedAt": end.started[:19] + "Z",
            "finishedAt": end.finished[:19] + "Z",
            "containerID": self.status.container_id,
            **({"message": message} if message else {}),
        }

    def _remember(self, end: Exit) -> None:
        self.status.last = {"terminated": self._describe(end)}

    def _again(self, end: Exit) -> bool:
        return self.policy == "Always" or (self.policy == "OnFailure" and not end.ok)

    async def _back_off(self, end: Exit) -> None:
        ran = _seconds(end)
        self._backoff = FIRST_BACKOFF if ran > CALM else self._backoff
        delay = self._backoff
        self._backoff = min(2 * delay, LAST_BACKOFF)
        self._remember(end)
        message = f"back-off {delay:g}s restarting failed container={self.name}"
        self._wait_state("CrashLoopBackOff", message)
        self.place.say("Warning", "BackOff", message)
        await asyncio.sleep(delay)

    def _wait_state(self, reason: str, message: str) -> None:
        self.status.state = waiting(reason, message)
        self.place.changed()


async def _terminate(attempt: Attempt, grace: float) -> None:
    """SIGTERM, then SIGKILL; returns once the run is over."""
    attempt.signal(signal.SIGTERM)
    over = asyncio.create_task(attempt.wait())
    done, _ = await asyncio.wait([over], timeout=grace)
    if not done:
        attempt.signal(signal.SIGKILL)
        await over


def _seconds(end: Exit) -> float:
    """How long a run took, from its own time stamps."""
    form = "%Y-%m-%dT%H:%M:%S"
    started, finished = (time.strptime(stamp[:19], form) for stamp in (end.started, end.finished))
    return time.mktime(finished) - time.mktime(started)
