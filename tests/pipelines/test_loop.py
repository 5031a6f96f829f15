"""The watch loop on real records and a real ledger; the API server is a memory, others are away."""

from __future__ import annotations

import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimwheel_api import metrics
from trimwheel_api.kinds import AdaptivePolicy, PolicyRollout, TuningRun
from trimwheel_api.kinds.adaptive_model import AdaptiveModelStatus
from trimwheel_api.kinds.adaptive_policy import AdaptivePolicySpec
from trimwheel_api.kinds.policy_rollout import PolicyRolloutSpec
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_pipelines.exposition import Heartbeat, PipelinesMetrics, serve
from trimwheel_pipelines.ledger import Ledger, payload_of
from trimwheel_pipelines.loop import Loop
from trimwheel_pipelines.promotion import Aliases
from trimwheel_pipelines.signals import Telemetry, increment_ratios
from trimwheel_telemetry.answers import Empty, Ok, Partial, Series, Stale
from trimwheel_telemetry.client import Prometheus

DIGEST = "sha256:" + "1" * 64
DRIFT = {"drift": {"falseAlarmAudits": "1000", "block": "5s", "reference": "45s"}}


@pytest.fixture
def loop(stage: Any, tmp_path: Path) -> Loop:
    return Loop(
        objects=stage.objects,
        records_uri=stage.traffic.root,
        prometheus=None,
        ledger=Ledger(f"sqlite:///{tmp_path}/ledger.db"),
        aliases=None,
        exposed=PipelinesMetrics(),
        heartbeat=Heartbeat(60.0),
        operator_user="the-operator",
        clock=lambda: stage.now,
    )


def value(loop: Loop, row: metrics.Metric, **labels: str) -> float | None:
    """A metric as Prometheus would scrape it."""
    found: float | None = loop.exposed.registry.get_sample_value(row.name, labels)
    return found


def serve_policy(stage: Any, digest: str, **spec: Any) -> Any:
    """A model whose stable policy is not dense, since now."""
    made = stage.declare(digest, **DRIFT, **spec)
    stable = {
        "digest": DIGEST, "policy": "p", "since": stage.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }  # fmt: skip
    state = {"stable": stable, "intended": stable}
    return stage.objects.write_status(made, AdaptiveModelStatus.model_validate(state))


def audited(stage: Any, count: int, wrong: float) -> None:
    """`count` audits of the stable policy from now on, of which a share disagrees."""
    start = stage.now.timestamp() + 1
    flips = np.arange(count) % round(1 / wrong) == 0 if wrong else np.zeros(count, bool)
    full = np.zeros((count, 4), np.int32)
    stage.traffic.write(
        count,
        start,
        stable_digest=[DIGEST] * count,
        predictions=list(full),
        stable_prediction=flips.astype(np.int32),
        session=[f"{start}-{number}" for number in range(count)],
    )
    stage.now += timedelta(seconds=2 + count * 0.02)


def test_audited_harm_starts_one_run_that_carries_the_verdict(
    stage: Any, loop: Loop, model: Any
) -> None:
    serve_policy(stage, model.digest)
    audited(stage, 300, wrong=0.05)
    loop.once()
    assert not stage.objects.list(TuningRun), "5 % is within the promise of 10 %"
    audited(stage, 300, wrong=0.5)
    loop.once()
    [run] = stage.objects.list(TuningRun)
    assert run.spec.reason == "Harmful" and run.metadata.owner_references[0].name == "intent"
    drift = run.status.drift
    assert drift.verdict == "Harmful" and drift.signal == "disagreement"
    assert float(drift.value) > 0.1 == float(drift.bound) and float(drift.confidence) > 0.3
    loop.once()
    restarted = Loop(**{
        name: getattr(loop, name)
        for name in (
            "objects", "records_uri", "prometheus", "ledger", "aliases", "heartbeat",
            "operator_user", "clock",
        )
    }, exposed=PipelinesMetrics())  # fmt: skip
    restarted.once()
    assert len(stage.objects.list(TuningRun)) == 1, "neither a pass nor a restart repeats it"
    assert value(loop, metrics.DRIFT_EVIDENCE, model_namespace="shop", model="intent") >= 1.0
    share = value(loop, metrics.DISAGREEMENT_ESTIMATE, model_namespace="shop", model="intent")
    assert share == pytest.approx(0.275, abs=0.01)


def test_audits_of_another_policy_are_not_held_against_this_one(
    stage: Any, loop: Loop, model: Any
) -> None:
    made = serve_policy(stage, model.digest)
    audited(stage, 300, wrong=0.5)
    other = made.status.model_copy(deep=True)
    other.stable.digest = "sha256:" + "2" * 64
    stage.objects.write_status(made, other)
    loop.once()
    assert not stage.objects.list(TuningRun)


