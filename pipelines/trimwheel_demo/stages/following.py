"""Follow a TuningRun or a PolicyRollout to where the story needs it, with one live line.

Used by the stages; reads objects, decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import TrimwheelError
from trimwheel_demo.kube import condition, is_true, status
from trimwheel_demo.places import MODEL
from trimwheel_demo.world import World

Item = dict[str, Any]
TUNING_TIMEOUT = 420.0
ROLLOUT_TIMEOUT = 420.0


class KeptFullDepth(TrimwheelError):
    """Nothing was certified: an honest outcome, and the end of the story."""


class StoryFailed(TrimwheelError):
    """Something happened that the story does not allow."""


def first_run(world: World) -> Item | None:
    """The oldest TuningRun: the bootstrap, which pipelines start by themselves."""
    return next(iter(world.admin.items("TuningRun")), None)


def run_after_drift(world: World) -> Item | None:
    """The TuningRun that answers the drift verdict: the model's status names it."""
    model = world.admin.get("AdaptiveModel", MODEL) or {}
    name = status(model).get("drift", {}).get("tuningRun")
    return world.admin.get("TuningRun", name) if name else None


def follow_tuning(world: World, find: Callable[[World], Item | None]) -> Item:
    """Until the run that `find` finds has ended, with a policy on its way.

    Raises KeptFullDepth when it certified none.
    """

    def has_ended() -> Item | None:
        run = find(world)
        return run if run and (is_true(run, names.READY) or is_true(run, names.STALLED)) else None

    def line() -> str:
        run = find(world)
        if run is None:
            return "not there yet"
        seen = status(run)
        return (
            f"{seen.get('phase') or 'starting'}: trials {seen.get('trialsDone', 0)}, "
            f"search audits {seen.get('searchRecords', 0)}, "
            f"fresh audits {seen.get('certifyRecords', 0)}/{seen.get('certifyNeeded', 0)}"
        )

    run = world.teller.wait("the TuningRun", has_ended, TUNING_TIMEOUT, line)
    if status(run).get("rollout"):
        return run
    outcome = status(run).get("outcome")
    why = condition(run, names.STALLED) or condition(run, names.READY)
    if outcome in ("NothingCertified", "NoImprovement"):
        raise KeptFullDepth(f"{outcome}: {why.get('message', '')}")
    name = run["metadata"]["name"]
    raise StoryFailed(f"TuningRun {name} ended as {outcome}: {why.get('message', '')}")


def guards_line(item: Item) -> str:
    """The guards of a rollout in one line, with their numbers."""
    marks = {names.VERDICT_PASS: "Pass", names.VERDICT_FAIL: "FAIL"}
    parts = [
        f"{guard['name']} {marks.get(guard['verdict'], '...')}"
        + (f" {guard['value']}/{guard['bound']}" if guard.get("value") else "")
        + f" n={guard.get('samples', 0)}"
        for guard in status(item).get("guards", [])
    ]
    return ", ".join(parts)


class StepLog:
    """Remembers when a rollout changed its step, for the report."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def look(self, item: Item, now: float) -> bool:
        """Note the step in force; True when it is a new one."""
        seen = status(item)
        if not seen.get("stepStartedAt"):
            return False
        weight, verdict = seen.get("weightBasisPoints", 0), seen.get("verdict", "")
        samples = max((g.get("samples", 0) for g in seen.get("guards", [])), default=0)
        changed = not self.rows or self.rows[-1]["step"] != seen.get("step", 0)
        if changed:
            self.rows.append({"step": seen.get("step", 0), "weight": weight, "_begun": now})
        row = self.rows[-1]
        if weight or not row.get("verdict"):
            row["weight"] = max(weight, row["weight"])
        row |= {"verdict": verdict, "samples": samples, "seconds": round(now - row["_begun"], 1)}
        return changed

    def report(self) -> list[dict[str, Any]]:
        """The rows as the report holds them."""
        keys = ("weight", "verdict", "samples", "seconds")
        return [{key: row[key] for key in keys} for row in self.rows]


def follow_rollout(
    world: World, name: str, arrived: Callable[[Item], bool], log: StepLog | None = None
) -> Item:
    """Until `arrived`; tells each step. Raises StoryFailed when the rollout ends otherwise."""
    import time

    steps = log or StepLog()

    def look() -> Item | None:
        item = world.admin.get("PolicyRollout", name) or {}
        if steps.look(item, time.monotonic()):
            weight = status(item).get("weightBasisPoints", 0) / 100
            what = "shadow: exposed to nobody, judged in every audit" if not weight else ""
            world.teller.say(f"step {status(item).get('step', 0)}: weight {weight:g}%  {what}")
        if arrived(item):
            return item
        if ended(item):
            raise StoryFailed(
                f"PolicyRollout {name} ended as {status(item).get('phase')}: {guards_line(item)}; "
                f"{last_decision(item)}"
            )
        return None

    def line() -> str:
        return guards_line(world.admin.get("PolicyRollout", name) or {})

    return world.teller.wait(f"PolicyRollout {name}", look, ROLLOUT_TIMEOUT, line)


def ended(item: Item) -> bool:
    """Whether a rollout is over; one that is rolling back still waits for its workers."""
    over = any(is_true(item, kind) for kind in (names.READY, names.ROLLED_BACK))
    return over or status(item).get("phase") == "Stalled"


def last_decision(item: Item) -> str:
    """The newest decision in words."""
    decisions = status(item).get("decisions") or []
    if not decisions:
        return "no decision"
    newest_one = decisions[-1]
    return f"{newest_one['action']} ({newest_one['reason']}) {newest_one.get('message', '')}"


def is_awaiting(item: Item) -> bool:
    """Whether a person is asked."""
    return is_true(item, names.AWAITING_APPROVAL)


def is_promoted(item: Item) -> bool:
    """Whether the candidate became stable."""
    return is_true(item, names.READY)


def is_rolled_back(item: Item) -> bool:
    """Whether every live worker is back on stable."""
    return is_true(item, names.ROLLED_BACK)


def instant(text: str) -> datetime:
    """A moment as the API server writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
