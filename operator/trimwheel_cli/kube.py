"""The CLI's way to the API server: objects of our kinds in and out, failures as Trimwheel errors.

Used by the verbs that read or decide. Holds no decision: what may be done is the API server's say,
and its refusals are passed on word by word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from pydantic import BaseModel, ValidationError
from urllib3.exceptions import HTTPError

from trimwheel_api import names
from trimwheel_api.errors import (
    Conflict,
    Refused,
    SetupFailed,
    SpecInvalid,
    TrimwheelError,
    Unavailable,
)
from trimwheel_api.kinds import PLURALS

TIMEOUT_SECONDS = 10.0
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

    api: Any
    namespace: str

    @property
    def server(self) -> str:
        """Address of the API server."""
        return str(self.api.configuration.host)

    def get(self, kind: type[KindT], name: str) -> KindT:
        """One object. Raises SpecInvalid when there is none of that name."""
        with _translated(self.server):
            found = self._objects.get_namespaced_custom_object(*self._where(kind), name, **_WAIT)
        return _read(kind, found)

    def find(self, kind: type[KindT], name: str) -> KindT | None:
        """One object, or None."""
        try:
            return self.get(kind, name)
        except NotFound:
            return None

    def every(self, kind: type[KindT]) -> list[KindT]:
        """All objects of a kind in the namespace, oldest first."""
        with _translated(self.server):
            found = self._objects.list_namespaced_custom_object(*self._where(kind), **_WAIT)
        items = sorted(found["items"], key=lambda item: item["metadata"]["creationTimestamp"])
        return [_read(kind, item) for item in items]

    def create(self, kind: type[BaseModel], metadata: dict[str, str], spec: Any) -> str:
        """Create an object and return its name. Raises Refused with the API server's words."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": kind.__name__,
            "metadata": metadata,
            "spec": spec,
        }
        with _translated(self.server):
            made = self._objects.create_namespaced_custom_object(
                *self._where(kind), body, field_manager="trimwheel-cli", **_WAIT
            )
        return str(made["metadata"]["name"])

    def abort(self, kind: type[BaseModel], name: str) -> None:
        """Set `spec.abort`, the one thing besides `paused` that may change on a rollout."""
        patch = {"spec": {"abort": True}}
        with _translated(self.server):
            self._objects.patch_namespaced_custom_object(*self._where(kind), name, patch, **_WAIT)

    def version(self) -> str:
        """The API server's version. Raises Unavailable when it does not answer."""
        with _translated(self.server):
            return str(client.VersionApi(self.api).get_code(**_WAIT).git_version)

    def read(
        self, group: str, plural: str, *, namespace: str = "", name: str = "", selector: str = ""
    ) -> dict[str, Any] | None:
        """An object or list of a named API group, version v1; None when there is none."""
        where = (group, "v1", namespace, plural) if namespace else (group, "v1", plural)
        scope = "namespaced" if namespace else "cluster"
        verb = f"get_{scope}_custom_object" if name else f"list_{scope}_custom_object"
        filtered = {"label_selector": selector} if selector and not name else {}
        try:
            with _translated(self.server):
                call = getattr(self._objects, verb)
                found = call(*where, *([name] if name else []), **filtered, **_WAIT)
        except (NotFound, SetupFailed):
            return None
        return dict(found)

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Pods of all namespaces with some labels."""
        with _translated(self.server):
            answer = client.CoreV1Api(self.api).list_pod_for_all_namespaces(
                label_selector=selector, _preload_content=False, **_WAIT
            )
            items = json.loads(answer.data)["items"]
        return list(items)

    def whoami(self) -> str:
        """The username under which the API server sees the caller."""
        with _translated(self.server):
            review = client.AuthenticationV1Api(self.api).create_self_subject_review(
                client.V1SelfSubjectReview(), **_WAIT
            )
        return str(review.status.user_info.username)

    @property
    def _objects(self) -> Any:
        return client.CustomObjectsApi(self.api)

    def _where(self, kind: type[BaseModel]) -> tuple[str, str, str, str]:
        return names.GROUP, names.VERSION, self.namespace, PLURALS[kind.__name__]


class NotFound(SpecInvalid):
    """The API server knows no such object."""


_WAIT = {"_request_timeout": TIMEOUT_SECONDS}


def connect(
    namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None
) -> Kube:
    """A connection by kubeconfig or, inside a pod, by its service account.

    Raises SetupFailed when there is neither.
    """
    settings = client.Configuration()
    # One retry: a verb answers "not reachable" within seconds instead of minutes.
    settings.retries = 1
    try:
        config.load_kube_config(kubeconfig, context, settings, persist_config=False)
        spoken = _context_namespace(kubeconfig, context)
    except ConfigException as error:
        if kubeconfig or context:
            raise SetupFailed(f"kubeconfig: {error}") from error
        spoken = _load_in_cluster(settings)
    return Kube(client.ApiClient(settings), namespace or spoken)


def _context_namespace(kubeconfig: str | None, context: str | None) -> str:
    contexts, current = config.list_kube_config_contexts(kubeconfig)
    chosen = next((one for one in contexts if one["name"] == context), current)
    return str(chosen["context"].get("namespace", "default"))


def _load_in_cluster(settings: Any) -> str:
    try:
        config.load_incluster_config(settings)
    except ConfigException as error:
        raise SetupFailed(
            "no kubeconfig: set KUBECONFIG or pass --kubeconfig; for the demo's cluster run "
            'eval "$(trimwheel env)"'
        ) from error
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
        return file.read().strip()


def _read(kind: type[KindT], found: dict[str, Any]) -> KindT:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise SpecInvalid(
            f"{kind.__name__} {found['metadata']['name']} {field}",
            first["msg"],
            first.get("input"),
            "This CLI and the cluster's kinds differ in version",
        ) from error


@contextmanager
def _translated(server: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise _of_status(error) from error
    except (HTTPError, OSError) as error:
        raise Unavailable(f"the API server at {server} does not answer ({error})") from error


def _of_status(error: Any) -> TrimwheelError:
    """The Trimwheel error of an API answer; the message stays the API server's."""
    try:
        answer = json.loads(error.body or "{}")
    except json.JSONDecodeError:
        answer = {}
    message = str(answer.get("message") or error.reason)
    details = answer.get("details") or {}
    if error.status == 404:
        return _not_found(details)
    if error.status in (401, 403):
        return Refused(message)
    if error.status == 409:
        return Conflict(message)
    if error.status == 422:
        causes = details.get("causes") or [{}]
        field = causes[0].get("field") or "object"
        # A refusal of an admission policy is Invalid too, but names no field of the schema.
        if "ValidatingAdmissionPolicy" in message:
            return Refused(message)
        return SpecInvalid(field, causes[0].get("message") or message, details.get("name"))
    if error.status == 429 or error.status >= 500:
        return Unavailable(f"the API server answered {error.status}: {message}")
    return SpecInvalid("request", f"the API server answered {error.status}: {message}")


def _not_found(details: dict[str, Any]) -> TrimwheelError:
    kind, name = details.get("kind"), details.get("name")
    if not name:
        return SetupFailed(
            "the API server does not know Trimwheel's kinds: install the chart "
            "(helm install trimwheel charts/trimwheel -n trimwheel-system --create-namespace)"
        )
    return NotFound("NAME", f"must name one of the {kind} of the namespace", name)
