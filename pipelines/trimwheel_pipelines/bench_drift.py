"""`trimwheel bench drift`: false Harmful verdicts of traffic that keeps its promise, and delays.

Plays streams of audits through the very detector that the watch loop runs
(`trimwheel_telemetry.change_detection`), and for contrast through the one that believes every audit
(`evidence.ShiryaevRoberts`). Losses come alone or in runs, as when one text that is
answered wrongly arrives several times from different sessions. Leaves out covariate signals, whose
shapes unit tests cover, and the time that records take to arrive.
"""

from __future__ import annotations

from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt

from trimwheel_console import NEGATIVE, emit, output_option, progress, text_table
from trimwheel_console.ranges import SEED, Real, Whole
from trimwheel_pipelines.bench_host import host
from trimwheel_telemetry.change_detection import ChangeDetector
from trimwheel_telemetry.evidence import shiryaev_roberts_run_lengths

RUNS: Final = (1, 2, 3, 5, 10, 20)
"""Mean lengths of runs of wrong audits that are played."""
FALSE_SHARE: Final = 0.01
"""Most streams within their promise that may be called Harmful, for runs up to `JUDGED_RUN`."""
JUDGED_RUN: Final = 3
DELAY_LIMIT: Final = 1_100
"""Largest median delay, in audits, to a rise by `RISE` that may be reported as good."""
RISE: Final = 3.0
SINGLE_BURST: Final = 9
"""Wrong audits in a row after a thousand good ones, which are one event."""
Losses = npt.NDArray[np.float64]


@click.command("drift", short_help="False Harmful verdicts in clusters, and delay to a real rise.")
@click.option(
    "--streams",
    type=Whole(1, 100_000),
    default=160,
    show_default=True,
    help="Streams of each kind.",
)
@click.option(
    "--audits",
    type=Whole(100, 10_000_000),
    default=20_000,
    show_default=True,
    help="Audits of a quiet stream.",
)
@click.option(
    "--epsilon",
    type=Real(0, 0.2, above=True, below=True),
    default=0.02,
    show_default=True,
    help="Promised disagreement.",
)
@click.option(
    "--risk",
    type=Real(0, 0.5, above=True),
    default=0.014,
    show_default=True,
    help="True disagreement of quiet streams.",
)
@click.option(
    "--before",
    type=Real(0, 0.3, above=True),
    default=0.015,
    show_default=True,
    help="Disagreement before the rise.",
)
@click.option(
    "--false-alarm-audits",
    type=Real(1, 1e15),
    default=5_000_000.0,
    show_default=True,
    help="As spec.drift has it.",
)
@click.option("--seed", type=Whole(0, SEED), default=0, show_default=True, help="Of everything.")
@output_option
def command(
    streams: int,
    audits: int,
    epsilon: float,
    risk: float,
    before: float,
    false_alarm_audits: float,
    seed: int,
    output: str,
) -> None:
    """Measure how often clustered errors are taken for drift, and how soon a real rise is found.

    Exits with 1 when runs of three are called Harmful in more than 1 % of streams,
    or the median delay to a threefold rise is above 1,100 audits.

    \b
    trimwheel bench drift
    trimwheel bench drift --streams 40 -o json
    """
    rng = np.random.default_rng(seed)
    counts = {
        length: quiet(streams, audits, epsilon, risk, length, false_alarm_audits, rng)
        for length in RUNS
    }
    false = {length: found for length, (found, _) in counts.items()}
    delays = {
        kind: rises(streams, epsilon, before, false_alarm_audits, rng, graded=kind == "graded")
        for kind in ("binary", "graded")
    }
    burst = np.zeros(2_000)
    burst[1_000 : 1_000 + SINGLE_BURST] = 1.0
    allowed = int(streams * FALSE_SHARE)
    median = delays["binary"]["median_audits"]
    result = {
        "bench": "drift",
        "seed": seed,
        "streams": streams,
        "audits": audits,
        "epsilon": epsilon,
        "risk": risk,
        "false_alarm_audits": false_alarm_audits,
        "allowed": allowed,
        **{f"false_harmful_runs_of_{length}": count for length, count in false.items()},
        **{
            f"false_harmful_share_runs_of_{length}": count / streams
            for length, count in false.items()
        },
        "if_audits_were_independent": {length: naive for length, (_, naive) in counts.items()},
        "nine_in_a_row_harmful": ChangeDetector(epsilon, false_alarm_audits).update(burst)
        is not None,
        "rise": RISE,
        "median_delay_audits_3x": median,
        "delays": delays,
        "ok": max(false[length] for length in RUNS if length <= JUDGED_RUN) <= allowed
        and median <= DELAY_LIMIT,
        "host": host(),
    }
    emit(result, output, table=lambda: _table(result))
    if not result["ok"]:
        click.get_current_context().exit(NEGATIVE)


