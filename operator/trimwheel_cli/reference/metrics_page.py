"""docs/reference/metrics.md: every metric and label, from the one table."""

from __future__ import annotations

from typing import get_args

from trimwheel_api import names
from trimwheel_api.metrics import LABEL_MEANINGS, Component, of_component
from trimwheel_cli.reference.markdown import code, page, table

_INTRO = (
    "Every metric of every component. Verdicts read the raw `trimwheel_guard_*` counters, never "
    "`rate()`; dashboards and alerts use the others. `namespace` and `pod` come from the scrape, "
    "so the scrape configuration must set them."
)
_PORTS = {
    "worker": f"Port {names.WORKER_PROBES_PORT} of worker pods, beside the kubelet's probes.",
    "operator": "Port 8081 of the operator.",
    "pipelines": "Port 8082 of the pipelines Deployment.",
}


def render() -> str:
    """The page."""
    labels = table(
        ("label", "meaning"), ((code(name), text) for name, text in LABEL_MEANINGS.items())
    )
    sections = [_component(name) for name in get_args(Component)]
    return page("Metrics", "trimwheel_api.metrics", _INTRO, *sections, "## Labels", labels)


def _component(name: Component) -> str:
    rows = (
        (
            code(metric.name),
            metric.type,
            ", ".join(code(label) for label in metric.labels),
            metric.help + _buckets(metric.buckets),
        )
        for metric in of_component(name)
    )
    made = table(("metric", "type", "labels", "meaning"), rows)
    return f"## {name.capitalize()}\n\n{_PORTS[name]}\n\n{made}"


def _buckets(buckets: tuple[float, ...]) -> str:
    return f" Buckets: {', '.join(f'{bound:g}' for bound in buckets)}." if buckets else ""
