"""`trimwheel bench certificate`: how often certificates break their promise, and what they save.

Each draw plays a whole tuning run on a pool that stands for the population: search on some audits,
certify on others that the search never saw, look again with twice as many if nothing passed. The
released policy is judged on the *whole* pool. Independent draws take at most a tenth of the pool to
certify: judged on the remainder of a half split, correct code seems to break its promise half as
often again, because sampling without replacement pushes the two halves apart. Traffic in clusters
(`bench_populations`) is drawn with replacement. Where certificates ask for more clusters, the
draws get the audits that were asked for.

Leaves out: knobs that need model runs, time (rates and missing audits), which unit tests cover.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from trimwheel_api.errors import NotEnoughData
from trimwheel_api.policy import MAX_EXITS
from trimwheel_console import NEGATIVE, emit, output_option, progress, text_table
from trimwheel_console.ranges import SEED, Real, Whole
from trimwheel_pipelines.audit_window import (
    LOOK_SHARES,
    AuditWindow,
    Outcome,
    Promise,
    select_audits,
)
from trimwheel_pipelines.bench_host import host
from trimwheel_pipelines.bench_pools import SYNTHETIC, Pool, graded_pool, load_pool
from trimwheel_pipelines.bench_populations import INDEPENDENT, Population, population
from trimwheel_pipelines.certificate import Certificate, Finalist, certify
from trimwheel_pipelines.chain import search_chain, single_chain
from trimwheel_pipelines.replay import ReplayRecords, ReplayTable, replay_reference

CERTIFY: Final = 1_500
"""Audits of the first look where nothing else is asked for."""
POOL_SHARE: Final = 0.1
"""Most of the pool that one look may certify on."""
FINALISTS: Final = 2
"""The searched chain and the single threshold share delta."""
CONFIDENCE: Final = 0.999
"""Correct code stays within `allowed` violations with this probability."""
CASES: Final = (
    INDEPENDENT,
    "repeat:4",
    "repeat:20",
    "repeat:60",
    "repeat:200",
    "bursts:3",
    "bursts:10",
    "bursts:30",
    "bursts:30:0.5",
    "mixed",
)
"""Populations that are played unless one is named."""
GRANTS: Final = 3
"""Times that a pilot may ask for more audits."""
_OPENED = datetime(2026, 1, 1, tzinfo=UTC)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sizes:
    """One run's promise and audits."""

    epsilon: float
    delta: float
    search: int
    certify: int
    looks: int


@dataclass(frozen=True)
class Draw:
    """One run, judged on the whole pool."""

    certified: bool
    finalist: str
    look: int
    risk: float
    cost: float  # relative to full depth
    design_effect: float
    asked: int = 0  # audits asked for where there were too few clusters


@dataclass(frozen=True)
class Audits:
    """The audits of one run: what it searches on, and the stream that certifies."""

    search: ReplayRecords
    search_sessions: npt.NDArray[np.int64]
    stream: ReplayRecords
    stream_sessions: npt.NDArray[np.int64]


