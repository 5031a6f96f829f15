"""PromQL fragments: selectors, rates and shares, built from the metric table.

Two rules hold everywhere. A share of zero requests is no answer rather than NaN, so denominators
are filtered with `> 0`. A label child that no event has created yet counts as 0, so numerators
fall back to 0 times the denominator.
"""

from __future__ import annotations

from trimwheel_api.metrics import Metric

INTERVAL = "$__rate_interval"
"""Grafana's window for `rate`: at least four scrapes."""
NAMESPACE, MODEL = "$namespace", "$model"


def of_model(metric: Metric | str, /, **labels: str) -> str:
    """The dashboard's model: by the scrape's namespace, or by `model_namespace` where it has one.

    A label value that starts with `=`, `!` or `~` brings its own operator.
    """
    if isinstance(metric, Metric) and "model_namespace" in metric.labels:
        where = {"model_namespace": NAMESPACE, "model": MODEL}
    elif isinstance(metric, Metric) and "model" not in metric.labels:
        where = {"namespace": NAMESPACE}
    else:
        where = {"namespace": NAMESPACE, "model": MODEL}
    name = metric.name if isinstance(metric, Metric) else metric
    return select(name, **where, **labels)


def select(metric: Metric | str, /, **labels: str) -> str:
    """`name{label="value", ...}`."""
    name = metric.name if isinstance(metric, Metric) else metric
    inside = ", ".join(f"{key}{_matcher(value)}" for key, value in labels.items())
    return f"{name}{{{inside}}}" if inside else name


def rate(metric: Metric | str, by: str = "", window: str = INTERVAL, **labels: str) -> str:
    """Events a second of the dashboard's model, summed over workers."""
    return _sum(f"rate({of_model(metric, **labels)}[{window}])", by)


def share(events: str, total: str) -> str:
    """`events / total`, both summed by the same labels: 0 without events, nothing without total."""
    return f"({events} or {total} * 0) / ({total} > 0)"


def quantile(metric: Metric, which: float, by: str) -> str:
    """A quantile of a histogram of the dashboard's model; nothing where nothing was observed."""
    buckets = f"rate({of_model(metric.name + '_bucket')}[{INTERVAL}])"
    return f"histogram_quantile({which}, sum by ({by}, le) ({buckets})) >= 0"


def mean(metric: Metric) -> str:
    """Mean of a histogram of the dashboard's model."""
    total = _sum(f"rate({of_model(metric.name + '_sum')}[{INTERVAL}])", "")
    count = _sum(f"rate({of_model(metric.name + '_count')}[{INTERVAL}])", "")
    return f"{total} / ({count} > 0)"


def or_zero(expression: str) -> str:
    """0 where a counter has no child yet: nothing happened."""
    return f"{expression} or on() vector(0)"


def new_events(metric: Metric, by: str, window: str, **labels: str) -> str:
    """Events within a window, counting those of a child that appeared in it.

    `increase` needs two samples of a series, so it never sees the first event of a fresh one.
    """
    now = f"sum by ({by}) ({select(metric, **labels)})"
    before = f"sum by ({by}) ({select(metric, **labels)} offset {window})"
    return f"(({now} - {before}) > 0) or (({now} unless {before}) > 0)"


def _sum(expression: str, by: str) -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def _matcher(value: str) -> str:
    for operator in ("=~", "!~", "!="):
        if value.startswith(operator):
            return f'{operator}"{value.removeprefix(operator)}"'
    return f'="{value}"'
