"""Stage 5: the traffic really changes; the audited risk breaks the certificate."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import TrimwheelError
from trimwheel_api.policy import DENSE
from trimwheel_demo import load
from trimwheel_demo.evidence import Evidence, condition_path, object_evidence
from trimwheel_demo.kube import is_true, status
from trimwheel_demo.measure import counters, period, period_evidence, settled
from trimwheel_demo.places import MODEL
from trimwheel_demo.settings import EPSILON
from trimwheel_demo.stages.following import StoryFailed, Withstood
from trimwheel_demo.teller import TimedOut
from trimwheel_demo.world import World
from trimwheel_telemetry.evidence import log_e_over

DETECT_TIMEOUT = 300.0
BEFORE_SECONDS = 15.0
MISSED = 0.001
"""Level at which audits show harm so clearly that the drift detector has missed it."""
ENOUGH_AUDITS = 5_000
"""Fewer than this in `DETECT_TIMEOUT`, and it is the audits that failed."""


def drift(world: World, found: list[Evidence]) -> None:
    """Switch the load to comments of modules never trained on; wait for the verdict."""
    start = settled(world)
    world.teller.say(f"measuring the certified policy on its own traffic for {BEFORE_SECONDS:g} s")
    time.sleep(BEFORE_SECONDS)
    before = settled(world)
    world.report["before"] = period(world, start, before)
    found += period_evidence(start, before, world.report["before"])
    world.teller.command("trimwheel load start --mix drifted")
    load.start(world.load, replace(world.load.read_control(), mix="drifted"))
    changed = settled(world)
    try:
        item = world.teller.wait(
            "the drift verdict", lambda: _harmful(world), DETECT_TIMEOUT,
            lambda: _audits_line(world, changed.audits, changed.disagreements),
        )  # fmt: skip
    except TimedOut as error:
        raise withstood_or_missed(period(world, changed, settled(world)), str(error)) from error
    shown = settled(world)
    verdict, served = status(item)["drift"], status(item)["intended"]["policy"]
    stale = period(world, changed, shown)
    world.notes["stale"] = stale
    item = world.teller.wait("workers at full depth", lambda: _degraded(world), 60)
    broken = status(item)["certificate"]["state"]
    world.report["drift"] = {
        "signal": verdict["signal"],
        "value": verdict["value"],
        "bound": verdict["bound"],
        "confidence": verdict["confidence"],
        "audits_to_verdict": shown.audits - changed.audits,
        "seconds_to_verdict": round(shown.time - changed.time, 1),
        "seconds_to_full_depth": round(time.time() - changed.time, 1),
        "certificate_broken": broken == "Revoked",
        "full_depth_at": status(item)["stable"].get("since", ""),
        "stale": stale,
    }
    world.teller.good(
        f"{verdict['verdict']}: {verdict['signal']} is {verdict['value']}, promised "
        f"{verdict['bound']} (confidence {verdict['confidence']}){_window(verdict)}, after "
        f"{world.report['drift']['audits_to_verdict']} audits of the changed traffic"
    )
    world.teller.good(f"certificate {broken}; workers serve full depth without anybody's approval")
    found += _evidence(world, verdict, served)


def _window(verdict: dict[str, Any]) -> str:
    """Which audits the verdict's share is of: fewer than the lines before it counted."""
    since = verdict.get("since")
    return (
        f" in the {verdict['audits']} audits since {since}, its estimate of the change"
        if since
        else ""
    )


def withstood_or_missed(seen: dict[str, Any], error: str) -> TrimwheelError:
    """What it means that no harm was shown in all that time: none was done, or it was missed."""
    share, audits = seen["disagreement"], seen["n"]
    if share is None or audits < ENOUGH_AUDITS:
        return StoryFailed(error)
    harm = float(log_e_over(round(share * audits), audits, float(EPSILON)))
    if harm >= math.log(1.0 / MISSED):
        return StoryFailed(f"{error}, although {share:.2%} of {audits} audits disagree")
    return Withstood(
        f"no harm could be shown: it disagrees {share:.2%} on the changed traffic in {audits} "
        f"audits, at most {float(EPSILON):.0%} is promised"
    )


def _evidence(world: World, verdict: dict[str, Any], served: str) -> list[Evidence]:
    """The model's own status soon speaks of the next policy; the run and the old policy do not."""
    run = world.admin.get("TuningRun", verdict["tuningRun"])
    policy = world.admin.get("AdaptivePolicy", served)
    if run is None or policy is None:
        raise StoryFailed(f"TuningRun {verdict['tuningRun']} or AdaptivePolicy {served} is gone")
    fields = ("verdict", "signal", "value", "bound")
    revoked = condition_path(names.CERTIFIED, "reason")
    return [
        object_evidence(run, "tuning", ".spec.reason", run["spec"]["reason"]),
        *(
            object_evidence(run, "tuning", f".status.drift.{name}", verdict[name])
            for name in fields
        ),
        object_evidence(policy, "adpolicy", revoked, names.Reason.CERTIFICATE_REVOKED),
    ]


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
