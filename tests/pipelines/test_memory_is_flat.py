"""A simulated month of models through the loop's own parts, thinned: nothing grows with it.

`trimwheel bench memory` plays it in full.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from trimwheel_pipelines.bench_memory import Plan, command, play

MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_month_of_models_takes_the_memory_of_its_first_days(tmp_path: Path) -> None:
    """Four passes a day in place of 28,800, and one audit in a hundred."""
    plan = Plan(models=2, workers=3, days=30, audits=0.02, step=21_600.0, seed=1)
    rows = list(play(plan, str(tmp_path)))
    early, late = rows[2], rows[-1]
    assert late["trials"] > 0.9 * 2 * 30 * 86_400 * 0.02
    assert late["resident_bytes"] - early["resident_bytes"] < 32 * MIB
    # Blocks of signals are what is added: 24 bytes each for 15 minutes.
    assert late["held_bytes"] - early["held_bytes"] < 2 * 400_000
    # Each pass delivers three segments; merged, most are one.
    delivered = 2 * 3 * 4 * 30
    assert late["names"] == late["files"] < delivered / 2


def test_the_bench_says_whether_memory_grew() -> None:
    small = ["--models", "1", "--workers", "1", "--days", "3", "--rate", "0.1", "--step", "1800"]
    assert CliRunner().invoke(command, [*small, "--days", "2"]).exit_code == 2
    assert command.get_short_help_str(200) == "What the watch loop holds over simulated days."
