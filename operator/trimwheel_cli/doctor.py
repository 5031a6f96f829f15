"""Verb `trimwheel doctor`: reads what the checks judge, and prints what is missing with a remedy.

Reads only. What the caller may not read is skipped and said, never taken for healthy.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from trimwheel_api import names
from trimwheel_api.errors import InvalidInput, Refused, Unavailable
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
    """Check what Trimwheel needs: kinds, admission policies, operator, pipelines, scraping, MLflow.

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
    yield _prometheus(prometheus)
    if prometheus:
        yield _guarded("scraping", lambda: _scraping(kube, prometheus))
    yield _answers("MLflow", mlflow, "/health", "--mlflow or MLFLOW_TRACKING_URI")


def _guarded(name: str, look: Callable[[], Check]) -> Check:
    """A check whose reading may be refused or may not answer."""
    try:
        return look()
    except Refused as error:
        return Check(name, "skipped", f"not allowed to look: {error}")
    except Unavailable as error:
        return Check(name, "failed", str(error))


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


def _lease(kube: Kube, release: str) -> Check:
    lease = kube.read("coordination.k8s.io", "leases", namespace=release, name=names.OPERATOR_LEASE)
    return checks.check_lease(lease, datetime.now(UTC))


def _prometheus(url: str | None) -> Check:
    return _answers("Prometheus", url, "/-/ready", "--prometheus or PROMETHEUS_URL")


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


def _answers(name: str, url: str | None, path: str, option: str) -> Check:
    if not url:
        return Check(name, "skipped", f"no address: {option}")
    try:
        _get(url.rstrip("/") + path)
    except Unavailable as error:
        return Check(name, "failed", str(error), f"is {url} what this machine reaches?")
    return Check(name, "ok", url)


def _get(url: str) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise InvalidInput("address", "must begin with http:// or https://", url)
    try:
        with urllib.request.urlopen(url, timeout=HTTP_SECONDS) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"{url} does not answer ({error})") from error


def _get_json(url: str) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(_get(url))
    except json.JSONDecodeError as error:
        raise Unavailable(f"{url} answers something else than JSON") from error
    return value


def _by_name(listed: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    return {item["metadata"]["name"]: item for item in (listed or {"items": []})["items"]}


def _failed(found: list[Check]) -> bool:
    return any(one.outcome == "failed" for one in found)
