"""Follow a TuningRun or a PolicyRollout to where the story needs it, with one live line.

Used by the stages; reads objects, decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import TrimwheelError
from trimwheel_api.times import instant
from trimwheel_demo.kube import condition, is_true, status
from trimwheel_demo.places import MODEL
from trimwheel_demo.world import World

Item = dict[str, Any]
TUNING_TIMEOUT = 420.0
ROLLOUT_TIMEOUT = 420.0


class KeptFullDepth(TrimwheelError):
    """Nothing was certified: an honest outcome, and the end of the story."""


class Withstood(TrimwheelError):
    """The certified policy keeps its promise on the changed traffic as well: nothing to answer, an
    honest outcome, and the end of the story."""


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
    """Until the run that `find` finds has ended, however it did."""

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

    return world.teller.wait("the TuningRun", has_ended, TUNING_TIMEOUT, line)


def demand_rollout(run: Item) -> None:
    """Raise KeptFullDepth or StoryFailed unless a policy of the run is on its way."""
    if status(run).get("rollout"):
        return
    outcome = status(run).get("outcome")
    why = condition(run, names.STALLED) or condition(run, names.READY)
    if outcome in (names.Reason.NOTHING_CERTIFIED, names.Reason.NO_IMPROVEMENT):
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
    """What was seen of each step while it was watched: the last verdict and its samples."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[str, int]] = {}

    def look(self, item: Item) -> bool:
        """Note the step in force; True when it was not seen before."""
        now = status(item)
        if not now.get("stepStartedAt"):
            return False
        step = now.get("step", 0)
        samples = max((guard.get("samples", 0) for guard in now.get("guards", [])), default=0)
        is_new = step not in self.seen
        if now.get("phase") in ("Progressing", "AwaitingApproval"):
            self.seen[step] = now.get("verdict", names.VERDICT_NOT_ENOUGH), samples
        return is_new and step in self.seen


_OPENS = (names.Action.START, names.Action.ADVANCE)
_LEAVES = (*_OPENS, names.Action.AWAIT, names.Action.PROMOTE, names.Action.ROLL_BACK,
           names.Action.ABORT)  # fmt: skip


def steps_report(item: Item, log: StepLog) -> list[dict[str, Any]]:
    """The steps as the operator decided them, whenever we began to watch.

    Weight and times come from the decisions; verdict and samples are the last ones seen in a step,
    or what its end alone proves: nothing failed where it advanced, all passed where a person was
    asked.
    """
    decisions = [one for one in status(item).get("decisions", []) if one["action"] in _LEAVES]
    rows: list[dict[str, Any]] = []
    for index, opened in enumerate(decisions):
        if opened["action"] not in _OPENS:
            continue
        left = decisions[index + 1] if index + 1 < len(decisions) else None
        seen: tuple[str, int | None] = log.seen.get(len(rows)) or (_proven(left), None)
        verdict, samples = seen
        if left is not None and left["reason"] == names.Reason.GUARD_FAILED:
            verdict = names.VERDICT_FAIL
        spent = instant(left["time"]) - instant(opened["time"]) if left else None
        rows.append({
            "weight": opened.get("weightBasisPoints", 0),
            "verdict": verdict,
            "samples": samples,
            "seconds": round(spent.total_seconds(), 1) if spent is not None else None,
            "time": opened["time"],
            "left_by": left["action"] if left else "",
            "reason": left["reason"] if left else "",
        })  # fmt: skip
    return rows


def _proven(left: Item | None) -> str:
    if left is not None and left["action"] in (names.Action.AWAIT, names.Action.PROMOTE):
        return names.VERDICT_PASS
    return names.VERDICT_NOT_ENOUGH


def follow_rollout(
    world: World, name: str, arrived: Callable[[Item], bool], log: StepLog | None = None
) -> Item:
    """Until `arrived`; tells each step. Raises StoryFailed when the rollout ends otherwise."""
    steps = log or StepLog()

    def look() -> Item | None:
        item = world.admin.get("PolicyRollout", name) or {}
        if steps.look(item):
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
    """Whether a rollout is over; one that is rolling back still waits for its workers, and one
    that is refused for now is asked again."""
    over = any(is_true(item, kind) for kind in (names.READY, names.ROLLED_BACK))
    return over or bool(status(item).get("finishedAt"))


def decision(item: Item, *actions: str) -> dict[str, Any]:
    """The newest decision that did one of these; empty when there is none."""
    found = [one for one in status(item).get("decisions") or [] if one["action"] in actions]
    return dict(found[-1]) if found else {}


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
