"""Traffic in clusters for `bench certificate`: streams of audits drawn from a pool.

A pool stands for the population of requests; a population says how they arrive. Every kind draws
its requests from the pool with equal chances, so a policy's risk under all of them is its risk on
the pool, and only the dependence between audits differs.
Leaves out certifying (`bench_certificate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from trimwheel_api.errors import InvalidInput
from trimwheel_pipelines.bench_pools import Pool
from trimwheel_pipelines.replay import ReplayRecords

INDEPENDENT: Final = "independent"
BURST_SHARE: Final = 0.3
"""Share of the audits that come in bursts, where none is given."""
ALIVE: Final = 50
"""Sessions whose audits interleave at any time."""
COPY_NOISE: Final = 0.05
"""Standard deviation, in logits, by which the scores of near-copies differ."""
MOST: Final = 10_000
"""Largest cluster that may be asked for."""
Rows = npt.NDArray[np.int64]
Generator = np.random.Generator


@dataclass(frozen=True)
class Population:
    """How requests arrive: `independent`, `repeat:N`, `bursts:N[:SHARE]` or `mixed`."""

    name: str
    draw: Callable[[int, int, Generator], tuple[Rows, Rows, npt.NDArray[np.bool_]]]
    """(requests in the pool, audits, rng) -> row, session, is a near-copy; each [audits]"""

    @property
    def clustered(self) -> bool:
        """Whether audits depend on each other."""
        return self.name != INDEPENDENT

    def stream(self, pool: Pool, audits: int, rng: Generator) -> tuple[ReplayRecords, Rows]:
        """Audits in order of time with the session of each."""
        rows, sessions, copies = self.draw(len(pool.records), audits, rng)
        records = pool.records.take(rows)
        return _edited(records, copies, rng), sessions


def population(text: str) -> Population:
    """The population that an option names. Raises InvalidInput for another text."""
    kind, *numbers = text.split(":")
    try:
        if kind == INDEPENDENT and not numbers:
            return Population(text, _independent)
        if kind == "repeat" and len(numbers) == 1:
            return Population(text, _repeated(_size(numbers[0])))
        if kind == "bursts" and len(numbers) in (1, 2):
            share = float(numbers[1]) if len(numbers) == 2 else BURST_SHARE
            if 0.0 < share < 1.0:
                return Population(text, _bursts(_size(numbers[0]), share))
        if kind == "mixed" and not numbers:
            return Population(text, _mixed)
    except ValueError:
        pass
    raise InvalidInput(
        "population",
        f"must be independent, repeat:N, bursts:N, bursts:N:SHARE or mixed, with N from 1 to "
        f"{MOST} and SHARE inside (0, 1)",
        text,
    )


def _size(text: str) -> int:
    size = int(text)
    if not 1 <= size <= MOST:
        raise ValueError(text)
    return size


def _independent(pool: int, audits: int, rng: Generator) -> Any:
    return rng.integers(0, pool, audits), np.arange(audits), np.zeros(audits, bool)


def _repeated(size: int) -> Any:
    """Sessions that repeat one request `size` times; `ALIVE` of them interleave."""

    def draw(pool: int, audits: int, rng: Generator) -> Any:
        count = -(-audits // size) + ALIVE
        rows = np.repeat(rng.integers(0, pool, count), size)
        sessions = np.repeat(np.arange(count), size)
        times = rng.random(count)[sessions] * count + rng.random(count * size) * ALIVE
        order = np.argsort(times, kind="stable")[:audits] if size > 1 else np.arange(audits)
        return rows[order], sessions[order], np.zeros(audits, bool)

    return draw


def _bursts(size: int, share: float) -> Any:
    """Every request its own session; `share` of the audits are bursts of `size` near-copies."""

    def draw(pool: int, audits: int, rng: Generator) -> Any:
        chance = share / (share + (1.0 - share) * size)
        sizes = np.where(rng.random(audits) < chance, size, 1)
        rows = np.repeat(rng.integers(0, pool, audits), sizes)[:audits]
        copies = np.repeat(sizes > 1, sizes)[:audits]
        return rows, np.arange(audits), copies

    return draw


def _mixed(pool: int, audits: int, rng: Generator) -> Any:
    """Worse than either: a third in sessions of 20 repeats and a third in bursts of 10 on average,
    of geometric length, a fifth of the bursts scattered among other traffic."""
    chances = np.array([1 / 20, 1 / 10, 1.0])
    kinds = rng.choice(3, audits, p=chances / chances.sum())
    sizes = np.where(kinds == 0, rng.geometric(1 / 20, audits), 1)
    sizes = np.where(kinds == 1, rng.geometric(1 / 10, audits), sizes)
    start = np.cumsum(sizes) - sizes
    member = np.repeat(np.arange(audits), sizes)
    scattered = (kinds == 0) | ((kinds == 1) & (rng.random(audits) < 0.2))
    within = np.arange(len(member)) - start[member]
    spread = np.where(scattered[member], rng.random(len(member)) * 10 * sizes[member], within)
    order = np.argsort(start[member] + spread, kind="stable")[:audits]
    member = member[order]
    rows = rng.integers(0, pool, audits)[member]
    fresh = audits + np.arange(audits)
    sessions = np.where(kinds[member] == 0, member, fresh)
    return rows, sessions, kinds[member] == 1


def _edited(records: ReplayRecords, copies: npt.NDArray[np.bool_], rng: Generator) -> ReplayRecords:
    """Near-copies have almost the scores of their original, and its losses."""
    if not copies.any():
        return records
    inside = np.clip(records.scores[copies].astype(np.float64), 1e-6, 1 - 1e-6)
    scores = records.scores.copy()
    scores[copies] = expit(logit(inside) + rng.normal(scale=COPY_NOISE, size=inside.shape))
    return ReplayRecords(
        scores, records.agree, records.final_agree, records.weights, records.graded
    )
