"""`trimwheel bench memory`: what the watch loop holds, over simulated days of many models.

Plays days of traffic in steps of some minutes through the loop's own parts: workers' segments in a
real folder, read, merged, judged and checkpointed as in a pass (`watching`, `merging`,
`checkpoints`), with retention. Only the clock and Prometheus are made up: telemetry comes from
generated counters of so many workers. Reported for each day: memory of the process, bytes held of
the models, names of segments, files in the store.

Exit code 1 when the process grew by more than `--limit` MiB after the second day, which is when the
sessions of a day and the first merges are there.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import pyarrow as pa

from trimwheel_api import metrics
from trimwheel_api.kinds import AdaptiveModel
from trimwheel_api.records import segment_day, segment_folder, segment_name
from trimwheel_console import NEGATIVE, emit, output_option, progress, text_table
from trimwheel_console.ranges import SEED, Real, Whole
from trimwheel_pipelines import checkpoints
from trimwheel_pipelines.bench_host import host
from trimwheel_pipelines.merging import settle
from trimwheel_pipelines.retention import purge
from trimwheel_pipelines.watch import timestamp_of
from trimwheel_pipelines.watching import Watched
from trimwheel_telemetry.answers import Answer, Ok, Series
from trimwheel_workers.records.segments import SCHEMA, deliver, segment_metadata, table_bytes

DAY: Final = 86_400.0
START: Final = 1_790_000_000.0 // DAY * DAY
DIGEST: Final = "sha256:" + "1" * 64
SCRAPE_SECONDS: Final = 15.0
WRONG: Final = 0.01
"""Share of audits that disagree: within the promise, so the watch goes on."""
SETTLED_AFTER: Final = 2
"""Days after which nothing may grow."""
ACCOUNT: Final = "bench"


@dataclass
class Plan:
    """What is played."""

    models: int
    workers: int
    days: int
    audits: float  # a second and model
    step: float  # seconds between two passes
    seed: int
    retention: float = 30 * DAY


@dataclass
class World:
    """The store, the workers' segments and the loop's view of each model."""

    plan: Plan
    root: str
    rng: np.random.Generator
    watched: dict[str, Watched] = field(default_factory=dict)
    sequence: int = 0

    def __post_init__(self) -> None:
        for number in range(self.plan.models):
            name = f"model-{number}"
            self.watched[name] = Watched.of(self.root, _model(name))

    def write(self, model: str, start: float) -> None:
        """What workers deliver of one step: each worker some segments, some losses."""
        plan = self.plan
        count = int(self.rng.poisson(plan.audits * plan.step))
        times = np.sort(self.rng.uniform(start, start + plan.step, count))
        sources = max(1, min(plan.workers, count // 2))
        for worker, rows in enumerate(np.array_split(self.rng.permutation(count), sources)):
            mine = np.sort(times[rows])
            if not len(mine):
                continue
            self.sequence += 1
            begun = float(mine[0])
            name = segment_name(f"{model}-7f-{worker}", begun, self.sequence, len(mine), 0)
            folder = f"{segment_folder(self.root, 'bench', model)}/{segment_day(begun)}"
            table = _records(mine, self.rng)
            deliver(folder, name, table_bytes(table, segment_metadata("bench", model)))

    def turn(self, model: str, now: float) -> None:
        """A pass of the loop over one model."""
        held = self.watched[model]

        def save() -> None:
            checkpoints.save(self.root, ACCOUNT, model, held)

        held.read(now)
        while plans := held.merge(now, save):
            save()
            settle(held.reader, plans)
        held.pull(Counters(self.plan.workers, self.rng), now)  # type: ignore[arg-type]
        held.judge(now)
        if now % 3600.0 < self.plan.step:
            save()
            purge(held.reader, now - self.plan.retention)

    def held_bytes(self) -> int:
        """Arrays and sets that are kept of all models; names are counted apart."""
        total = 0
        for held in self.watched.values():
            watch, telemetry = held.watch, held.telemetry
            assert watch is not None and telemetry is not None
            sums = watch.sums
            arrays = [sums.recent, sums.sessions.known, sums.score.sums]
            arrays += [one.sums for one in telemetry.signals()]
            if sums.window is not None:
                arrays.append(sums.window.sessions.known)
            total += sum(array.nbytes for array in arrays) + 200 * len(held.reader.seen)
        return total

    def names(self) -> int:
        """Segments whose names are held."""
        days = (day for held in self.watched.values() for day in held.reader.files.days())
        return sum(len(day.files) for day in days)

    def audits(self, now: float) -> int:
        """Trials counted so far."""
        watches = (held.watch for held in self.watched.values())
        return sum(watch.sums._trials_at(now)[0].all_count for watch in watches if watch)


class Counters:
    """Stands in for Prometheus: counters of so many workers that grow evenly."""

    def __init__(self, workers: int, rng: np.random.Generator) -> None:
        self._workers, self._rng = workers, rng

    def raw(self, selector: str, start: float, end: float) -> Answer:
        """A line for each worker, scraped every 15 seconds."""
        times = np.arange(np.ceil(start / SCRAPE_SECONDS), end / SCRAPE_SECONDS) * SCRAPE_SECONDS
        slope = 0.7 if selector.startswith(metrics.LAYERS_RUN.name) else 1.0
        return Ok(
            series=tuple(
                Series({"pod": f"w{number}"}, times, slope * (times - START))
                for number in range(self._workers)
            )
        )


def play(plan: Plan, root: str) -> Iterator[dict[str, Any]]:
    """One row for each simulated day."""
    world = World(plan, root, np.random.default_rng(plan.seed))
    began = time.monotonic()
    for day in range(plan.days):
        for step in range(int(DAY / plan.step)):
            start = START + DAY * day + plan.step * step
            for model in world.watched:
                world.write(model, start)
                world.turn(model, start + plan.step)
        gc.collect()
        pa.default_memory_pool().release_unused()
        yield {
            "day": day + 1,
            "resident_bytes": _resident(),
            "held_bytes": world.held_bytes(),
            "names": world.names(),
            "files": sum(path.is_file() for path in Path(root).rglob("*.parquet")),
            "trials": world.audits(START + DAY * (day + 1)),
            "seconds": round(time.monotonic() - began, 1),
        }


@click.command("memory", short_help="What the watch loop holds over simulated days.")
@click.option("--models", type=Whole(1, 1000), default=20, show_default=True, help="Models.")
@click.option(
    "--workers", type=Whole(1, 1000), default=50, show_default=True, help="Of each model."
)
@click.option("--days", type=Whole(3, 400), default=30, show_default=True, help="Simulated.")
@click.option(
    "--rate", type=Real(0, 1e6, above=True), default=100.0, show_default=True,
    help="Requests a second of each model.",
)  # fmt: skip
@click.option(
    "--audit-rate", type=Real(0, 1, above=True), default=0.02, show_default=True,
    help="Share of them that is audited.",
)  # fmt: skip
@click.option(
    "--step", type=Whole(10, 1800), default=300, show_default=True,
    help="Simulated seconds between two passes; each worker delivers once in it.",
)  # fmt: skip
@click.option(
    "--limit", type=Real(0, 1e6), default=64.0, show_default=True,
    help="MiB that the process may grow by after the second day.",
)  # fmt: skip
@click.option("--seed", type=Whole(0, SEED), default=0, show_default=True, help="Of everything.")
@output_option
def command(
    models: int,
    workers: int,
    days: int,
    rate: float,
    audit_rate: float,
    step: int,
    limit: float,
    seed: int,
    output: str,
) -> None:
    """Play days of many models' traffic and measure what the watch loop holds.

    \b
    trimwheel bench memory --models 2 --workers 5 --days 4 --rate 5 --step 1800
    trimwheel bench memory
    """
    plan = Plan(models, workers, days, rate * audit_rate, float(step), seed)
    rows = []
    with tempfile.TemporaryDirectory(prefix="trimwheel-") as root, progress() as bar:
        for row in bar.track(play(plan, root), total=days, description="days"):
            rows.append(row)
    grew = rows[-1]["resident_bytes"] - rows[SETTLED_AFTER - 1]["resident_bytes"]
    result = {
        "ok": grew <= limit * 2**20, "grew_bytes": grew, "days": rows, "host": host(),
    }  # fmt: skip
    emit(result, output, table=lambda: _table(result))
    if not result["ok"]:
        click.get_current_context().exit(NEGATIVE)


def _model(name: str) -> AdaptiveModel:
    return AdaptiveModel.model_validate(
        {
            "metadata": {"name": name, "namespace": "bench", "uid": name},
            "spec": {"model": {"uri": "file:///m", "digest": "sha256:" + "0" * 64}},
            "status": {"stable": {"digest": DIGEST, "policy": "p", "since": timestamp_of(START)}},
        }
    )


def _records(times: Any, rng: np.random.Generator) -> pa.Table:
    """Audits at these times, each of a session of its own."""
    count = len(times)
    wrong = rng.random(count) < WRONG
    scores = rng.random((count, 3)).astype(np.float32)
    values: dict[str, Any] = {
        "time": times,
        "id": [f"{number:016x}" for number in rng.integers(0, 2**62, count)],
        "session": [f"{number:016x}" for number in rng.integers(0, 2**62, count)],
        "scores": list(scores),
        "predictions": list(np.zeros((count, 4), np.int32)),
        "stable_digest": [DIGEST] * count,
        "stable_prediction": wrong.astype(np.int32),
    }
    plain: dict[Any, Any] = {
        pa.string(): "x", pa.float64(): 0.5, pa.float32(): 0.1, pa.int32(): 1, pa.int64(): 1,
        pa.bool_(): True,
    }  # fmt: skip
    for column in SCHEMA:
        values.setdefault(column.name, [plain.get(column.type)] * count)
    return pa.table({name: values[name] for name in SCHEMA.names}, schema=SCHEMA)


def _resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as stream:
        return int(stream.read().split()[1]) * 4096


def _table(result: dict[str, Any]) -> str:
    rows = [
        (
            one["day"],
            f"{one['resident_bytes'] / 2**20:.0f}",
            f"{one['held_bytes'] / 2**20:.1f}",
            one["names"],
            one["trials"],
            f"{one['seconds']:.0f}",
        )
        for one in result["days"]
    ]
    head = ("day", "resident MiB", "held MiB", "names", "trials", "seconds")
    grew = result["grew_bytes"] / 2**20
    return f"{text_table(head, rows)}\ngrew by {grew:.1f} MiB after day {SETTLED_AFTER}"
