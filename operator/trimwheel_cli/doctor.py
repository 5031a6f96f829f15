"""Verb `trimwheel doctor`: reads what the checks judge, and prints what is missing with a remedy.

Reads only. What the caller may not read is skipped and said, never taken for healthy.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import click

from trimwheel_api import names
from trimwheel_api.errors import InvalidInput, Refused, Unavailable, quote
from trimwheel_api.kinds import AdaptivePolicy
from trimwheel_cli import checks
from trimwheel_cli.checks import Check
from trimwheel_cli.kube import Kube, connect, kube_options
from trimwheel_cli.verbs import COMMANDS
from trimwheel_console import NEGATIVE, emit, output_option, text_table

_MARKS = {"ok": "✔", "failed": "✖", "skipped": "-"}
_CRDS = "apiextensions.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"
_MONITORING = "monitoring.coreos.com"
_SCRAPED = (names.COMPONENT_OPERATOR, names.COMPONENT_PIPELINES, names.COMPONENT_WORKER)
HTTP_SECONDS = 5.0
HTTP_BYTES = 64 << 20
"""Prometheus' targets of a large cluster are some megabytes."""


@click.command("doctor", short_help=COMMANDS["doctor"].summary)
@click.option("--prometheus", envvar="PROMETHEUS_URL", help="Address, as this machine reaches it.")
@click.option("--mlflow", envvar="MLFLOW_TRACKING_URI", help="Address, as this machine reaches it.")
@click.option(
    "--release-namespace",
    envvar="TRIMWHEEL_RELEASE_NAMESPACE",
    default=names.RELEASE_NAMESPACE,
    show_default=True,
    help="Namespace of the Helm release.",
)
@kube_options
@output_option
def doctor(
    prometheus: str | None, mlflow: str | None, release_namespace: str, output: str, **where: Any
) -> None:
    """Check what Trimwheel needs: kinds, admission policies, operator, pipelines, scraping, MLflow,
    and how clients use session keys.

    Exits 0 when nothing failed, 1 when something did, 3 when the API server does not answer. A
    pod that Prometheus does not scrape is named with the label that is missing.

    \b
      trimwheel doctor
      trimwheel doctor --prometheus http://127.0.0.1:9090 -o json
    """
    kube = connect(**where)
    found = list(_all(kube, release_namespace, prometheus, mlflow))
    rows = [(_MARKS[one.outcome], one.name, one.found, one.remedy) for one in found]
    value = {"ok": not _failed(found), "checks": [vars(one) for one in found]}
    emit(value, output, table=lambda: text_table(("", "check", "found", "remedy"), rows))
    if _failed(found):
        click.get_current_context().exit(NEGATIVE)


def _all(kube: Kube, release: str, prometheus: str | None, mlflow: str | None) -> Iterator[Check]:
    # The first question also says whether the API server answers at all: let its error escape.
    yield Check("API server", "ok", f"{kube.server}, version {kube.version()}")
    yield _guarded("kinds", lambda: _kinds(kube))
    yield _guarded("admission", lambda: _admission(kube))
    yield _guarded("operator", lambda: _deployment(kube, release, names.COMPONENT_OPERATOR))
    yield _guarded("pipelines", lambda: _deployment(kube, release, names.COMPONENT_PIPELINES))
    yield _guarded("operator lock", lambda: _lease(kube, release))
    yield _guarded("session keys", lambda: _session_keys(kube))
    yield _service("Prometheus", prometheus, _prometheus, "--prometheus or PROMETHEUS_URL")
    if prometheus:
        yield _guarded("scraping", lambda: _scraping(kube, prometheus))
    yield _service("MLflow", mlflow, _mlflow, "--mlflow or MLFLOW_TRACKING_URI")


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """A check whose reading may be refused, may not answer, or answers with something else."""
    try:
        return look()
    except Refused as error:
        return Check(name, "skipped", f"not allowed to look: {error}")
    except (Unavailable, InvalidInput) as error:
        return Check(name, "failed", str(error))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        found = f"the answer has another form than it must have ({type(error).__name__}: {error})"
        return Check(name, "failed", found, "is the address right, and its version supported?")