@click.command("certificate", short_help="Violations and cost of certificates over many draws.")
@click.option(
    "--population",
    "names",
    multiple=True,
    help="independent, repeat:N, bursts:N[:SHARE] or mixed; may be given again. Default: a case of "
    "each kind.",
)
@click.option(
    "--loss",
    type=click.Choice(["binary", "graded"]),
    default="binary",
    show_default=True,
    help="graded: losses between 0 and 1, tested by betting.",
)
@click.option(
    "--draws",
    type=Whole(1, 1_000_000),
    default=150,
    show_default=True,
    help="Tuning runs played for each population.",
)
@click.option(
    "--epsilon",
    type=Real(1e-6, 1, below=True),
    default=0.02,
    show_default=True,
    help="Promised disagreement.",
)
@click.option(
    "--delta",
    type=Real(1e-6, 1, below=True),
    default=0.1,
    show_default=True,
    help="Chance of a broken promise a run.",
)
@click.option(
    "--search",
    type=Whole(1, 10_000_000),
    default=1_000,
    show_default=True,
    help="Audits searched on.",
)
@click.option(
    "--certify",
    type=Whole(1, 10_000_000),
    default=None,
    help="Audits of the first look. Default: 1500, and where there are too few clusters as many as "
    "the certificate asks for.",
)
@click.option(
    "--seed", type=Whole(0, SEED), default=0, show_default=True, help="Of the pool and the draws."
)
@click.option("--pool", default=SYNTHETIC, show_default=True, help="synthetic, or a model's name.")
@click.option("--records", default="", help="URI#NAMESPACE/MODEL: audit records as the pool.")
@click.option(
    "--pool-size",
    type=Whole(100, 10_000_000),
    default=100_000,
    show_default=True,
    help="Of the synthetic pool.",
)
@click.option(
    "--exits", type=Whole(1, MAX_EXITS), default=5, show_default=True, help="Of the synthetic pool."
)
@click.option(
    "--session-length",
    type=Whole(1, 1_000_000),
    default=1,
    show_default=True,
    help="Of the synthetic pool.",
)
@output_option
def command(
    names: tuple[str, ...],
    loss: str,
    draws: int,
    epsilon: float,
    delta: float,
    search: int,
    certify: int | None,
    seed: int,
    pool: str,
    records: str,
    pool_size: int,
    exits: int,
    session_length: int,
    output: str,
) -> None:
    """Certify again and again on small draws of a pool, and judge what was released on all of it.

    Exits with 1 when promises are broken more often than correct code would (99.9 % limit).

    \b
    trimwheel bench certificate
    trimwheel bench certificate --population repeat:20 --population bursts:10
    trimwheel bench certificate --loss graded --pool demo -o json
    """
    cases = [population(name) for name in names or CASES]
    requests = load_pool(
        pool,
        rows=pool_size,
        exits=exits,
        seed=seed,
        session_length=session_length,
        records=records,
    )
    if loss == "graded":
        requests = graded_pool(requests, seed)
    sizes = sizes_for(requests, epsilon, delta, search, certify or CERTIFY)
    played = [
        run(requests, granted(requests, sizes, each, seed) if certify is None else sizes,
            draws, seed, each)
        for each in cases
    ]  # fmt: skip
    result = played[0] if len(played) == 1 else _together(played)
    emit(result, output, table=lambda: "\n\n".join(_table(each) for each in played))
    if not result["ok"]:
        click.get_current_context().exit(NEGATIVE)


def _together(played: list[dict[str, Any]]) -> dict[str, Any]:
    """Several populations as one document: the worst of each figure, then every case."""
    return {
        "bench": "certificate",
        "draws": played[0]["draws"],
        "allowed": played[0]["allowed"],
        "violations": max(each["violations"] for each in played),
        "cost": {each["population"]: each["cost"]["released"]["mean"] for each in played},
        "ok": all(each["ok"] for each in played),
        "cases": played,
        "host": host(),
    }


def granted(pool: Pool, sizes: Sizes, case: Population, seed: int) -> Sizes:
    """Sizes with as many audits as certificates of this population ask for."""
    if not case.clustered:
        return sizes
    rng = np.random.default_rng([seed, 1])
    for _ in range(GRANTS):
        pilot = replace(sizes, looks=1)
        asked = [play(pool, pilot, rng, index, case).asked for index in range(3)]
        if not any(asked):
            break
        sizes = replace(sizes, certify=max(asked))
    return sizes


def sizes_for(pool: Pool, epsilon: float, delta: float, search: int, certify: int) -> Sizes:
    """Audits and looks that stay within a tenth of the pool; a small pool makes a smaller n.

    NotEnoughData when that tenth could not certify even a policy that never disagrees.
    """
    limit = int(POOL_SHARE * len(pool.records))
    audits = min(certify, limit)
    level = Promise(epsilon, delta, max(audits, 1), FINALISTS).level
    need = int(np.ceil(np.log(level) / np.log1p(-epsilon)))
    if audits < need:
        raise NotEnoughData(
            f"records of pool {pool.name}, of which a tenth may certify",
            len(pool.records),
            int(np.ceil(need / POOL_SHARE)),
        )
    looks = sum(audits * 2**look <= limit for look in range(len(LOOK_SHARES)))
    return Sizes(epsilon, delta, search, audits, looks)


