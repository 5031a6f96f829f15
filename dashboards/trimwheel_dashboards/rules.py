"""Recording rules: the few expressions that alerts and users' own panels share.

Named level:metric:operation. Verdicts never read these: they read raw counters, because `rate`
extrapolates and a fresh series loses its first event.
"""

from __future__ import annotations

from trimwheel_api.metrics import (
    AUDITS,
    LAYERS_FULL,
    LAYERS_RUN,
    RECORDS_DROPPED,
    RECORDS_WRITTEN,
    REQUEST_DURATION,
    REQUESTS,
    Metric,
)
from trimwheel_dashboards.promql import select, share

BY_MODEL = "namespace, model"
BY_ARM = "namespace, model, arm"

REQUEST_RATE = "namespace_model_arm:trimwheel_requests:rate5m"
ERROR_RATIO = "namespace_model:trimwheel_request_errors:ratio_rate5m"
REFUSED_RATIO = "namespace_model:trimwheel_request_refusals:ratio_rate5m"
P99 = "namespace_model_arm:trimwheel_request_duration_seconds:p99_rate5m"
COMPUTE_RATIO = "namespace_model_arm:trimwheel_layers:ratio_rate5m"
DISAGREEMENT_RATIO = "namespace_model_arm:trimwheel_audit_disagreement:ratio_rate30m"
LOST_RATIO = "namespace_model:trimwheel_records_lost:ratio_rate30m"


def recording_rules() -> list[dict[str, str]]:
    """Rules in the shape of a Prometheus rule file."""
    return [{"record": name, "expr": expression} for name, expression in _EXPRESSIONS.items()]


def _sum(metric: Metric, by: str, window: str = "5m", **labels: str) -> str:
    return f"sum by ({by}) (rate({select(metric, **labels)}[{window}]))"


_BUCKETS = f"sum by ({BY_ARM}, le) (rate({REQUEST_DURATION.name}_bucket[5m]))"
_LOST = _sum(RECORDS_DROPPED, BY_MODEL, "30m")
_EXPRESSIONS: dict[str, str] = {
    REQUEST_RATE: _sum(REQUESTS, BY_ARM),
    ERROR_RATIO: share(_sum(REQUESTS, BY_MODEL, code="=~5.."), _sum(REQUESTS, BY_MODEL)),
    REFUSED_RATIO: share(_sum(REQUESTS, BY_MODEL, code="=~429|503"), _sum(REQUESTS, BY_MODEL)),
    P99: f"histogram_quantile(0.99, {_BUCKETS}) >= 0",
    COMPUTE_RATIO: f"{_sum(LAYERS_RUN, BY_ARM)} / ({_sum(LAYERS_FULL, BY_ARM)} > 0)",
    DISAGREEMENT_RATIO: share(
        _sum(AUDITS, BY_ARM, "30m", agree="false"), _sum(AUDITS, BY_ARM, "30m")
    ),
    LOST_RATIO: share(_LOST, f"({_LOST} + {_sum(RECORDS_WRITTEN, BY_MODEL, '30m')})"),
}
