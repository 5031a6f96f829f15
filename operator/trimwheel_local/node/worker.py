"""The life of one pod: refuse or set up, run to the end, report, and stop on deletion.

It is level-triggered: `update` hands it the newest object, and after a restart of the node a new
worker finds the old runs in the pod's folder. `node.pods` keeps one for each pod of the node.
"""

from __future__ import annotations

import asyncio
from typing import Any

from trimwheel_local.files import private_folder, read_json, write_json
from trimwheel_local.node import runtime, support
from trimwheel_local.node.containers import ContainerLoop, Surroundings
from trimwheel_local.node.context import Context
from trimwheel_local.node.environment import ConfigError
from trimwheel_local.node.preparation import Preparation
from trimwheel_local.node.reporter import Reporter
from trimwheel_local.node.status import Verdict, waiting

Object = dict[str, Any]

REFRESH = 20.0
"""Seconds between looks at tokens, ConfigMaps and Secrets of a running pod."""
DEFAULT_GRACE = 30
FIRST_RETRY, LAST_RETRY = 0.1, 2.0
"""Seconds between tries to set up. The first ones are quick and silent: the API server's node
authorizer learns of a new pod's ConfigMaps a moment after the node does."""
SETTLE, SETTLE_TURNS = 0.02, 25


class PodWorker:
    """One pod, by uid."""

    def __init__(self, context: Context, pod: Object) -> None:
        self.context = context
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        # Unique enough, and short: sockets below it must fit into 108 bytes.
        self.folder = context.layout.pods / self.uid[:13]
        self.init: list[ContainerLoop] = []
        self.main: list[ContainerLoop] = []
        self.reporter = Reporter(context.api, self)
        self.verdict: Verdict | None = None
        self._deleting = asyncio.Event()
        self._gone = False
        self.task = asyncio.create_task(self._run(), name=f"pod {pod['metadata']['name']}")

    def update(self, pod: Object) -> None:
        """The newest object from the watch."""
        for name in support.debuggers(pod)[len(support.debuggers(self.pod)) :]:
            self._say("Warning", "Failed", f"ephemeral container {name}: {support.NO_DEBUGGER}")
        self.pod = pod
        if pod["metadata"].get("deletionTimestamp"):
            self._deleting.set()
        self.reporter.changed()

    def removed(self) -> None:
        """The object is gone: nothing to report to any more, so everything ends at once."""
        self._gone = True
        for loop in [*self.init, *self.main]:
            loop.kill()
        self._deleting.set()

    def container(self, name: str) -> ContainerLoop | None:
        return next((one for one in [*self.init, *self.main] if one.name == name), None)

    @property
    def addressed(self) -> Object:
        """The pod with its addresses filled in, known here before the API server knows them."""
        addresses = {"podIP": self.address, "hostIP": "127.0.0.1"}
        return {**self.pod, "status": {**self.pod.get("status", {}), **addresses}}

    async def _run(self) -> None:
        """From set-up to deletion. Raises what went wrong; `Pods` then starts a new worker."""
        self._settle()
        if self.pod["metadata"].get("deletionTimestamp"):
            self._deleting.set()
        # A pod that has completed stays, for its logs, until somebody deletes it.
        work = [] if self._finished() else [self.reporter.run(), self._live()]
        running = [asyncio.create_task(one) for one in work]
        deleting = asyncio.create_task(self._deleting.wait())
        try:
            await _until(deleting, running)
            await self._stop(running)
        finally:
            # A node that stops is cancelled here; the pods' processes run on.
            for task in [deleting, *running]:
                task.cancel()
            await asyncio.gather(deleting, *running, return_exceptions=True)
        await asyncio.to_thread(runtime.kill_pod, self.folder)
        if not self._gone:
            await self.reporter.finish()
        self.context.addresses.free(self.address)

    def _settle(self) -> None:
        """Folder, address and the containers; all of it survives the node."""
        private_folder(self.folder)
        kept = read_json(self.folder / "pod.json") or {}
        known = kept.get("address") or self.pod.get("status", {}).get("podIP")
        self.address: str = self.context.addresses.take(known)
        identity = {key: self.pod["metadata"][key] for key in ("namespace", "name", "uid")}
        write_json(self.folder / "pod.json", {**identity, "address": self.address})
        private_folder(self.folder / "t")
        spec = self.pod["spec"]
        self.preparation = Preparation(self.context, lambda: self.addressed, self.folder)
        place = Surroundings(
            folder=self.folder,
            address=self.address,
            uid=self.uid,
            policy=spec.get("restartPolicy", "Always"),
            grace=float(spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE)),
            prepare=self.preparation.launch,
            changed=self.reporter.changed,
            say=self._say,
        )
        self.init = [ContainerLoop(place, one, init=True) for one in spec.get("initContainers", [])]
        self.main = [ContainerLoop(place, one) for one in spec["containers"]]

    async def _live(self) -> None:
        """Set up and run to completion; a pod of servers stays in here until it is cancelled."""
        refused = support.refusals(self.pod)
        if refused:
            self._wait("CreateContainerConfigError", "; ".join(refused))
            self._say("Warning", "Failed", "; ".join(refused))
            return
        if ignored := support.not_enforced(self.pod):
            self._say("Warning", "NotEnforced", f"a process node does not enforce: {ignored}")
        await self._set_up()
        refreshing = asyncio.create_task(self._refresh())
        running = asyncio.create_task(self._containers())
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        try:
            done, _ = await asyncio.wait([running], timeout=deadline)
            if not done:
                message = f"Pod was active longer than {deadline} s"
                self.verdict = Verdict("Failed", "DeadlineExceeded", message)
                await self._kill(self.main + self.init, DEFAULT_GRACE)
                await asyncio.wait([running], timeout=SETTLE * SETTLE_TURNS)
            if running.done():
                running.result()
        finally:
            running.cancel()
            refreshing.cancel()
            self.reporter.changed()

    async def _containers(self) -> None:
        for loop in self.init:
            if await loop.run() != 0 or loop.stopping:
                return
        async with asyncio.TaskGroup() as group:
            for loop in self.main:
                group.create_task(loop.run())

    async def _set_up(self) -> None:
        """Write the volumes; waits for what is missing, saying what it is."""
        delay = FIRST_RETRY
        while True:
            try:
                await self.preparation.write_volumes()
                return
            except ConfigError as error:
                if delay > 2 * FIRST_RETRY:
                    self._wait("CreateContainerConfigError", f"volumes: {error}")
                    self._say("Warning", "FailedMount", str(error))
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY)

    async def _refresh(self) -> None:
        """Renew tokens and follow changes of ConfigMaps and Secrets, as long as the pod runs."""
        while True:
            await asyncio.sleep(REFRESH)
            try:
                await self.preparation.write_volumes()
            except ConfigError as error:
                # The files that are there stay: a deleted ConfigMap must not break a running pod.
                self._say("Warning", "FailedMount", str(error))

    def _finished(self) -> bool:
        """Ended before this node started: its containers never run again."""
        return self.pod.get("status", {}).get("phase") in ("Succeeded", "Failed")

    async def _stop(self, running: list[asyncio.Task[None]]) -> None:
        """Within the grace period of the deletion request; a pod that never ran just ends."""
        grace = self.pod["metadata"].get("deletionGracePeriodSeconds", DEFAULT_GRACE)
        await self._kill(self.main + self.init, 0 if self._gone else float(grace))
        # Runs that have ended are noted within a moment; what is left only waits for something.
        await asyncio.sleep(0)
        for _ in range(SETTLE_TURNS):
            if all(loop.settled for loop in self.main + self.init):
                break
            await asyncio.sleep(SETTLE)
        if running:
            clean = all(loop.status.code == 0 for loop in self.main)
            self.verdict = self.verdict or Verdict("Succeeded" if clean else "Failed")

    async def _kill(self, loops: list[ContainerLoop], grace: float) -> None:
        await asyncio.gather(*(loop.stop(grace) for loop in loops))

    def _wait(self, reason: str, message: str) -> None:
        for loop in [*self.init, *self.main]:
            loop.status.state = waiting(reason, message)
        self.reporter.changed()

    def _say(self, kind: str, reason: str, message: str) -> None:
        self.context.events.say(self.pod, kind, reason, message)


async def _until(deleting: asyncio.Task[Any], running: list[asyncio.Task[None]]) -> None:
    """Until the pod is to go; raises if one of the tasks fails before."""
    pending: set[asyncio.Task[Any]] = {deleting, *running}
    while not deleting.done():
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
