"""Whose evidence it is: how much one client brought, and how often pods counted one session.

Called by `evidence`. Workers bound it where ten identities or more bring evidence (each counts for
a tenth at most); with fewer the verdict names the largest, and whoever approves decides. Pods do
not name identities, so the largest of each pod are taken for one client: the share is an upper
bound. Where a session's requests reach several pods each counts it, and the samples of sessions
that workers publish say how often.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trimwheel_api import names
from trimwheel_telemetry.answers import Series
from trimwheel_telemetry.counters import Window, matching, total
from trimwheel_telemetry.session_effect import session_effect

REQUEST_GUARDS = (names.GUARD_ERRORS, names.GUARD_LATENCY)
NAMED_ABOVE = 0.1
"""A share that workers allow to anybody needs no mention."""


def largest_share(
    trials: Sequence[Series], ratios: Sequence[Series], guard: str, digest: str, window: Window
) -> float | None:
    """The largest identity's share of a guard's trials on the candidate; None when unknown."""
    labels = {"guard": guard, "arm": names.ARM_CANDIDATE, "digest": digest}
    newest = {
        line.labels.get("pod", ""): _newest(line, window) for line in matching(ratios, **labels)
    }
    counted = largest = 0.0
    for line in matching(trials, **labels):
        ratio = newest.get(line.labels.get("pod", ""))
        if ratio is not None:
            added = total([line], window, history_of=trials)
            counted += added
            largest += ratio * added
    return largest / counted if counted else None


def counted_again(sampled: Sequence[Series], guard: str, digest: str) -> float:
    """Design effect of a guard's counts by pod: the larger of both arms; 1 when unknown.

    Latency counts the sessions of errors, parity those of disagreement, at most.
    """
    kind = names.GUARD_ERRORS if guard in REQUEST_GUARDS else names.GUARD_DISAGREEMENT
    candidate = matching(sampled, guard=kind, arm=names.ARM_CANDIDATE, digest=digest)
    stable = [
        line
        for line in matching(sampled, guard=kind, arm=names.ARM_STABLE)
        if line.labels["digest"] != digest
    ]
    return max(session_effect(_by_pod(candidate)), session_effect(_by_pod(stable)))


def _by_pod(lines: Sequence[Series]) -> list[npt.NDArray[np.float64]]:
    """The newest sample of each pod."""
    pods: dict[str, list[float]] = {}
    for line in lines:
        if len(line.values):
            pods.setdefault(line.labels.get("pod", ""), []).append(float(line.values[-1]))
    return [np.array(values) for values in pods.values()]


def share_sentence(share: float | None) -> str:
    """What the verdict says of it; nothing where no client stands out."""
    if share is None or share <= NAMED_ABOVE + 1e-9:
        return ""
    return f"one client (token subject or address) brought up to {share:.0%} of these trials"


def _newest(line: Series, window: Window) -> float | None:
    seen = line.values[line.times <= window.until]
    return float(seen[-1]) if len(seen) else None
