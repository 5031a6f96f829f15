"""The life of one pod, and of all pods of the node.

A `PodWorker` takes a pod from its first sight to its last: refuse or set up, run init containers
and containers, report, and on deletion stop everything and let the object go. It is
level-triggered: `update` hands it the newest object, and after a restart of the node a new worker
finds the old runs in the pod's folder. `Pods` keeps one worker for each pod that is bound here.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from trimwheel_local.files import private_folder, read_json, write_json
from trimwheel_local.names import NODE_NAME
from trimwheel_local.node import environment, runtime, support, volumes
from trimwheel_local.node.api import ApiError
from trimwheel_local.node.containers import ContainerLoop, Surroundings
from trimwheel_local.node.context import Context
from trimwheel_local.node.environment import ConfigError, Objects, Rewriter
from trimwheel_local.node.reporter import Reporter
from trimwheel_local.node.runtime import Launch
from trimwheel_local.node.status import Verdict, waiting
from trimwheel_local.node.volumes import ACCOUNT_MOUNT, Token, Volumes

log = logging.getLogger(__name__)
Object = dict[str, Any]

REFRESH = 20.0
"""Seconds between looks at tokens, ConfigMaps and Secrets of a running pod."""
DEFAULT_GRACE = 30
SETUP_RETRY = 1.0
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
        try:
            self._settle()
            tasks = [] if self._finished() else [self.reporter.run(), self._live()]
            running = [asyncio.create_task(task) for task in tasks]
            if self.pod["metadata"].get("deletionTimestamp"):
                self._deleting.set()
            # A pod that has completed stays, for its logs, until somebody deletes it.
            await self._deleting.wait()
            await self._stop(running)
            await asyncio.to_thread(runtime.kill_pod, self.folder)
            if not self._gone:
                await self.reporter.finish()
            # A node that stops cancels this task and never comes here: its pods run on.
            self.context.addresses.free(self.address)
        except Exception:
            log.exception("pod %s: the worker failed", self.pod["metadata"]["name"])
            raise

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
        self.volumes = Volumes(
            self.folder,
            self.context.layout.server,
            self.context.layout.pki / "ca.crt",
            self._mint,
        )
        place = Surroundings(
            folder=self.folder,
            address=self.address,
            uid=self.uid,
            policy=spec.get("restartPolicy", "Always"),
            grace=float(spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE)),
            prepare=self._prepare,
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
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        try:
            await asyncio.wait_for(self._containers(), deadline)
        except TimeoutError:
            await self._kill(self.main + self.init, 0)
            message = f"Pod was active longer than {deadline} s"
            self.verdict = Verdict("Failed", "DeadlineExceeded", message)
        finally:
            refreshing.cancel()
            self.reporter.changed()

    async def _containers(self) -> None:
        for loop in self.init:
            if await loop.run() != 0:
                return
        await asyncio.gather(*(loop.run() for loop in self.main))

    async def _set_up(self) -> None:
        """Write the volumes; waits for what is missing, saying what it is."""
        while True:
            try:
                await self._write_volumes()
                return
            except ConfigError as error:
                self._wait("CreateContainerConfigError", f"volumes: {error}")
                self._say("Warning", "FailedMount", str(error))
            await asyncio.sleep(SETUP_RETRY)

    async def _refresh(self) -> None:
        """Renew tokens and follow changes of ConfigMaps and Secrets, as long as the pod runs."""
        while True:
            await asyncio.sleep(REFRESH)
            try:
                await self._write_volumes()
            except ConfigError as error:
                # The files that are there stay: a deleted ConfigMap must not break a running pod.
                self._say("Warning", "FailedMount", str(error))

    async def _write_volumes(self) -> None:
        objects = await self._fetch(volumes.references(self.pod))
        try:
            await self.volumes.refresh(self.addressed, objects)
        except ApiError as error:
            raise ConfigError(f"service-account token: {error}") from error

    async def _prepare(self, container: Object, work: Path) -> Launch:
        objects = await self._fetch(environment.references(container))
        mounts = self.volumes.mounts(container)
        rewrite = Rewriter(mounts, self.context.services.addresses)
        base = self._base(container, work)
        known = environment.variables(self.addressed, container, objects, base, rewrite)
        command = environment.command_line(container, known, rewrite)
        if command[0] in ("python", "python3"):
            command[0] = sys.executable
        folder = container.get("workingDir")
        return Launch(command, known, Path(rewrite.paths(folder)) if folder else work)

    def _base(self, container: Object, work: Path) -> dict[str, str]:
        """What every container finds in its environment; nothing is inherited but the locale."""
        temporary = self.volumes.mounts(container).get("/tmp", str(self.folder / "t"))
        base = {
            **self.context.environment,
            "HOME": str(work),
            "TMPDIR": temporary,
            "HOSTNAME": self.pod["metadata"]["name"],
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.context.layout.api_port),
        }
        if ACCOUNT_MOUNT in self.volumes.mounts(container):
            base["KUBECONFIG"] = str(self.volumes.kubeconfig)
        return base

    async def _fetch(self, references: Iterable[tuple[str, str]]) -> Objects:
        found = {}
        namespace = self.pod["metadata"]["namespace"]
        for kind, name in set(references):
            path = f"/api/v1/namespaces/{namespace}/{kind.lower()}s/{name}"
            try:
                item = await self.context.api.get(path)
            except ApiError as error:
                if error.status != HTTPStatus.NOT_FOUND:
                    raise ConfigError(f'{kind} "{name}": {error}') from error
                continue
            found[kind, name] = _data(kind, item)
        return Objects(found)

    async def _mint(self, audience: str, life: int) -> Token:
        """A token bound to this pod: it dies with it, and admission can see whose it is."""
        metadata = self.pod["metadata"]
        account = self.pod["spec"].get("serviceAccountName", "default")
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        bound = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": self.uid}
        wish: Object = {"expirationSeconds": life, "boundObjectRef": bound}
        if audience:
            wish["audiences"] = [audience]
        answer = await self.context.api.post(path, {"spec": wish})
        status = answer["status"]
        now = self.volumes.clock()
        return Token(status["token"], now, now + answer["spec"]["expirationSeconds"])

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
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
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


class Pods:
    """All pods bound to the node."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.workers: dict[str, PodWorker] = {}

    async def run(self) -> None:
        """Follow the API server for ever."""
        query = {"fieldSelector": f"spec.nodeName={NODE_NAME}"}
        async for kind, item in self.context.api.watch("/api/v1/pods", **query):
            if kind == "LIST":
                self._list(item["items"])
            elif kind == "DELETED":
                self._remove(item["metadata"]["uid"])
            else:
                self._update(item)

    def find(self, namespace: str, name: str) -> PodWorker | None:
        for worker in self.workers.values():
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                return worker
        return None

    def _list(self, items: list[Object]) -> None:
        known = {item["metadata"]["uid"] for item in items}
        for uid in [uid for uid in self.workers if uid not in known]:
            self._remove(uid)
        folders = {uid[:13] for uid in known}
        for folder in self.context.layout.pods.iterdir():
            if folder.name not in folders and not self._own(folder):
                log.info("pod folder %s belongs to no pod; it is cleaned up", folder.name)
                runtime.kill_pod(folder)
        for item in items:
            self._update(item)

    def _own(self, folder: Path) -> bool:
        return any(worker.folder == folder for worker in self.workers.values())

    def _update(self, pod: Object) -> None:
        worker = self.workers.get(pod["metadata"]["uid"])
        if worker:
            worker.update(pod)
        else:
            worker = PodWorker(self.context, pod)
            self.workers[worker.uid] = worker
            worker.task.add_done_callback(partial(self._done, worker))
        self.context.services.pod_changed(pod)

    def _remove(self, uid: str) -> None:
        if worker := self.workers.get(uid):
            worker.removed()
            self.context.services.pod_removed(worker.pod)

    def _done(self, worker: PodWorker, _: asyncio.Task[None]) -> None:
        self.workers.pop(worker.uid, None)
        self.context.services.pod_removed(worker.pod)


def _data(kind: str, item: Object) -> dict[str, bytes]:
    if kind == "secret":
        return {key: base64.b64decode(value) for key, value in item.get("data", {}).items()}
    found = {key: value.encode() for key, value in item.get("data", {}).items()}
    binary = item.get("binaryData", {})
    return found | {key: base64.b64decode(value) for key, value in binary.items()}
