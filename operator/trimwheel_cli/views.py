"""The pictures of `status` and `history`, as text.

Pure: a snapshot and a clock in, a string out. `explain` has its own module, since it argues
where these only show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from trimwheel_api import names, phases
from trimwheel_api.kinds import AdaptiveModel, PolicyRollout, TuningRun
from trimwheel_api.kinds.common import Condition
from trimwheel_api.names import Reason
from trimwheel_cli import words
from trimwheel_cli.snapshot import Snapshot, is_finished, is_queued
from trimwheel_console import text_table

FINISHED_SHOWN = 3
DECISIONS_SHOWN = 6
GOOD, BAD, BUSY, WAITING, ENDED = "✔", "✖", "◌", "⏸", "–"
"""ENDED: by somebody's wish, or because something newer took its place; nothing failed."""
_UNDONE = (phases.ROLLED_BACK, phases.ROLLING_BACK, phases.STALLED)
_OVERTAKEN = (Reason.SUPERSEDED, Reason.STOPPED)
_VERDICT_MARKS = {names.VERDICT_PASS: GOOD, names.VERDICT_FAIL: BAD}
_TELLING_WHEN_TRUE = (names.DEGRADED, names.DRIFTED, names.STALLED, names.RECONCILING)


@dataclass
class _Node:
    """A line of the tree and the lines below it."""

    name: str
    kind: str
    state: str
    age: str = ""
    info: str = ""
    children: list[_Node] = field(default_factory=list)


def models_table(models: Sequence[AdaptiveModel], now: datetime) -> str:
    """A line a model."""
    if not models:
        return "no AdaptiveModel in this namespace"
    headers = ("name", "ready", "stable", "candidate", "certificate", "drift", "age")
    return text_table(headers, [_model_row(model, now) for model in models])


def status_view(snapshot: Snapshot, now: datetime) -> str:
    """Header, tree of rollouts with guards, and the newest decisions."""
    parts = [_header(snapshot, now), _tree_table(_model_node(snapshot, now))]
    decisions = history_rows(snapshot)[-DECISIONS_SHOWN:]
    if decisions:
        parts.append(text_table(HISTORY_HEADERS, [row.cells() for row in decisions]))
    return "\n\n".join(parts)


@dataclass(frozen=True)
class HistoryRow:
    """One decision, with the rollout it was taken on."""

    time: str
    rollout: str
    seq: int
    action: str
    reason: str
    weight_basis_points: int
    actor: str
    message: str

    def cells(self) -> tuple[object, ...]:
        """The row of the table."""
        said = f"{self.weight_basis_points / 100:g}%"
        return self.time, self.rollout, self.action, self.reason, said, self.actor, self.message


HISTORY_HEADERS = ("time", "rollout", "action", "reason", "weight", "by", "message")


def history_rows(snapshot: Snapshot) -> list[HistoryRow]:
    """Every decision that the objects still hold, oldest first."""
    rows = [
        HistoryRow(
            decision.time,
            rollout.name,
            decision.seq,
            decision.action,
            decision.reason,
            decision.weight_basis_points,
            decision.actor,
            decision.message,
        )
        for rollout in snapshot.rollouts
        for decision in rollout.status.decisions
    ]
    return sorted(rows, key=lambda row: (row.time, row.rollout, row.seq))


def history_view(snapshot: Snapshot) -> str:
    """Policies that were stable, then every decision."""
    status = snapshot.model.status
    served = [(words.short(one.digest), one.policy, one.since, one.until) for one in status.history]
    if status.stable:
        served.append((words.short(status.stable.digest), status.stable.policy,
                       status.stable.since, "now"))  # fmt: skip
    stables = text_table(("stable", "policy", "since", "until"), served)
    rows = history_rows(snapshot)
    if not rows:
        return f"{stables}\n\nno decisions yet"
    return f"{stables}\n\n{text_table(HISTORY_HEADERS, [row.cells() for row in rows])}"


def _model_row(model: AdaptiveModel, now: datetime) -> tuple[object, ...]:
    status = model.status
    ready = status.condition(names.READY)
    return (
        model.name,
        ready.status if ready else "Unknown",
        words.short(status.stable.digest) if status.stable else "-",
        status.candidate.rollout if status.candidate else "-",
        status.certificate.state if status.certificate else "None",
        status.drift.verdict if status.drift else names.VERDICT_NOT_ENOUGH,
        words.age(model.metadata.creation_timestamp, now),
    )


