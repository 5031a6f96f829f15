"""Stage 5: the traffic really changes; the audited risk breaks the certificate."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from trimwheel_api import names
from trimwheel_api.policy import DENSE
from trimwheel_demo import load
from trimwheel_demo.kube import is_true, status
from trimwheel_demo.measure import counters, period
from trimwheel_demo.places import MODEL
from trimwheel_demo.report import object_evidence
from trimwheel_demo.world import World

DETECT_TIMEOUT = 300.0
BEFORE_SECONDS = 15.0


def drift(world: World, found: list[dict[str, str]]) -> None:
    """Switch the load to comments of modules never trained on; wait for the verdict."""
    start = counters(world)
    world.teller.say(f"measuring the certified policy on its own traffic for {BEFORE_SECONDS:g} s")
    time.sleep(BEFORE_SECONDS)
    before = counters(world)
    world.report["before"] = period(world, start, before)
    world.teller.command("trimwheel load start --mix drifted")
    load.start(world.load, replace(world.load.read_control(), mix="drifted"))
    changed = counters(world)
    item = world.teller.wait(
        "the drift verdict", lambda: _harmful(world), DETECT_TIMEOUT,
        lambda: _audits_line(world, changed.audits, changed.disagreements),
    )  # fmt: skip
    verdict = status(item)["drift"]
    stale = period(world, changed, counters(world))
    world.notes["stale"] = stale
    item = world.teller.wait("workers at full depth", lambda: _degraded(world), 60)
    at_full_depth = time.time()
    broken = status(item)["certificate"]["state"]
    world.report["drift"] = {
        "signal": verdict["signal"],
        "value": verdict["value"],
        "bound": verdict["bound"],
        "confidence": verdict["confidence"],
        "audits_to_verdict": counters(world).audits - changed.audits,
        "seconds_to_verdict": round(at_full_depth - changed.time, 1),
        "certificate_broken": broken == "Revoked",
        "full_depth_at": status(item)["stable"].get("since", ""),
        "stale": stale,
    }
    world.teller.good(
        f"{verdict['verdict']}: {verdict['signal']} is {verdict['value']}, promised "
        f"{verdict['bound']} (confidence {verdict['confidence']}), after "
        f"{world.report['drift']['audits_to_verdict']} audits"
    )
    world.teller.good(f"certificate {broken}; workers serve full depth without anybody's approval")
    found.append(object_evidence(item, "amodel", ".status.drift.verdict"))
    found.append(object_evidence(item, "amodel", ".status.certificate.state"))


def _harmful(world: World) -> dict[str, Any] | None:
    item = world.admin.get("AdaptiveModel", MODEL)
    return item if status(item).get("drift", {}).get("verdict") == names.Reason.HARMFUL else None


def _degraded(world: World) -> dict[str, Any] | None:
    item = world.admin.get("AdaptiveModel", MODEL)
    dense = status(item).get("stable", {}).get("digest") == DENSE.digest
    return item if dense and is_true(item, names.DEGRADED) else None


def _audits_line(world: World, audits: int, wrong: int) -> str:
    now = counters(world)
    n, k = now.audits - audits, now.disagreements - wrong
    return f"{k} disagreements in {n} audits" + (f" ({k / n:.1%})" if n else "")
