"""Reads every claim of a report again from the live system, with the report's own commands.

Called by `trimwheel demo check`. The commands are `evidence`'s; what they prove stands there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SECONDS = 60.0
"""Longest that one check may take."""
TIMED_OUT = f"not within {SECONDS:.0f} s"


@dataclass(frozen=True, slots=True)
class Reading:
    """One claim, read again: what the system says now, and whether it still holds."""

    stage: str
    kind: str
    check: str
    holds: bool
    said: str


def recheck(report: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[Reading]:
    """Each claim of a `trimwheel.demo/v1` report in its order, each command run once."""
    seen: set[str] = set()
    for stage in report["stages"]:
        for item in stage["evidence"]:
            if item["check"] not in seen:
                seen.add(item["check"])
                holds, said = _run(item["check"], environ)
                yield Reading(stage["name"], item["kind"], item["check"], holds, said)


def count(report: Mapping[str, Any]) -> int:
    """How many claims `recheck` will read."""
    return len({item["check"] for stage in report["stages"] for item in stage["evidence"]})


def _run(check: str, environ: Mapping[str, str]) -> tuple[bool, str]:
    try:
        done = subprocess.run(
            ["bash", "-c", check], env=environ, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return False, TIMED_OUT
    said = done.stdout.strip() or done.stderr.strip()
    return done.returncode == 0 and bool(done.stdout.strip()), said