def test_a_signal_that_moves_starts_a_covariate_run(stage: Any, loop: Loop, model: Any) -> None:
    serve_policy(stage, model.digest)
    start = stage.now.timestamp()
    rng = np.random.default_rng(1)
    for part, (count, centre) in enumerate([(3000, 0.6), (1000, 0.4)]):
        scores = np.clip(rng.normal(centre, 0.1, (count, 3)), 0, 1).astype(np.float32)
        stage.traffic.write(
            count, start + 60 * part, stable_digest=[DIGEST] * count,
            stable_prediction=np.zeros(count, np.int32), scores=list(scores),
            predictions=list(np.zeros((count, 4), np.int32)),
        )  # fmt: skip
    # Every thirtieth answer is wrong: too few for harm, too many to call it harmless at once.
    stage.now += timedelta(seconds=72)
    loop.once()
    runs = stage.objects.list(TuningRun)
    assert value(
        loop, metrics.DRIFT_SIGNAL, model_namespace="shop", model="intent",
        signal="first-exit score",
    ) < -6.0  # fmt: skip
    # With no disagreement at all the audits have answered already: moved, but harmless.
    assert not runs


def test_an_alarm_that_spent_its_audits_says_so_once(stage: Any, loop: Loop, model: Any) -> None:
    serve_policy(stage, model.digest, audits={"alarmAudits": 700})
    start, rng = stage.now.timestamp(), np.random.default_rng(1)

    def audit(seconds: float, centre: float, wrong: int) -> None:
        """50 audits a second; each session is audited twice, and one in `wrong` is wrong."""
        count = int(50 * seconds)
        scores = np.clip(rng.normal(centre, 0.1, (count, 3)), 0, 1).astype(np.float32)
        stage.traffic.write(
            count, stage.now.timestamp(), stable_digest=[DIGEST] * count,
            stable_prediction=(np.arange(count) // 2 % wrong == 0).astype(np.int32),
            scores=list(scores),
            predictions=list(np.zeros((count, 4), np.int32)),
        )  # fmt: skip
        stage.now += timedelta(seconds=seconds)

    audit(60, 0.6, wrong=50)
    audit(12, 0.4, wrong=9)  # too many to call it harmless, too few for harm
    loop.once()
    [run] = stage.objects.list(TuningRun)
    assert run.spec.reason == "CovariateDrift"
    first = run.status.drift
    assert first.verdict == "NotEnoughEvidence" and first.alarm_audits < 700
    while stage.objects.list(TuningRun)[0].status.drift.alarm_audits < 700:
        audit(1, 0.4, wrong=9)
        loop.once()
        assert stage.now.timestamp() < start + 120
    [run] = stage.objects.list(TuningRun)
    assert run.status.drift.verdict == "NotEnoughEvidence"
    assert 700 <= run.status.drift.alarm_audits < 750, "later audits of a session count as well"
    assert run.status.drift.audits == pytest.approx(run.status.drift.alarm_audits / 2, abs=1)
    written = len(stage.objects.history)
    audit(1, 0.4, wrong=9)
    loop.once()
    assert len(stage.objects.history) == written


def test_enough_audits_start_the_first_run(stage: Any, loop: Loop, model: Any) -> None:
    stage.declare(model.digest)
    stage.traffic.write(299, stage.now.timestamp())
    loop.once()
    assert not stage.objects.list(TuningRun)
    stage.traffic.write(1, stage.now.timestamp())
    loop.once()
    loop.once()
    [run] = stage.objects.list(TuningRun)
    assert run.spec.reason == "Bootstrap" and run.status.drift is None


def test_decisions_reach_the_ledger_before_a_finished_rollout_goes(
    stage: Any, loop: Loop, model: Any
) -> None:
    stage.declare(model.digest, rollout={"historyLimit": 1}, tuning={"bootstrap": False})
    for name in ("r1", "r2"):
        spec = PolicyRolloutSpec(
            model="intent", policy="p", policy_digest=DIGEST, requested_by="ann"
        )
        rollout = stage.objects.put(PolicyRollout, name, spec)
        decided = {"seq": 0, "time": "2026-11-22T10:00:00Z", "action": "Abort", "reason": "Aborted"}
        status = {"decisions": [decided], "finishedAt": "2026-11-22T10:00:01Z"}
        stage.objects.write_status(rollout, type(rollout.status).model_validate(status))
    ledger, loop.ledger = loop.ledger, None
    loop.once()
    assert len(stage.objects.list(PolicyRollout)) == 2, "without a ledger nothing is removed"
    assert value(loop, metrics.LOOP_ERRORS, reason="ledger") == 1.0
    loop.ledger = ledger
    loop.once()
    loop.once()
    assert [one.name for one in stage.objects.list(PolicyRollout)] == ["r2"]
    assert ledger is not None
    copied = [payload_of(entry)["rollout"] for entry in ledger.entries()]
    assert copied == ["r1", "r2"] and ledger.verify() is None
    assert value(loop, metrics.LEDGER_EVENTS) == 2.0


def test_services_that_are_away_cost_their_own_part_only(
    stage: Any, loop: Loop, model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    serve_policy(stage, model.digest)
    loop.prometheus = Prometheus("http://127.0.0.1:9", timeout=0.2, retries=0)
    audited(stage, 300, wrong=0.5)
    loop.once()
    loop.once()
    assert stage.objects.list(TuningRun)[0].spec.reason == "Harmful"
    assert value(loop, metrics.LOOP_ERRORS, reason="Prometheus") == 2.0
    told = [line for line in caplog.messages if "Prometheus" in line]
    assert len(told) == 1, "an outage is told once"
    loop.prometheus = None
    [watched] = loop._watched.values()
    watched.reader.files.root = "ftp://127.0.0.1:9"
    loop.once()
    watched.reader.files.root = stage.traffic.root
    assert value(loop, metrics.LOOP_ERRORS, reason="record store") == 1.0
    loop.once()
    assert value(loop, metrics.LOOP_ERRORS, reason="record store") == 1.0


class MemoryRegistry:
    """Stands in for MLflow's alias calls."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.moves = 0

    def alias(self, namespace: str, model: str, alias: str) -> str:
        return self.aliases.get(alias, "")

    def version_of(self, namespace: str, model: str, digest: str) -> str:
        return "7" if digest == DENSE.digest else "8"

    def move_alias(self, namespace: str, model: str, alias: str, version: str) -> None:
        self.aliases[alias] = version
        self.moves += 1

    def remove_alias(self, namespace: str, model: str, alias: str) -> None:
        del self.aliases[alias]


def test_a_promotion_moves_the_alias_after_the_ledger_knows(
    stage: Any, loop: Loop, model: Any
) -> None:
    serve_policy(stage, model.digest)
    stage.objects.put(AdaptivePolicy, "p", AdaptivePolicySpec(model="intent"))
    assert loop.ledger is not None
    registry = MemoryRegistry()
    loop.aliases = Aliases(registry, loop.ledger)  # type: ignore[arg-type]
    loop.once()
    loop.once()
    moved = loop.ledger.last("shop/intent", "AliasMoved")
    assert moved is not None and registry.moves == 1
    payload = payload_of(moved)
    assert (payload["before"], payload["after"]) == ("", "7")
    # Killed between the row and the move: the move is made up for, the row is not repeated.
    registry.aliases.clear()
    Aliases(registry, loop.ledger).follow(loop._views()[0])  # type: ignore[arg-type]
    assert registry.aliases == {"stable": "7"}
    assert sum(entry.kind == "AliasMoved" for entry in loop.ledger.entries()) == 1


def test_the_candidate_alias_follows_the_rollout_under_way_and_is_on_record(
    stage: Any, loop: Loop, model: Any
) -> None:
    made = serve_policy(stage, model.digest)
    document = {"moe": {"topK": 1}}
    stage.objects.put(AdaptivePolicy, "p", AdaptivePolicySpec(model="intent"))
    stage.objects.put(AdaptivePolicy, "q", AdaptivePolicySpec(model="intent", policy=document))
    assert loop.ledger is not None
    registry = MemoryRegistry()
    loop.aliases = Aliases(registry, loop.ledger)  # type: ignore[arg-type]
    loop.once()
    assert registry.aliases == {"stable": "7"}, "a policy that nobody rolls out is no candidate"
    candidate = {"digest": parse_policy(document).digest, "policy": "q", "rollout": "r"}
    status = made.status.model_dump(by_alias=True) | {"candidate": candidate}
    stage.objects.write_status(made, AdaptiveModelStatus.model_validate(status))
    loop.once()
    assert registry.aliases == {"stable": "7", "candidate": "8"}
    moved = [payload_of(one) for one in loop.ledger.entries() if one.kind == "AliasMoved"]
    assert [(one["alias"], one["after"]) for one in moved] == [("stable", "7"), ("candidate", "8")]


@pytest.mark.parametrize(
    ("trouble", "asked_again"),
    [(Partial(("shard away",), "shard away"), True), (Stale(99.0, "old"), True),
     (Empty("no experts"), False)],
)  # fmt: skip
def test_telemetry_that_came_in_part_is_asked_for_again(trouble: Any, asked_again: bool) -> None:
    """Nothing is a whole answer, as for a model without experts: later samples come later."""
    asked: list[float] = []

    class Answers:
        def raw(self, selector: str, start: float, end: float) -> Any:
            asked.append(start)
            return trouble if "expert" in selector else Ok(series=())

    telemetry, prometheus = Telemetry("shop", "intent", 500.0, 60.0), Answers()
    for now in (1000.0, 1300.0):
        telemetry.refresh(prometheus, now)  # type: ignore[arg-type]
    assert set(asked) == ({500.0} if asked_again else {500.0, 940.0})


def test_telemetry_is_read_in_windows_and_each_increment_once() -> None:
    """A scrape every 15 s of three workers: overlapping looks count nothing twice."""
    spans: list[float] = []
    scrapes = np.arange(0.0, 40_000.0, 15.0)
    # Prometheus was away for an hour: the windows of that hour do not hold up those after it.
    scrapes = scrapes[(scrapes <= 31_200.0) | (scrapes >= 34_800.0)]

    class Answers:
        def raw(self, selector: str, start: float, end: float) -> Any:
            spans.append(end - start)
            slope = 2.0 if "layers_run" in selector else 1.0
            inside = scrapes[(scrapes > start) & (scrapes <= end)]
            if not len(inside):
                return Empty("no series matches")
            if end - inside[-1] > 60.0:
                return Stale(
                    end - inside[-1],
                    "old",
                    tuple(
                        Series({"pod": f"p{number}"}, inside, slope * inside) for number in range(3)
                    ),
                )
            return Ok(series=tuple(
                Series({"pod": f"p{number}"}, inside, slope * inside) for number in range(3)
            ))  # fmt: skip

    telemetry, now = Telemetry("shop", "intent", 30_000.0, 60.0), 36_000.0
    while now < 39_000.0:
        telemetry.refresh(Answers(), now)  # type: ignore[arg-type]
        now += 45.0
    assert max(spans) <= 1800.0
    depth = telemetry.sums["exit depth"]
    reached = int((telemetry.until - 30_000.0) // 60) - 1
    # The first increment of each worker needs a sample before it; that over the gap is one.
    assert reached > 80 and depth.sums[0, 1:20].tolist() == [12.0] * 19
    assert not depth.sums[0, 21:79].any() and (depth.sums[0, 81:reached] == 12.0).all()
    assert (depth.sums[1, :reached] == 2.0 * depth.sums[0, :reached]).all()
    assert len(telemetry.read) == 3 * len(telemetry.sums)


def test_records_beyond_retention_go_once_an_hour(stage: Any, loop: Loop, model: Any) -> None:
    stage.declare(model.digest, audits={"retention": "1h"}, tuning={"bootstrap": False})
    stage.traffic.write(10, stage.now.timestamp() - 7200)
    stage.traffic.write(10, stage.now.timestamp() - 60)
    loop.once()
    assert len(list(stage.traffic.folder.glob("*.parquet"))) == 1


def test_metrics_and_health_are_answered_while_the_loop_passes() -> None:
    now = [0.0]
    heartbeat = Heartbeat(10.0, clock=lambda: now[0])
    server = serve("127.0.0.1", 0, PipelinesMetrics(), heartbeat)
    root = f"http://127.0.0.1:{server.server_port}"
    try:
        with urllib.request.urlopen(f"{root}/metrics", timeout=5) as answer:
            assert b"trimwheel_ledger_events_total 0.0" in answer.read()
        with urllib.request.urlopen(f"{root}/healthz", timeout=5) as answer:
            assert answer.status == 200
        now[0] = 11.0
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{root}/healthz", timeout=5)
    finally:
        server.shutdown()
        server.server_close()


def test_ratios_come_from_neighbouring_scrapes_of_one_pod() -> None:
    def line(pod: str, times: list[float], values: list[float], **labels: str) -> Series:
        return Series({"pod": pod, **labels}, np.array(times), np.array(values))

    over = [
        line("a", [0, 5, 10, 15], [0, 20, 30, 2], arm="x"),  # reset before 15
        line("a", [10, 15], [10, 14], arm="y"),  # appeared at 10, from 0
        line("b", [0, 5], [0, 10]),
    ]
    under = [line("a", [0, 5, 10, 15], [0, 10, 20, 30]), line("c", [0, 5], [0, 1])]
    [(pod, times, ratios)] = increment_ratios(over, under)
    assert pod == "a" and times.tolist() == [5.0, 10.0] and ratios.tolist() == [2.0, 2.0]