def _kinds(kube: Kube) -> Check:
    return checks.check_kinds(_by_name(kube.read(_CRDS, "customresourcedefinitions")))


def _admission(kube: Kube) -> Check:
    policies = kube.read(_ADMISSION, "validatingadmissionpolicies")
    bindings = kube.read(_ADMISSION, "validatingadmissionpolicybindings")
    return checks.check_admission(_by_name(policies), _by_name(bindings).values())


def _deployment(kube: Kube, release: str, component: str) -> Check:
    name = f"{names.PART_OF}-{component}"
    return checks.check_deployment(
        component, kube.read("apps", "deployments", namespace=release, name=name)
    )


def _session_keys(kube: Kube) -> Check:
    return checks.check_session_keys(kube.everywhere(AdaptivePolicy))


def _lease(kube: Kube, release: str) -> Check:
    lease = kube.read("coordination.k8s.io", "leases", namespace=release, name=names.OPERATOR_LEASE)
    return checks.check_lease(lease, datetime.now(UTC))


def _scraping(kube: Kube, prometheus: str) -> Check:
    ours = f"{names.LABEL_PART_OF}={names.PART_OF}"
    # Jobs come and go between scrapes and expose nothing.
    lasting = [
        pod
        for pod in kube.pods(ours)
        if pod["metadata"]["labels"].get(names.LABEL_COMPONENT) in _SCRAPED
        and pod["status"].get("phase") == "Running"
    ]
    monitors = _by_name(kube.read(_MONITORING, "podmonitors", selector=ours)).values()
    servers = _by_name(kube.read(_MONITORING, "prometheuses")).values()
    targets = _get_json(f"{prometheus.rstrip('/')}/api/v1/targets?state=any")["data"]
    return checks.check_targets(lasting, targets, checks.unselected_monitors(monitors, servers))


def _service(name: str, url: str | None, look: Callable[[str], str], option: str) -> Check:
    """A service by its address: that it answers, and that the answer is its own."""
    if not url:
        return Check(name, "skipped", f"no address: {option}")
    said = _guarded(name, lambda: Check(name, "ok", look(url.rstrip("/"))))
    remedy = f"is {url} what this machine reaches?" if said.outcome == "failed" else said.remedy
    return replace(said, remedy=remedy)


def _prometheus(url: str) -> str:
    """Asks what everything else asks: a query; whatever speaks Prometheus' API can answer it."""
    answer = _get_json(f"{url}/api/v1/query?query=vector(1)")
    data = answer.get("data")
    if answer.get("status") != "success" or not isinstance(data, dict) or "result" not in data:
        raise Unavailable(f"{url} answers a query with something else than Prometheus' API")
    return url


def _mlflow(url: str) -> str:
    """MLflow's tracking server says OK, and no other word."""
    said = _get(f"{url}/health")
    if said.strip() != b"OK":
        shown = quote(said[:40].decode(errors="replace"))
        raise Unavailable(f"{url}/health answers {shown}, where MLflow says OK")
    return url


def _get(url: str) -> bytes:
    """The body behind an address, within `HTTP_SECONDS` and `HTTP_BYTES`."""
    if not url.startswith(("http://", "https://")):
        raise InvalidInput("address", "must begin with http:// or https://", url)
    deadline = time.monotonic() + HTTP_SECONDS
    body = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=HTTP_SECONDS) as answer:
            while data := answer.read1(1 << 16):
                body += data
                if time.monotonic() > deadline or len(body) > HTTP_BYTES:
                    raise Unavailable(f"{url} answers without end")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"{url} does not answer ({error})") from error
    return bytes(body)


def _get_json(url: str) -> dict[str, Any]:
    try:
        value = json.loads(_get(url))
    except (ValueError, RecursionError) as error:
        raise Unavailable(f"{url} answers something else than JSON") from error
    if not isinstance(value, dict):
        raise Unavailable(f"{url} answers something else than an object")
    return value


def _by_name(listed: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    return {item["metadata"]["name"]: item for item in (listed or {"items": []})["items"]}


def _failed(found: list[Check]) -> bool:
    return any(one.outcome == "failed" for one in found)
