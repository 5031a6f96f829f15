"""Reads every claim of a report again from the live system, with the report's own commands.

Called by `trimwheel demo check`, and by the summary for what it lists. The commands are
`evidence`'s; what they prove stands there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trimwheel_demo.evidence import Evidence

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
    """Each claim of a `trimwheel.demo/v1` report in its order."""
    for stage, item in claims(report["stages"]):
        holds, said = _run(item["check"], environ)
        yield Reading(stage, item["kind"], item["check"], holds, said)


def claims(stages: Iterable[Mapping[str, Any]]) -> list[tuple[str, Evidence]]:
    """Stage and evidence of each claim; a command that two stages share stands once."""
    found: dict[str, tuple[str, Evidence]] = {}
    for stage in stages:
        for item in stage["evidence"]:
            found.setdefault(item["check"], (stage["name"], item))
    return list(found.values())


def _run(check: str, environ: Mapping[str, str]) -> tuple[bool, str]:
    try:
        done = subprocess.run(
            ["bash", "-c", check], env=environ, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return False, TIMED_OUT
    said = done.stdout.strip() or done.stderr.strip()
    return done.returncode == 0 and bool(done.stdout.strip()), said
