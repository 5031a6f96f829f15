"""Reads the live system's counters for the story: compute, audits, latency, with bounds.

Counters come from Prometheus, latency from the load generator, which sees what clients see, and
from the workers' own histogram, which can be read again.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import httpx
from scipy.stats import beta

from trimwheel_api import metrics, names
from trimwheel_api.errors import Unavailable
from trimwheel_demo import load
from trimwheel_demo.evidence import Evidence, about, metric_evidence
from trimwheel_demo.places import MODEL
from trimwheel_demo.world import World

UPPER_CONFIDENCE = 0.95
SETTLED_SECONDS = 1.0
"""A scrape in progress is stored by then, so the same question gets the same answer later."""
_ARM = f'model="{MODEL}",arm="{names.ARM_STABLE}"'
LAYERS_RUN = f"sum({metrics.LAYERS_RUN.name}{{{_ARM}}})"
LAYERS_FULL = f"sum({metrics.LAYERS_FULL.name}{{{_ARM}}})"
AUDITS = f"sum({metrics.AUDITS.name}{{{_ARM}}})"
DISAGREEMENTS = f'sum({metrics.AUDITS.name}{{{_ARM},agree="false"}})'
SLACK, ROUNDING = 0.01, 0.0001
"""How far a figure that is read again may be off: the report rounds."""
SUMS = (LAYERS_RUN, LAYERS_FULL, AUDITS, DISAGREEMENTS)


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over the workers at one moment."""

    time: float
    layers_run: float
    layers_full: float
    audits: int
    disagreements: int


def query(world: World, expression: str, at: float) -> float | None:
    """One number from Prometheus as of a moment; None when no series matches."""
    url = f"{world.prometheus}/api/v1/query"
    asked = {"query": expression, "time": f"{at:.3f}"}
    try:
        answer = httpx.get(url, params=asked, timeout=30).raise_for_status().json()
    except httpx.HTTPError as error:
        raise Unavailable(f"Prometheus at {world.prometheus}: {error}") from error
    rows = answer["data"]["result"]
    return float(rows[0]["value"][1]) if rows else None


def settled(world: World) -> Counters:
    """The counters as of this call, read once they are in."""
    at = time.time()
    time.sleep(SETTLED_SECONDS)
    return counters(world, at)


def counters(world: World, at: float | None = None) -> Counters:
    """The stable arm's counters at a moment, else as of late; no series counts nothing."""
    at = round(at or time.time() - SETTLED_SECONDS, 3)
    run, full, audits, wrong = (query(world, one, at) or 0.0 for one in SUMS)
    return Counters(at, run, full, int(audits), int(wrong))


def period(world: World, start: Counters, end: Counters) -> dict[str, Any]:
    """Compute, latency and disagreement between two readings, as the report holds them."""
    seen = load.summary(load.windows(world.load, start.time, end.time))
    n, wrong = end.audits - start.audits, end.disagreements - start.disagreements
    full = end.layers_full - start.layers_full
    return {
        "compute_fraction": round((end.layers_run - start.layers_run) / full, 4) if full else None,
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "worker_p50_ms": _quantile(world, 0.5, start, end),
        "worker_p99_ms": _quantile(world, 0.99, start, end),
        "disagreement": round(wrong / n, 5) if n else None,
        "disagreement_upper": round(upper_bound(wrong, n), 5) if n else None,
        "n": n,
    }


def period_evidence(start: Counters, end: Counters, told: dict[str, Any]) -> list[Evidence]:
    """The same figures asked of Prometheus as of then."""
    audits = increase(AUDITS, start, end)
    questions = [
        ("compute_fraction",
         f"({increase(LAYERS_RUN, start, end)}) / ({increase(LAYERS_FULL, start, end)})"),
        ("disagreement", f"({increase(DISAGREEMENTS, start, end)}) / ({audits})"),
        ("n", audits),
        ("worker_p50_ms", quantile(0.5, start, end)),
        ("worker_p99_ms", quantile(0.99, start, end)),
    ]  # fmt: skip
    return [
        metric_evidence(about(expression, told[name], SLACK * told[name] + ROUNDING))
        for name, expression in questions
        if told[name] is not None
    ]


def increase(total: str, start: Counters, end: Counters) -> str:
    """PromQL of how much a sum grew between two readings, without extrapolation."""
    before, after = (
        f"({total.removesuffix(')')} @ {moment.time:.3f}) or vector(0))" for moment in (start, end)
    )
    return f"{after} - {before}"


def quantile(share: float, start: Counters, end: Counters) -> str:
    """PromQL of a quantile of the workers' latency between two readings, in milliseconds."""
    span = max(round(end.time - start.time), 1)
    buckets = f"{metrics.REQUEST_DURATION.name}_bucket{{{_ARM}}}[{span}s] @ {end.time:.3f}"
    return f"1000 * histogram_quantile({share:g}, sum by (le) (increase({buckets})))"


def _quantile(world: World, share: float, start: Counters, end: Counters) -> float | None:
    found = query(world, quantile(share, start, end), end.time)
    return round(found, 3) if found is not None and math.isfinite(found) else None


def upper_bound(wrong: int, n: int) -> float:
    """Clopper-Pearson upper limit of a share at 95 %."""
    return 1.0 if wrong >= n else float(beta.ppf(UPPER_CONFIDENCE, wrong + 1, n - wrong))
