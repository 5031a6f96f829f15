"""What a pod's containers are started with: volumes, credentials, environment, command.

Fetches what the pod refers to, with the node's own rights: the API server lets a node read only
the ConfigMaps and Secrets of pods that are bound to it. Used by `node.worker`.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from trimwheel_local.node import environment, volumes
from trimwheel_local.node.api import ApiError
from trimwheel_local.node.context import Context
from trimwheel_local.node.environment import ConfigError, Objects, Rewriter
from trimwheel_local.node.runtime import Launch
from trimwheel_local.node.volumes import ACCOUNT_MOUNT, Token, Volumes

Object = dict[str, Any]
UNREACHABLE = (aiohttp.ClientError, TimeoutError)


class Preparation:
    """The volumes and the surroundings of one pod's containers."""

    def __init__(self, context: Context, pod: Callable[[], Object], folder: Path) -> None:
        """`pod` gives the newest object with its addresses filled in; `folder` is the pod's."""
        self.context = context
        self._newest = pod
        self.folder = folder
        authority = context.layout.pki / "ca.crt"
        self.volumes = Volumes(folder, context.layout.server, authority, self._mint)

    @property
    def pod(self) -> Object:
        return self._newest()

    async def write_volumes(self) -> None:
        """Write what is new or changed. Raises ConfigError when something needed is missing."""
        objects = await self._fetch(volumes.references(self.pod))
        try:
            await self.volumes.refresh(self.pod, objects)
        except (ApiError, *UNREACHABLE) as error:
            raise ConfigError(f"service-account token: {error}") from error

    async def launch(self, container: Object, work: Path) -> Launch:
        """What to run for a container that works in `work`. Raises ConfigError."""
        objects = await self._fetch(environment.references(container))
        mounts = self.volumes.mounts(container)
        rewrite = Rewriter(mounts, self.context.services.addresses)
        base = self._base(container, work)
        known = environment.variables(self.pod, container, objects, base, rewrite)
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
            except UNREACHABLE as error:
                raise ConfigError(f'{kind} "{name}": the API server is away') from error
            found[kind, name] = _data(kind, item)
        return Objects(found)

    async def _mint(self, audience: str, life: int) -> Token:
        """A token bound to this pod: it dies with it, and admission can see whose it is."""
        metadata = self.pod["metadata"]
        account = self.pod["spec"].get("serviceAccountName", "default")
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        bound = {
            "kind": "Pod",
            "apiVersion": "v1",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        wish: Object = {"expirationSeconds": life, "boundObjectRef": bound}
        if audience:
            wish["audiences"] = [audience]
        answer = await self.context.api.post(path, {"spec": wish})
        status = answer["status"]
        now = self.volumes.clock()
        return Token(status["token"], now, now + answer["spec"]["expirationSeconds"])


def _data(kind: str, item: Object) -> dict[str, bytes]:
    if kind == "secret":
        return {key: base64.b64decode(value) for key, value in item.get("data", {}).items()}
    found = {key: value.encode() for key, value in item.get("data", {}).items()}
    binary = item.get("binaryData", {})
    return found | {key: base64.b64decode(value) for key, value in binary.items()}
