"""The CLI's way to the API server: `-n`, `--context`, `--kubeconfig`, and objects of our kinds.

Used by the verbs that read or decide. Holds no decision: what may be done is the API server's say,
and its refusals are passed on word by word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from kubernetes import client
from pydantic import BaseModel

from trimwheel_api.errors import SetupFailed
from trimwheel_kube.answers import NotFound, checked_items, checked_object, no_kubernetes
from trimwheel_kube.connection import Connection
from trimwheel_kube.connection import connect as connect_by
from trimwheel_kube.objects import WAIT, Objects, read

__all__ = ["Kube", "NotFound", "connect", "kube_options"]

FIELD_MANAGER = "trimwheel-cli"
KindT = TypeVar("KindT", bound=BaseModel)
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def kube_options(function: AnyFunction) -> AnyFunction:
    """Add -n, --context and --kubeconfig, spelt as in kubectl."""
    options = (
        click.option(
            "-n",
            "--namespace",
            envvar="TRIMWHEEL_NAMESPACE",
            help="Namespace of the model; the kubeconfig context's by default.",
        ),
        click.option("--context", help="Context of the kubeconfig; the current one by default."),
        click.option(
            "--kubeconfig",
            type=click.Path(dir_okay=False),
            help="File to use in place of KUBECONFIG or ~/.kube/config.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@dataclass(frozen=True)
class Kube:
    """A connection and the namespace that a call is about."""

    connection: Connection
    namespace: str

    @property
    def server(self) -> str:
        """Address of the API server."""
        return self.connection.server

    def get(self, kind: type[KindT], name: str) -> KindT:
        """One object. Raises NotFound when there is none of that name."""
        return read(kind, self._objects.get(kind.__name__, self.namespace, name))

    def find(self, kind: type[KindT], name: str) -> KindT | None:
        """One object, or None."""
        try:
            return self.get(kind, name)
        except NotFound:
            return None

    def every(self, kind: type[KindT]) -> list[KindT]:
        """All objects of a kind in the namespace, oldest first."""
        return [read(kind, one) for one in self._objects.list(kind.__name__, self.namespace)]

    def everywhere(self, kind: type[BaseModel]) -> list[dict[str, Any]]:
        """All objects of a kind in all namespaces, as they are stored."""
        return self._objects.list(kind.__name__)

    def create(self, kind: type[BaseModel], metadata: dict[str, str], spec: Any) -> str:
        """Create an object and return its name. Raises Refused with the API server's words."""
        placed = metadata | {"namespace": self.namespace}
        return str(self._objects.create(kind.__name__, placed, spec)["metadata"]["name"])

    def version(self) -> str:
        """The API server's version. Raises Unavailable when it does not answer."""
        with self._objects.translated():
            found = client.VersionApi(self.connection.api).get_code(**WAIT)
        if not getattr(found, "git_version", None):
            raise no_kubernetes(self.server, "no version")
        return str(found.git_version)

    def read(
        self, group: str, plural: str, *, namespace: str = "", name: str = "", selector: str = ""
    ) -> dict[str, Any] | None:
        """An object or list of a named API group, version v1; None when there is none."""
        where = (group, "v1", namespace, plural) if namespace else (group, "v1", plural)
        scope = "namespaced" if namespace else "cluster"
        verb = f"get_{scope}_custom_object" if name else f"list_{scope}_custom_object"
        filtered = {"label_selector": selector} if selector and not name else {}
        try:
            with self._objects.translated():
                call = getattr(client.CustomObjectsApi(self.connection.api), verb)
                found = call(*where, *([name] if name else []), **filtered, **WAIT)
        except (NotFound, SetupFailed):
            return None
        if name:
            return checked_object(self.server, found)
        return {"items": checked_items(self.server, found)}

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Pods of all namespaces with some labels."""
        with self._objects.translated():
            answer = client.CoreV1Api(self.connection.api).list_pod_for_all_namespaces(
                label_selector=selector, _preload_content=False, **WAIT
            )
            found = json.loads(answer.data)
        return checked_items(self.server, found)

    def whoami(self) -> str:
        """The username under which the API server sees the caller."""
        return self._objects.whoami()

    @property
    def _objects(self) -> Objects:
        return Objects(self.connection.api, FIELD_MANAGER)


def connect(
    namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None
) -> Kube:
    """A connection by kubeconfig or, inside a pod, by its service account.

    Raises SetupFailed when there is neither.
    """
    found = connect_by(kubeconfig, context)
    return Kube(found, namespace or found.namespace)