def run(
    pool: Pool, sizes: Sizes, draws: int, seed: int, case: Population | None = None
) -> dict[str, Any]:
    """The measurement of one population as JSON values."""
    case = case or population(INDEPENDENT)
    rng = np.random.default_rng(seed)
    with progress() as bar:
        played = [
            play(pool, sizes, rng, index, case)
            for index in bar.track(range(draws), description=f"certificates, {case.name}")
        ]
    violations = sum(draw.risk > sizes.epsilon for draw in played)
    allowed = int(binom.ppf(CONFIDENCE, draws, sizes.delta))
    cost = np.array([draw.cost for draw in played])
    return {
        "bench": "certificate",
        "population": case.name,
        "pool": pool.name,
        "pool_size": len(pool.records),
        "exits": pool.records.exits,
        "draws": draws,
        "seed": seed,
        "epsilon": sizes.epsilon,
        "delta": sizes.delta,
        "search": sizes.search,
        "certify": sizes.certify,
        "looks": sizes.looks,
        "certified": sum(draw.certified for draw in played),
        "too_few_clusters": sum(draw.asked > 0 for draw in played),
        "violations": violations,
        "allowed": allowed,
        "ok": violations <= allowed,
        "released_risk": _spread(np.array([draw.risk for draw in played])),
        "design_effect": _spread(np.array([draw.design_effect for draw in played])),
        "released_by": {
            name: sum(draw.finalist == name for draw in played)
            for name in sorted({draw.finalist for draw in played})
        },
        "released_at_look": [
            sum(draw.certified and draw.look == look for draw in played)
            for look in range(sizes.looks)
        ],
        "cost": {
            "released": _spread(cost),
            "best_single_threshold": best_single(pool, sizes.epsilon),
            "earliest_agree_oracle": earliest_agree(pool),
            "unit": "share of full depth, on the whole pool",
        },
        "host": host(),
    }


def play(pool: Pool, sizes: Sizes, rng: np.random.Generator, seed: int, case: Population) -> Draw:
    """One tuning run on fresh records, judged on the whole pool."""
    audits = _clustered(pool, sizes, rng, case) if case.clustered else _whole(pool, sizes, rng)
    finalists = _finalists(pool, sizes, audits.search, seed)
    result: Certificate | None = None
    for look in range(sizes.looks):
        result = _look(pool, sizes, finalists, audits, look)
        if result.certified:
            break
    assert result is not None
    full = pool.costs[-1]
    if not result.certified:
        few = result.outcome is Outcome.TOO_FEW_CLUSTERS and result.clusters is not None
        asked = result.clusters.asked if few and result.clusters else 0
        return Draw(False, "full depth", result.look, 0.0, 1.0, 1.0, asked)
    point = np.array([result.thresholds], dtype=np.float64)
    cost, risk = replay_reference(pool.records, point, pool.costs)
    return Draw(
        True,
        str(result.finalist),
        result.look,
        float(risk[0]),
        float(cost[0]) / full,
        float(result.design_effect or 1.0),
    )


def _whole(pool: Pool, sizes: Sizes, rng: np.random.Generator) -> Audits:
    """Sessions of the pool are drawn whole, in random order, as they would arrive."""
    order = np.argsort(rng.permutation(int(pool.sessions.max()) + 1)[pool.sessions], kind="stable")
    search, stream = order[: sizes.search], order[sizes.search :]
    return Audits(
        pool.records.take(search),
        pool.sessions[search],
        pool.records.take(stream),
        pool.sessions[stream],
    )


