"""Volumes of a pod as folders below the pod's own, and its service-account credentials.

ConfigMap, Secret, downward API and projected volumes are written the way the kubelet does it: a
dated folder and a `..data` link that is swapped, so that readers see the old set of files or
the new one, never a mixture. `refresh` is called again and again: it renews tokens at 80 % of
their life and rewrites what has changed.

Clients find the API server through KUBECONFIG, with an `exec` entry that prints the credential
file: Kubernetes clients do not read a token file again, but they do run `exec` anew once the
credential's `expirationTimestamp` has passed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from trimwheel_local.files import private_folder, write_atomic
from trimwheel_local.node.environment import ConfigError, Objects, field_value, resource_value

Object = dict[str, Any]
Files = dict[str, tuple[bytes, int]]
"""Content and mode by relative path."""

ACCOUNT_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
RENEW_AT, REPORT_AT = 0.8, 0.9
"""Shares of a token's life: when the node renews it, and when clients are told to read again."""
DEFAULT_MODE = 0o644
DEFAULT_TOKEN_SECONDS = 3607


@dataclass(frozen=True)
class Token:
    """A bound service-account token; times are seconds since the epoch."""

    value: str
    issued: float
    expires: float

    def due(self, now: float) -> bool:
        return now >= self.issued + RENEW_AT * (self.expires - self.issued)

    def credential(self) -> bytes:
        """An ExecCredential that makes clients come back before the token runs out."""
        back = self.issued + REPORT_AT * (self.expires - self.issued)
        status = {"token": self.value, "expirationTimestamp": _rfc3339(back)}
        kind = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
        return json.dumps({**kind, "status": status}).encode()


Mint = Callable[[str, int], Awaitable[Token]]
"""(audience or '', life in seconds) -> a token bound to the pod."""


@dataclass
class Volumes:
    """The volumes of one pod. `folder` is the pod's; each volume is `folder/v/NAME`."""

    folder: Path
    server: str
    authority: Path
    mint: Mint
    clock: Callable[[], float] = time.time
    tokens: dict[tuple[str, str], Token] = field(default_factory=dict)
    written: dict[str, Files] = field(default_factory=dict)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def path(self, name: str) -> Path:
        return self.folder / "v" / name

    def mounts(self, container: Object) -> dict[str, str]:
        """Local path by mount path."""
        found = {}
        for mount in container.get("volumeMounts", []):
            path = self.path(mount["name"])
            sub = mount.get("subPath")
            found[mount["mountPath"].rstrip("/")] = str(path / sub if sub else path)
        return found

    async def refresh(self, pod: Object, objects: Objects) -> None:
        """Write what is new or changed. Raises ConfigError when something needed is missing."""
        for volume in pod["spec"].get("volumes", []):
            folder = self.path(volume["name"])
            if "emptyDir" in volume:
                private_folder(folder)
                continue
            files = await self._files(pod, volume, objects)
            if self.written.get(volume["name"]) != files:
                write_set(private_folder(folder), files)
                self.written[volume["name"]] = files
        if self._account_volume(pod) and not self.kubeconfig.exists():
            write_atomic(self.kubeconfig, self._kubeconfig())

    async def _files(self, pod: Object, volume: Object, objects: Objects) -> Files:
        if "projected" in volume:
            projected = volume["projected"]
            mode = projected.get("defaultMode", DEFAULT_MODE)
            files: Files = {}
            for source in projected.get("sources", []):
                files |= await self._source(pod, volume["name"], source, objects, mode)
            return files
        kind = next(name for name in ("configMap", "secret", "downwardAPI") if name in volume)
        source = dict(volume[kind])
        mode = source.get("defaultMode", DEFAULT_MODE)
        if kind == "secret":
            source["name"] = source.get("secretName")
        return await self._source(pod, volume["name"], {kind: source}, objects, mode)

    async def _source(
        self, pod: Object, volume: str, source: Object, objects: Objects, mode: int
    ) -> Files:
        if "serviceAccountToken" in source:
            wish = source["serviceAccountToken"]
            token = await self._token(volume, wish)
            if not wish.get("audience") and volume == self._account_volume(pod):
                write_atomic(self.folder / "credential.json", token.credential())
            # Group and others get nothing, whatever the volume's mode says.
            return {wish["path"]: (token.value.encode(), 0o600)}
        if "downwardAPI" in source:
            return dict(_downward(pod, source["downwardAPI"], mode))
        kind = "configMap" if "configMap" in source else "secret"
        return dict(_entries(kind, source[kind], objects, mode))

    async def _token(self, volume: str, wish: Object) -> Token:
        key = (volume, wish["path"])
        token = self.tokens.get(key)
        if token is None or token.due(self.clock()):
            life = int(wish.get("expirationSeconds", DEFAULT_TOKEN_SECONDS))
            token = await self.mint(wish.get("audience", ""), life)
            self.tokens[key] = token
        return token

    def _account_volume(self, pod: Object) -> str | None:
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            for mount in container.get("volumeMounts", []):
                if mount["mountPath"].rstrip("/") == ACCOUNT_MOUNT:
                    return str(mount["name"])
        return None

    def _kubeconfig(self) -> bytes:
        authority = base64.b64encode(self.authority.read_bytes()).decode()
        execute = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": shutil.which("cat", path=os.defpath) or "/bin/cat",
            "args": [str(self.folder / "credential.json")],
            "interactiveMode": "Never",
        }
        cluster = {"server": self.server, "certificate-authority-data": authority}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": "account", "user": {"exec": execute}}],
            "contexts": [{"name": "pod", "context": {"cluster": "cluster", "user": "account"}}],
            "current-context": "pod",
        }
        return yaml.safe_dump(document, sort_keys=False).encode()


