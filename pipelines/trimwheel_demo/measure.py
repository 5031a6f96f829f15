"""Reads the live system's counters for the story: compute, audits, latency, with bounds.

Counters come from Prometheus, latency from the load generator, which sees what clients see.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx
from scipy.stats import beta

from trimwheel_api import metrics
from trimwheel_api.errors import Unavailable
from trimwheel_demo import load
from trimwheel_demo.places import MODEL
from trimwheel_demo.world import World

UPPER_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over the workers at one moment."""

    time: float
    layers_run: float
    layers_full: float
    audits: int
    disagreements: int


def query(world: World, expression: str) -> float:
    """One number from Prometheus; 0 when no series matches, as a sum over nothing is."""
    url = f"{world.prometheus}/api/v1/query"
    try:
        answer = httpx.get(url, params={"query": expression}, timeout=30).raise_for_status().json()
    except httpx.HTTPError as error:
        raise Unavailable(f"Prometheus at {world.prometheus}: {error}") from error
    rows = answer["data"]["result"]
    return float(rows[0]["value"][1]) if rows else 0.0


def counters(world: World, arm: str = "stable") -> Counters:
    """The counters of one arm now."""
    where = f'model="{MODEL}",arm="{arm}"'
    audits = metrics.AUDITS.name
    return Counters(
        time.time(),
        query(world, f"sum({metrics.LAYERS_RUN.name}{{{where}}})"),
        query(world, f"sum({metrics.LAYERS_FULL.name}{{{where}}})"),
        int(query(world, f"sum({audits}{{{where}}})")),
        int(query(world, f'sum({audits}{{{where},agree="false"}})')),
    )


def period(world: World, start: Counters, end: Counters) -> dict[str, Any]:
    """Compute, latency and disagreement between two readings, as the report holds them."""
    seen = load.summary(load.windows(world.load, start.time, end.time))
    n, wrong = end.audits - start.audits, end.disagreements - start.disagreements
    full = end.layers_full - start.layers_full
    return {
        "compute_fraction": round((end.layers_run - start.layers_run) / full, 4) if full else None,
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "disagreement": round(wrong / n, 5) if n else None,
        "disagreement_upper": round(upper_bound(wrong, n), 5) if n else None,
        "n": n,
    }


def upper_bound(wrong: int, n: int) -> float:
    """Clopper-Pearson upper limit of a share at 95 %."""
    return 1.0 if wrong >= n else float(beta.ppf(UPPER_CONFIDENCE, wrong + 1, n - wrong))