def _clustered(pool: Pool, sizes: Sizes, rng: np.random.Generator, case: Population) -> Audits:
    """A stream of the population; what comes first is searched on."""
    total = sizes.search + sizes.certify * 2 ** (sizes.looks - 1)
    records, sessions = case.stream(pool, total, rng)
    rows = np.arange(total)
    search, stream = rows[: sizes.search], rows[sizes.search :]
    return Audits(records.take(search), sessions[search], records.take(stream), sessions[stream])


def _finalists(pool: Pool, sizes: Sizes, search: ReplayRecords, seed: int) -> list[tuple[str, Any]]:
    table = ReplayTable(search)
    return [
        ("searched", search_chain(table, pool.costs, sizes.epsilon, seed)),
        ("single", single_chain(table, pool.costs, sizes.epsilon)),
    ]


def _look(
    pool: Pool, sizes: Sizes, chains: list[tuple[str, Any]], audits: Audits, look: int
) -> Certificate:
    promise = Promise(sizes.epsilon, sizes.delta, sizes.certify, len(chains), look)
    rows = np.arange(min(promise.audits, len(audits.stream)))
    window = AuditWindow(
        u=np.zeros(len(rows)),
        rate=np.ones(len(rows)),
        sessions=audits.stream_sessions[rows],
        opened=_OPENED,
        closed=_OPENED + timedelta(days=1),
    )
    selection = select_audits(window, promise)
    fresh = audits.stream.take(rows[selection.rows])
    finalists = [
        Finalist(
            name=name,
            chain=chain,
            costs=pool.costs,
            dense_cost=pool.costs[-1],
            search=audits.search,
            search_sessions=audits.search_sessions,
            certification=fresh,
        )
        for name, chain in chains
    ]
    return certify(finalists, selection, promise)


def best_single(pool: Pool, epsilon: float) -> float:
    """Cost of the best shared threshold in hindsight: chosen on the whole pool, without a proof."""
    grid = np.arange(0, 10_001, 5) / 10_000
    low, high = 0, len(grid) - 1
    vector = np.ones((1, pool.records.exits))
    while low < high:  # risk falls as the threshold rises
        middle = (low + high) // 2
        _, risk = replay_reference(pool.records, vector * grid[middle], pool.costs)
        low, high = (low, middle) if risk[0] <= epsilon else (middle + 1, high)
    cost, _ = replay_reference(pool.records, vector * grid[low], pool.costs)
    return float(cost[0]) / pool.costs[-1]


def earliest_agree(pool: Pool) -> float:
    """Cost of leaving at the first exit that agrees with full depth: what nobody can know."""
    agree = np.concatenate([pool.records.agree, np.ones((len(pool.records), 1), bool)], axis=1)
    return float(np.asarray(pool.costs)[agree.argmax(axis=1)].mean()) / pool.costs[-1]


def _spread(values: Floats) -> dict[str, float]:
    low, middle, high = (float(value) for value in np.quantile(values, [0.1, 0.5, 0.9]))
    return {"mean": float(values.mean()), "p10": low, "median": middle, "p90": high}


def _table(result: dict[str, Any]) -> str:
    cost, risk = result["cost"], result["released_risk"]
    rows = [
        ["violations", f"{result['violations']} of {result['draws']}"],
        ["allowed (99.9 %)", result["allowed"]],
        ["certified", f"{result['certified']} of {result['draws']}"],
        ["too few clusters", result["too_few_clusters"]],
        ["released risk, median (p90)", f"{risk['median']:.2%} ({risk['p90']:.2%})"],
        ["cost released, median", f"{cost['released']['median']:.3f}"],
        ["cost of best single threshold", f"{cost['best_single_threshold']:.3f}"],
        ["cost of earliest-agree oracle", f"{cost['earliest_agree_oracle']:.3f}"],
        ["design effect, median", f"{result['design_effect']['median']:.2f}"],
    ]
    return (
        f"{result['population']}: {result['pool']} pool of {result['pool_size']:,}; "
        f"epsilon {result['epsilon']:.1%}, "
        f"delta {result['delta']:.0%}; search {result['search']:,}, certify "
        f"{result['certify']:,} and up to {result['looks']} looks\n"
        f"{text_table(['figure', 'value'], rows)}"
    )