def references(pod: Object) -> Iterator[tuple[str, str]]:
    """The (kind, name) of every ConfigMap and Secret that the volumes read."""
    for volume in pod["spec"].get("volumes", []):
        if "configMap" in volume:
            yield "configMap", volume["configMap"]["name"]
        if "secret" in volume:
            yield "secret", volume["secret"]["secretName"]
        for source in volume.get("projected", {}).get("sources", []):
            for kind in ("configMap", "secret"):
                if kind in source:
                    yield kind, source[kind]["name"]


def write_set(folder: Path, files: Files) -> None:
    """Replace all files of a volume in one step (the kubelet's atomic writer)."""
    data = folder / f"..{time.time_ns()}"
    for name, (content, mode) in files.items():
        target = data / name
        if not target.resolve().is_relative_to(data.resolve()):
            raise ConfigError(f"volume item path {name!r} leaves its volume")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, content, mode)
    data.mkdir(exist_ok=True)
    old = folder / "..data"
    previous = folder / os.readlink(old) if old.is_symlink() else None
    swap = folder / "..data_new"
    swap.symlink_to(data.name)
    swap.replace(old)
    tops = {name.split("/", 1)[0] for name in files}
    for top in tops:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(f"..data/{top}")
    for link in folder.iterdir():
        if link.is_symlink() and not link.name.startswith("..") and link.name not in tops:
            link.unlink()
    if previous is not None:
        shutil.rmtree(previous, ignore_errors=True)


def _entries(
    kind: str, source: Object, objects: Objects, mode: int
) -> Iterator[tuple[str, tuple[bytes, int]]]:
    optional = source.get("optional", False)
    data: Mapping[str, bytes] = objects.data(kind, source["name"], optional)
    if "items" not in source:
        for key, content in data.items():
            yield key, (content, mode)
        return
    for item in source["items"]:
        if item["key"] in data:
            yield item["path"], (data[item["key"]], item.get("mode", mode))
        elif not optional:
            raise ConfigError(f'{kind} "{source["name"]}" has no key "{item["key"]}"')


def _downward(pod: Object, source: Object, mode: int) -> Iterator[tuple[str, tuple[bytes, int]]]:
    for item in source.get("items", []):
        if "fieldRef" in item:
            value = field_value(pod, item["fieldRef"]["fieldPath"])
        else:
            value = resource_value(pod["spec"]["containers"], "", item["resourceFieldRef"])
        yield item["path"], (value.encode(), item.get("mode", mode))


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
