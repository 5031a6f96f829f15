"""Chains: nested sequences of threshold vectors, from "never exit" to "exit eagerly".

A certificate does not test vectors, it walks a chain and stops at the first failure; so the search
looks for a *direction*, offsets b with thresholds `T_e(kappa) = sigmoid(kappa + b_e)`, and the
scalar kappa sweeps along it. Exits are nested along a chain, hence risk is near monotone and
the walk seldom stops early. Called by the tuning study on search data only; the certificate never
sees this module, only the finished points.

`search_chain` finds the offsets by replay; `single_chain` has equal offsets (one threshold for all
exits) and is the insurance that certifies where a searched direction was luck.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from trimwheel_api.decide import NEVER
from trimwheel_pipelines.replay import ReplayTable
from trimwheel_pipelines.replay.bitmaps import DECIMALS

Floats = npt.NDArray[np.float64]

MAX_POINTS = 120
# The sweep stops where the estimated risk passes this multiple of epsilon: none beyond certifies.
RISK_CEILING = 3.0
# Price of leaving the single threshold, in shares of full cost for a unit of mean squared offset:
# the best of many directions on few records is partly luck, and a calibrated score needs none.
SHRINKAGE = 0.02
_SHRINKAGE_LIMIT = 3.0
_KAPPA_LIMIT = 10.0
_OFFSET_LIMIT = 8.0
_SEARCH_KAPPAS = np.linspace(_KAPPA_LIMIT, -_KAPPA_LIMIT, 96)
_FINE_KAPPAS = np.linspace(_KAPPA_LIMIT, -_KAPPA_LIMIT, 2_001)
_STARTS = 256
_BEAM = 6
_STEPS = (1.0, 0.5, 0.25, 0.125)


@dataclass(frozen=True)
class Chain:
    """Points of a chain, quantised as a policy carries them; the first never exits."""

    name: str
    offsets: tuple[float, ...]
    points: tuple[tuple[str, ...], ...]  # P vectors of E decimal strings

    def thresholds(self) -> Floats:
        """The points as numbers, [P, E]."""
        return np.array(self.points, dtype=np.float64)


def single_chain(
    table: ReplayTable, costs: npt.ArrayLike, epsilon: float, points: int = MAX_POINTS
) -> Chain:
    """The chain in which all exits share one threshold."""
    return build_chain("single", np.zeros(table.exits), table, costs, epsilon, points)


def search_chain(
    table: ReplayTable,
    costs: npt.ArrayLike,
    epsilon: float,
    seed: int,
    points: int = MAX_POINTS,
) -> Chain:
    """The chain whose cost is lowest where its estimated risk reaches `epsilon`, shrunk to equal.

    `table` holds search data, `costs` [E + 1] what leaving at each exit costs. Random directions,
    then the best few are refined one offset at a time with shrinking steps; some 10^5 vectors, well
    under a second. The same seed gives the same chain.
    """
    rng = np.random.default_rng(seed)
    starts = rng.normal(0.0, 1.5, size=(_STARTS, table.exits))
    starts[0] = 0.0
    value = _objective(table, costs, epsilon, starts)
    keep = np.argsort(value, kind="stable")[:_BEAM]
    beam, scores = _centred(starts[keep]), value[keep]
    for step in _STEPS:
        for _ in range(4 * table.exits):
            moved = _neighbours(beam, step)
            value = _objective(table, costs, epsilon, moved)
            pool = np.concatenate([beam, moved])
            ranked = np.concatenate([scores, value])
            order = np.argsort(ranked, kind="stable")[:_BEAM]
            improved = ranked[order[0]] < scores.min() - 1e-12
            beam, scores = pool[order], ranked[order]
            if not improved:
                break
    return build_chain("searched", beam[int(np.argmin(scores))], table, costs, epsilon, points)


def directional_cost(
    table: ReplayTable, costs: npt.ArrayLike, epsilon: float, offsets: Floats
) -> Floats:
    """Cost of each direction [B, E] where its sweep first reaches risk `epsilon`: [B].

    Interpolated between the two sweep points around it, so that the search sees no steps. A
    direction that never reaches epsilon is priced at its last point.
    """
    sweep = _thresholds(_SEARCH_KAPPAS[None, :, None] + offsets[:, None, :])
    outcome = table.score_thresholds(sweep.reshape(-1, table.exits), costs)
    cost = outcome.cost.reshape(len(offsets), -1)
    risk = outcome.risk.reshape(len(offsets), -1)
    over = risk > epsilon
    first = np.where(over.any(axis=1), over.argmax(axis=1), risk.shape[1])
    rows = np.arange(len(offsets))
    after, before = np.minimum(first, risk.shape[1] - 1), np.maximum(first - 1, 0)
    gap = risk[rows, after] - risk[rows, before]
    part = np.where(gap > 0, (epsilon - risk[rows, before]) / np.where(gap > 0, gap, 1.0), 0.0)
    part = np.clip(part, 0.0, 1.0)
    return np.asarray(cost[rows, before] * (1 - part) + cost[rows, after] * part)


def _objective(table: ReplayTable, costs: npt.ArrayLike, epsilon: float, offsets: Floats) -> Floats:
    """What the search minimises: `directional_cost` and the price of unequal offsets."""
    unequal = np.clip(_centred(offsets), -_SHRINKAGE_LIMIT, _SHRINKAGE_LIMIT)
    price = SHRINKAGE * float(np.asarray(costs, dtype=np.float64)[-1]) * (unequal**2).mean(axis=1)
    return np.asarray(directional_cost(table, costs, epsilon, offsets) + price)


def build_chain(
    name: str,
    offsets: npt.ArrayLike,
    table: ReplayTable,
    costs: npt.ArrayLike,
    epsilon: float,
    points: int = MAX_POINTS,
) -> Chain:
    """Points along a direction at about equal steps of replayed cost, quantised and distinct.

    The sweep ends where the estimated risk passes `RISK_CEILING * epsilon` on the search data.
    """
    direction = np.asarray(offsets, dtype=np.float64)
    fine = _thresholds(_FINE_KAPPAS[:, None] + direction)
    fine = np.concatenate([np.full((1, table.exits), NEVER), fine])
    outcome = table.score_thresholds(fine, costs)
    over = outcome.risk > RISK_CEILING * epsilon
    end = int(over.argmax()) + 1 if over.any() else len(fine)
    descent = np.maximum.accumulate(outcome.cost[0] - outcome.cost[:end])
    wanted = np.linspace(0.0, descent[-1], points)
    chosen = np.unique(np.searchsorted(descent, wanted, side="left"))
    vectors = [tuple(decimal_threshold(value) for value in fine[0])]
    for index in chosen:
        vector = tuple(decimal_threshold(value) for value in fine[index])
        if vector != vectors[-1]:
            vectors.append(vector)
    return Chain(name, tuple(round(float(b), 4) for b in direction), tuple(vectors))


def decimal_threshold(value: float) -> str:
    """A threshold as a policy writes it: at most four decimals, no trailing zeros."""
    if value >= 1.0:
        value = NEVER
    text = f"{value:.{DECIMALS}f}".rstrip("0").rstrip(".")
    return text or "0"


def _thresholds(logits: Floats) -> Floats:
    """sigmoid, rounded to what a policy can carry; what rounds to 1 means never."""
    rounded = np.round(expit(logits), DECIMALS)
    return np.where(rounded >= 1.0, NEVER, rounded)


def _centred(offsets: Floats) -> Floats:
    """kappa absorbs a common shift, so keep the mean at zero."""
    centred = offsets - offsets.mean(axis=1, keepdims=True)
    return np.asarray(np.clip(centred, -_OFFSET_LIMIT, _OFFSET_LIMIT))


def _neighbours(beam: Floats, step: float) -> Floats:
    """Each offset of each direction moved up, moved down, or pushed out of use: [3 B E, E]."""
    exits = beam.shape[1]
    moves = np.concatenate([np.eye(exits) * step, -np.eye(exits) * step])
    moved = (beam[:, None, :] + moves).reshape(-1, exits)
    unused = np.repeat(beam, exits, axis=0)
    unused[np.arange(len(unused)), np.tile(np.arange(exits), len(beam))] = _OFFSET_LIMIT
    return np.concatenate([_centred(moved), unused])
