"""`trimwheel bench replay`: threshold vectors scored a second and core, checked for agreement.

Times the bitmap kernel, its sorted-grid form and a batched NumPy baseline in interleaved rounds on
one thread, and compares all three with the boolean reference. Leaves out building the tables.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from trimwheel_api.policy import MAX_EXITS
from trimwheel_console import NEGATIVE, emit, output_option, progress, text_table
from trimwheel_console.ranges import SEED, Whole
from trimwheel_pipelines.bench_host import host
from trimwheel_pipelines.bench_pools import SYNTHETIC, load_pool
from trimwheel_pipelines.replay import Outcome, ReplayRecords, ReplayTable, replay_reference

AIM = 10_000_000
"""Vectors a second and core at 5,000 records and 5 exits."""
TOLERANCE = 1e-9
CHECKED = 300
NUMPY_BATCH = 256
Floats = npt.NDArray[np.float64]
Levels = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Speed:
    """Vectors a second of one method over all rounds; by CPU time, on one thread."""

    best: float
    median: float
    median_wall: float


class NumpyReplay:
    """The baseline: the same bitmaps, a batch of vectors at a time, with `np.bitwise_count`."""

    def __init__(self, records: ReplayRecords, table: ReplayTable) -> None:
        limits = [edges.astype(np.float32) for edges in table.edges]
        self.rows = []
        for e, limit in enumerate(limits):
            reached = np.zeros((table.never + 1, len(records)), bool)
            reached[: len(limit)] = records.scores[:, e] >= limit[:, None]
            self.rows.append(_words(reached))
        agree = np.concatenate([records.agree, records.final_agree[:, None]], axis=1)
        self.differs = _words(~agree.T)
        self.everyone = _words(np.ones((1, len(records)), bool))[0]
        self.count = len(records)

    def score(self, vectors: Levels, costs: Floats) -> Outcome:
        """Cost and risk of each vector, as `ReplayTable.score` without weights."""
        cost, risk = np.empty(len(vectors)), np.empty(len(vectors))
        alive = np.empty((NUMPY_BATCH, len(self.everyone)), np.uint64)
        leaving = np.empty_like(alive)
        for start in range(0, len(vectors), NUMPY_BATCH):
            batch = vectors[start : start + NUMPY_BATCH]
            size = len(batch)
            on, x = alive[:size], leaving[:size]
            on[:] = self.everyone
            left = np.full(size, self.count, np.int64)
            price, wrong = np.zeros(size), np.zeros(size, np.int64)
            for e, rows in enumerate(self.rows):
                np.take(rows, batch[:, e], axis=0, out=x, mode="clip")
                x &= on
                on ^= x
                x &= self.differs[e]
                wrong += np.bitwise_count(x).sum(axis=1, dtype=np.int64)
                still = np.bitwise_count(on).sum(axis=1, dtype=np.int64)
                price += costs[e] * (left - still)
                left = still
            wrong += np.bitwise_count(on & self.differs[-1]).sum(axis=1, dtype=np.int64)
            cost[start : start + size] = (price + costs[-1] * left) / self.count
            risk[start : start + size] = wrong / self.count
        return Outcome(cost, risk)


@click.command("replay", short_help="Threshold vectors scored a second and core.")
@click.option(
    "--records",
    "rows",
    type=Whole(1, 10_000_000),
    default=5_000,
    show_default=True,
    help="Records replayed.",
)
@click.option(
    "--exits",
    type=Whole(1, MAX_EXITS),
    default=5,
    show_default=True,
    help="Exits before full depth.",
)
@click.option(
    "--vectors",
    type=Whole(1, 16_777_216),
    default=262_144,
    show_default=True,
    help="Vectors a round.",
)
@click.option(
    "--rounds", type=Whole(1, 1_000), default=7, show_default=True, help="Interleaved rounds."
)
@click.option(
    "--seed", type=Whole(0, SEED), default=0, show_default=True, help="Of the vectors and the pool."
)
@click.option("--pool", default=SYNTHETIC, show_default=True, help="Where records come from.")
@output_option
def command(
    rows: int, exits: int, vectors: int, rounds: int, seed: int, pool: str, output: str
) -> None:
    """Measure how fast recorded requests are replayed under other thresholds.

    Every method must agree with the plain boolean reference; if one does not, the exit code is 1.

    \b
    trimwheel bench replay
    trimwheel bench replay --records 20000 --vectors 65536 -o json
    """
    result = run(rows, exits, vectors, rounds, seed, pool)
    emit(result, output, table=lambda: _table(result))
    if not result["agreement"]["ok"]:
        click.get_current_context().exit(NEGATIVE)


def run(
    rows: int, exits: int, vectors: int, rounds: int, seed: int, pool_name: str
) -> dict[str, Any]:
    """The measurement as JSON values."""
    pool = load_pool(pool_name, rows=rows, exits=exits, seed=seed, session_length=1)
    records = pool.records.take(np.arange(min(rows, len(pool.records))))
    table = ReplayTable(records)
    costs = np.asarray(pool.costs)
    rng = np.random.default_rng(seed)
    batch = rng.integers(0, table.never + 1, (vectors, records.exits), dtype=np.uint16)
    grid = _grid(table, vectors)
    baseline = NumpyReplay(records, table)
    small = batch[: max(1, vectors // 32)]
    methods: dict[str, tuple[int, Callable[[], Outcome]]] = {
        "kernel": (len(batch), lambda: table.score(batch, costs)),
        "sorted_grid": (len(grid), lambda: table.score(grid, costs, sorted_grid=True)),
        "numpy": (len(small), lambda: baseline.score(small, costs)),
    }
    compiled = _compile_seconds(table, batch[:1], costs)
    return {
        "bench": "replay",
        "pool": pool.name,
        "records": len(records),
        "exits": records.exits,
        "levels": table.levels,
        "vectors": len(batch),
        "rounds": rounds,
        "seed": seed,
        "unit": "threshold vectors a second on one core",
        "speeds": {name: asdict(speed) for name, speed in _race(methods, rounds).items()},
        "compile_seconds": compiled,
        "aim": AIM,
        "agreement": _agreement(records, table, baseline, batch, grid, costs),
        "host": host(),
    }


def _race(methods: dict[str, tuple[int, Callable[[], Outcome]]], rounds: int) -> dict[str, Speed]:
    """Rates of each method; interleaved, so that a busy moment hits all of them."""
    cpu: dict[str, list[float]] = {name: [] for name in methods}
    wall: dict[str, list[float]] = {name: [] for name in methods}
    with progress() as bar:
        for _ in bar.track(range(rounds), description="replay rounds"):
            for name, (count, score) in methods.items():
                started, thread = time.perf_counter(), time.thread_time()
                score()
                cpu[name].append(count / (time.thread_time() - thread))
                wall[name].append(count / (time.perf_counter() - started))
    return {
        name: Speed(max(cpu[name]), float(np.median(cpu[name])), float(np.median(wall[name])))
        for name in methods
    }


def _agreement(
    records: ReplayRecords,
    table: ReplayTable,
    baseline: NumpyReplay,
    batch: Levels,
    grid: Levels,
    costs: Floats,
) -> dict[str, Any]:
    """Largest difference of each method from plain booleans, on the first vectors."""
    some, ordered = batch[:CHECKED], grid[:CHECKED]
    found = {
        "kernel": (some, table.score(some, costs)),
        "sorted_grid": (ordered, table.score(ordered, costs, sorted_grid=True)),
        "numpy": (some, baseline.score(some, costs)),
    }
    differences = {}
    for name, (vectors, outcome) in found.items():
        cost, risk = replay_reference(records, table.thresholds_of(vectors), costs)
        gap = max(np.abs(outcome.cost - cost).max(), np.abs(outcome.risk - risk).max())
        differences[name] = float(gap)
    return {
        "vectors": len(some),
        "largest_difference": differences,
        "ok": max(differences.values()) <= TOLERANCE,
    }


def _compile_seconds(table: ReplayTable, one: Levels, costs: Floats) -> float:
    started = time.perf_counter()
    table.score(one, costs)
    table.score(one, costs, sorted_grid=True)
    return time.perf_counter() - started


def _grid(table: ReplayTable, wanted: int) -> Levels:
    """A lexicographically sorted grid of about this many vectors."""
    each = max(2, int(wanted ** (1.0 / table.exits)))
    levels = np.linspace(0, table.never, each).astype(np.uint16)
    return np.array(list(itertools.product(levels, repeat=table.exits)), np.uint16)


def _words(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Boolean rows as 64-bit words, zero-padded."""
    padded = np.zeros((mask.shape[0], -(-mask.shape[1] // 64) * 64), bool)
    padded[:, : mask.shape[1]] = mask
    return np.packbits(padded, axis=1, bitorder="little").view(np.uint64)


def _table(result: dict[str, Any]) -> str:
    speeds = text_table(
        ["method", "median/s", "best/s", "median/s by wall clock"],
        [
            [name, f"{s['median']:,.0f}", f"{s['best']:,.0f}", f"{s['median_wall']:,.0f}"]
            for name, s in result["speeds"].items()
        ],
    )
    gap = max(result["agreement"]["largest_difference"].values())
    return (
        f"{result['records']:,} {result['pool']} records x {result['exits']} exits, "
        f"{result['levels']} levels, one core\n{speeds}\n"
        f"agreement with the boolean reference: largest difference {gap:.1e}\n"
        f"aim: {result['aim']:,} a second and core"
    )
