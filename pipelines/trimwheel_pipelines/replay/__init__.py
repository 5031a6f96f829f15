"""Replay: what would any vector of exit thresholds have done on recorded requests?

Knobs that decide *after* the hidden state need no model run: an audited record holds, for every
exit, the score and whether that exit agrees with the dense model, so each vector's cost and
disagreement on those records is a count. `records` holds the arrays, `reference` counts with plain
booleans, `bitmaps` prepares 1-bit tables and `kernel` counts them with popcount, some ten million
vectors a second and core. Used by `chain` (search), `bench_replay` and the trials of a study.

Leaves out: knobs that change hidden states (experts, precision, tokens), whose records differ, and
everything statistical: a replayed risk is an estimate on these records, never a promise.
"""

from trimwheel_api.decide import NEVER
from trimwheel_pipelines.replay.bitmaps import Outcome, ReplayTable
from trimwheel_pipelines.replay.records import ReplayRecords
from trimwheel_pipelines.replay.reference import (
    exits_taken,
    losses,
    losses_at,
    replay_reference,
    wrong_at,
)

__all__ = [
    "NEVER",
    "Outcome",
    "ReplayRecords",
    "ReplayTable",
    "exits_taken",
    "losses",
    "losses_at",
    "replay_reference",
    "wrong_at",
]