def _header(snapshot: Snapshot, now: datetime) -> str:
    model, status = snapshot.model, snapshot.model.status
    lines = [("Model", f"{model.name}  (namespace {model.metadata.namespace})")]
    ready = status.condition(names.READY)
    lines.append(("Ready", _condition(ready) if ready else "Unknown  (never reconciled)"))
    if status.stable:
        since = words.age(status.stable.since, now)
        name = status.stable.policy or "-"
        lines.append(("Stable", f"{words.short(status.stable.digest)}  policy {name}, for {since}"))
    active = snapshot.active
    if active:
        lines.append(("Candidate", f"{words.short(active.spec.policy_digest)}  rollout "
                      f"{active.name}, {words.weight(active)}"))  # fmt: skip
    if status.certificate:
        ends = status.certificate.expires_at
        when = f"  ends {words.until(ends, now)}" if ends else ""
        lines.append(("Certificate", f"{status.certificate.state}{when}"))
    if status.drift:
        drift = status.drift
        lines.append(("Drift", f"{drift.verdict}  {words.drift_numbers(drift, now)}".rstrip()))
    lines.append(("Workers", f"{status.ready_replicas} ready of {model.spec.replicas}"))
    if status.endpoint:
        lines.append(("Endpoint", status.endpoint))
    for kind in _TELLING_WHEN_TRUE:
        found = status.condition(kind)
        if found and found.status == "True":
            lines.append((kind, _condition(found)))
    return "\n".join(f"{name + ':':<13}{text}" for name, text in lines)


def _condition(condition: Condition) -> str:
    return f"{condition.status}  ({condition.reason}) {condition.message}".rstrip()


def _model_node(snapshot: Snapshot, now: datetime) -> _Node:
    model = snapshot.model
    ready = model.status.is_true(names.READY)
    root = _Node(
        model.name,
        "AdaptiveModel",
        f"{GOOD} Ready" if ready else f"{BUSY} NotReady",
        words.age(model.metadata.creation_timestamp, now),
    )
    finished = [one for one in snapshot.rollouts if is_finished(one)][-FINISHED_SHOWN:]
    shown = [one for one in snapshot.rollouts if not is_finished(one) or one in finished]
    root.children += [_rollout_node(one, now) for one in reversed(shown)]
    root.children += [_run_node(one, now) for one in reversed(snapshot.tuning_runs[-3:])]
    return root


def _rollout_node(rollout: PolicyRollout, now: datetime) -> _Node:
    phase = rollout.status.phase or "Pending"
    said = f"{phase}, tried again" if phases.is_retried(rollout.status) else phase
    # A finished rollout has no weight any more, but its verdict and end are the news.
    info = words.short(rollout.spec.policy_digest)
    if is_finished(rollout):
        info += f", ended {words.age(rollout.status.finished_at, now)} ago"
    elif not is_queued(rollout):
        info = f"{words.weight(rollout)}, {rollout.status.verdict}"
    stalled = rollout.status.condition(names.STALLED)
    if stalled and stalled.status == "True":
        info = f"{stalled.reason}: {stalled.message}"
    node = _Node(
        rollout.name,
        f"PolicyRollout/{rollout.spec.type}",
        f"{_rollout_mark(rollout)} {said}",
        words.age(rollout.metadata.creation_timestamp, now),
        info,
    )
    if not is_finished(rollout) or phase != "Promoted":
        node.children = [
            _Node(
                guard.name,
                "guard",
                f"{_VERDICT_MARKS.get(guard.verdict, BUSY)} {guard.verdict}",
                info=words.guard_numbers(guard),
            )
            for guard in rollout.status.guards
        ]
    return node


def _rollout_mark(rollout: PolicyRollout) -> str:
    """What failed looks like it; what went as somebody wanted does not."""
    status, kind = rollout.status, rollout.spec.type
    if status.phase == phases.AWAITING_APPROVAL:
        return WAITING
    if phases.is_retried(status) or status.phase not in (*_UNDONE, phases.PROMOTED):
        return BUSY
    if not phases.is_as_intended(kind, status):
        return BAD
    if not is_finished(rollout):
        return BUSY
    return GOOD if status.phase == phases.PROMOTED or kind == phases.ROLLBACK else ENDED


def _run_mark(run: TuningRun) -> str:
    if run.status.outcome in _OVERTAKEN:
        return ENDED
    overtaken = run.status.condition(names.STALLED)  # what 0.1.0 wrote: Failed, and why
    if overtaken is not None and overtaken.reason in _OVERTAKEN:
        return ENDED
    return GOOD if run.status.is_true(names.READY) else BAD


def _run_node(run: TuningRun, now: datetime) -> _Node:
    status = run.status
    if status.outcome:
        state = f"{_run_mark(run)} {status.outcome}"
    else:
        state = f"{BUSY} {status.phase or 'Pending'}"
    info = f"{run.spec.reason}, {status.trials_done} trials"
    if status.best_cost:
        info += f", cost {words.share(status.best_cost)}, risk {words.share(status.best_risk)}"
    return _Node(
        run.name, "TuningRun", state, words.age(run.metadata.creation_timestamp, now), info
    )


def _tree_table(root: _Node) -> str:
    headers = ("name", "kind", "state", "age", "info")
    return text_table(headers, _tree_rows(root, "", ""))


def _tree_rows(node: _Node, lead: str, indent: str) -> Iterable[tuple[str, ...]]:
    yield lead + node.name, node.kind, node.state, node.age, node.info
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _tree_rows(child, indent + branch, indent + below)