def quiet(
    streams: int,
    audits: int,
    epsilon: float,
    risk: float,
    length: int,
    alarm: float,
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Streams called Harmful although their disagreement is `risk` throughout: by blocks, and if
    every audit were believed."""
    by_block = by_audit = 0
    with progress() as bar:
        for _ in bar.track(range(streams), description=f"quiet, runs of {length}"):
            losses = in_runs(audits, risk, length, rng)
            by_block += ChangeDetector(epsilon, alarm).update(losses) is not None
            first = shiryaev_roberts_run_lengths(losses[None] > 0, epsilon, alarm)[0]
            by_audit += int(first) < audits
    return by_block, by_audit


def rises(
    streams: int,
    epsilon: float,
    before: float,
    alarm: float,
    rng: np.random.Generator,
    *,
    graded: bool,
    limit: int = 20_000,
) -> dict[str, Any]:
    """Audits from a threefold rise of independent losses to Harmful.

    Graded losses have the same mean: a third of the requests lose a share of their answer.
    """
    delays, early, good = [], 0, 2_000
    with progress() as bar:
        for _ in bar.track(range(streams), description="rise"):
            means = np.repeat([before, RISE * before], [good, limit])
            losses = (rng.random(len(means)) < means).astype(np.float64)
            if graded:
                share = rng.uniform(0.05, 1.0, len(means))
                losses = (rng.random(len(means)) < means / 0.525) * share
            index = ChangeDetector(epsilon, alarm).update(losses)
            early += index is not None and index < good
            delays.append(limit if index is None else max(index + 1 - good, 0))
    middle, late = (float(value) for value in np.quantile(delays, [0.5, 0.9]))
    return {
        "median_audits": middle,
        "p90_audits": late,
        "unfound": sum(delay >= limit for delay in delays),
        "before_the_rise": early,
    }


def in_runs(audits: int, risk: float, length: int, rng: np.random.Generator) -> Losses:
    """Losses of 0 and 1 with mean `risk` whose ones come in runs of geometric mean `length`."""
    if length == 1:
        return (rng.random(audits) < risk).astype(np.float64)
    losses = np.zeros(audits)
    place = 0
    while place < audits:
        place += int(rng.geometric(risk / (length * (1.0 - risk))))
        run = int(rng.geometric(1.0 / length))
        losses[place : place + run] = 1.0
        place += run
    return losses


def _table(result: dict[str, Any]) -> str:
    rows = [
        [
            f"false Harmful, runs of {length}",
            f"{result[f'false_harmful_runs_of_{length}']} of {result['streams']} "
            f"(every audit believed: {result['if_audits_were_independent'][length]})",
        ]
        for length in RUNS
    ]
    rows += [
        [f"delay to a threefold rise, {kind}, median (p90)",
         f"{found['median_audits']:.0f} ({found['p90_audits']:.0f}) audits"]
        for kind, found in result["delays"].items()
    ]  # fmt: skip
    rows.append(["nine in a row after 1,000 good", str(result["nine_in_a_row_harmful"])])
    return (
        f"Quiet streams of {result['audits']:,} audits at {result['risk']:.1%} against "
        f"{result['epsilon']:.1%}, at most {result['allowed']} false\n"
        f"{text_table(['figure', 'value'], rows)}"
    )
