"""The engine's loop on a socketpair with a real tiny model, in a thread: answers, swaps, audits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimwheel_api.decide import decide
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_workers.arms import ModelShape, ResidentPolicy, Snapshot, resident
from trimwheel_workers.engine.audits import LINGER_SECONDS, AuditQueue, AuditTask, Judged
from trimwheel_workers.engine.config import EngineConfig
from trimwheel_workers.engine.frames import Decoder, Kind, encode
from trimwheel_workers.engine.loop import EngineLoop
from trimwheel_workers.engine.runner import Answers, Runner
from trimwheel_workers.engine.status import Status
from trimwheel_workers.model.artifact import LoadedModel, load
from trimwheel_workers.offline import evaluate

TEXTS = [f"def f{n}(x): return x + {n}" + " and x" * (n % 5) for n in range(24)]
EXITING = {"exit": {"enabled": True, "thresholds": ["0.6", "0.55", "0.5"]}}


@pytest.fixture(scope="module")
def model(tiny_model: tuple[Path, str]) -> LoadedModel:
    return load(*tiny_model)


def snapshot(
    shape: ModelShape, candidate: dict[str, Any] | None = None, *, version: int = 1, weight: int =
    0, stable: dict[str, Any] | None = None, salt: str = "salt",
) -> Snapshot:  # fmt: skip
    policies = [
        resident(parse_policy(document or {}), shape) if document is not None else None
        for document in (stable or {}, candidate)
    ]
    assert policies[0] is not None
    return Snapshot(version, version, salt, weight, 1.0, policies[0], policies[1])


class Front:
    """The front's side of the socket, driven by the test."""

    def __init__(self, model: LoadedModel, runner: Runner | None = None, **config: Any) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(5.0)
        self.runner = runner or Runner(model)
        settings = {"max_batch": 8, "max_wait": 0.001, "slo": 0.25} | config
        engine = EngineConfig("", "", "float32", 1, **settings)
        self.thread = threading.Thread(target=EngineLoop(theirs, engine, self.runner).run)
        self.thread.start()
        self.decoder = Decoder()
        self.frames: list[tuple[Kind, Any]] = []

    def send(self, kind: Kind, body: Any) -> None:
        self.sock.sendall(encode(kind, body))

    def assign(self, value: Snapshot) -> None:
        self.send(Kind.SNAPSHOT, value.to_wire())
        assert self.take(Kind.APPLIED) == {"version": value.version}

    def ask(self, texts: list[str], cohorts: list[int] | None = None, **how: Any) -> None:
        deadline = time.monotonic() + how.get("allowance", 5.0)
        rows = [
            [id_, text, cohort, deadline, how.get("audited", False)]
            for id_, (text, cohort) in enumerate(
                zip(texts, cohorts or [10_000] * len(texts), strict=True)
            )
        ]
        self.send(Kind.REQUESTS, [how.get("salt", "salt"), rows])

    def take(self, wanted: Kind) -> Any:
        """The next frame of a kind; others are kept."""
        while True:
            for place, (kind, body) in enumerate(self.frames):
                if kind is wanted:
                    del self.frames[place]
                    return body
            self.frames += self.decoder.feed(self.sock.recv(1 << 16))

    def rows(self, kind: Kind, count: int) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {}
        while len(found) < count:
            found |= {row[0]: row for row in self.take(kind)["rows"]}
        return found

    def close(self) -> None:
        self.sock.close()
        self.thread.join(5)
        assert not self.thread.is_alive(), "the engine ends with its front"


@pytest.fixture
def front(model: LoadedModel) -> Iterator[Front]:
    made = Front(model)
    yield made
    made.close()


def test_every_answer_is_what_the_reference_decides(front: Front, model: LoadedModel) -> None:
    shape = front.runner.shape
    run = evaluate(model, TEXTS, model.config.dense_signature)
    # Half of the texts that reach an exit leave there.
    middle = [f"{value:.4f}" for value in np.median(run.scores, axis=0)]
    policy = {"exit": {"enabled": True, "thresholds": middle}}
    front.assign(snapshot(shape, policy, weight=5000))
    cohorts = [0 if n % 3 else 9_000 for n in range(len(TEXTS))]
    front.ask(TEXTS, cohorts)
    answered = front.rows(Kind.ANSWERS, len(TEXTS))
    candidate = resident(parse_policy(policy), shape)
    exits = []
    for n in range(len(TEXTS)):
        _, status, prediction, _, exit_index, layers, arm, tokens = answered[n]
        thresholds = candidate.thresholds if cohorts[n] == 0 else (1.01,) * 3
        wanted = decide(run.scores[n].tolist(), thresholds)
        assert (status, exit_index, prediction) == (0, wanted, run.predictions[n, wanted])
        assert layers == (*shape.exits, shape.layers)[wanted]
        assert arm == (1 if cohorts[n] == 0 else 0) and tokens > 1
        exits.append(exit_index)
    assert len(set(exits)) > 2, "the test means little unless exits are really taken"


def test_batch_knobs_split_a_batch_and_row_knobs_do_not(front: Front) -> None:
    shape = front.runner.shape
    front.assign(snapshot(shape, EXITING, weight=5000))
    front.ask(TEXTS[:8], [0, 9000] * 4)
    mixed = front.take(Kind.ANSWERS)
    assert {row[6] for row in mixed["rows"]} == {0, 1} and all(mixed["seconds"])
    front.assign(snapshot(shape, EXITING | {"moe": {"topK": 1}}, version=2, weight=5000))
    front.ask(TEXTS[:8], [0, 9000] * 4)
    first, second = front.take(Kind.ANSWERS), front.take(Kind.ANSWERS)
    assert [{row[6] for row in body["rows"]} for body in (first, second)] == [{1}, {0}]


def test_cohorts_of_another_rollout_are_served_by_stable(front: Front) -> None:
    front.assign(snapshot(front.runner.shape, EXITING, weight=10_000))
    front.ask(TEXTS[:2], [0, 0], salt="of the rollout before")
    assert {row[6] for row in front.rows(Kind.ANSWERS, 2).values()} == {0}


def test_rows_past_their_deadline_come_back_unserved(front: Front) -> None:
    front.assign(snapshot(front.runner.shape))
    front.ask(TEXTS[:2], allowance=-0.1)
    assert {row[1] for row in front.rows(Kind.ANSWERS, 2).values()} == {Status.EXPIRED}


def test_an_audit_judges_both_policies_against_full_depth(front: Front, model: LoadedModel) -> None:
    shape = front.runner.shape
    other = EXITING | {"moe": {"topK": 1, "routerBlend": "0.5"}}
    front.assign(snapshot(shape, other, weight=10_000, stable=EXITING))
    front.ask(TEXTS[:10], [0] * 10, audited=True)
    answered = front.rows(Kind.ANSWERS, 10)
    audited = front.rows(Kind.AUDITED, 10)
    run = evaluate(model, TEXTS[:10], model.config.dense_signature)
    thresholds = resident(parse_policy(EXITING), shape).thresholds
    for n, (_, scores, predictions, stable, candidate, replayed) in audited.items():
        assert scores == pytest.approx(run.scores[n].tolist(), abs=1e-5)
        assert predictions == run.predictions[n].tolist()
        exit_index = decide(scores, thresholds)
        assert stable == [predictions[exit_index], exit_index]
        assert candidate == replayed, "the candidate served"
        assert replayed == [answered[n][2], answered[n][4]], "replay gives what was served"


def test_audits_that_do_not_fit_the_queue_are_told(model: LoadedModel) -> None:
    front = Front(model, audit_queue=3, max_batch=8)
    front.assign(snapshot(front.runner.shape))
    front.ask(TEXTS[:8], audited=True)
    assert front.take(Kind.LOST) == {"ids": [3, 4, 5, 6, 7], "reason": "queue_full"}
    assert sorted(front.rows(Kind.AUDITED, 3)) == [0, 1, 2]
    front.close()


def test_stop_finishes_the_audits_in_hand(front: Front) -> None:
    front.assign(snapshot(front.runner.shape))
    front.ask(TEXTS[:3], audited=True)
    front.rows(Kind.ANSWERS, 3)
    front.send(Kind.STOP, None)
    assert len(front.rows(Kind.AUDITED, 3)) == 3
    front.thread.join(5)
    assert not front.thread.is_alive()


def test_a_request_waits_for_one_layer_of_an_audit_at_most(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = 0.05
    ran: list[float] = []

    def slow_run(_: list[AuditTask]) -> Generator[None, None, list[Judged]]:
        for _ in range(10):
            time.sleep(layer)
            ran.append(time.monotonic())
            yield
        return []

    front = Front(model)
    monkeypatch.setattr(front.runner, "audit_steps", slow_run)
    front.assign(snapshot(front.runner.shape))
    front.ask(TEXTS[:1], audited=True)
    front.rows(Kind.ANSWERS, 1)
    while not ran:
        time.sleep(0.005)
    started = time.monotonic()
    front.ask(TEXTS[:1])
    front.rows(Kind.ANSWERS, 1)
    assert time.monotonic() - started < 3 * layer, "the audit as a whole takes ten layers"
    assert len(ran) < 10
    front.close()


class Sabotaged(Runner):
    """Raises, or gives no numbers, for the policies of a digest."""

    digest = ""
    how = ""

    def answer(self, tokens: Any, policies: Any, compute: Any) -> Answers:
        hit = [policy.digest == self.digest for policy in policies]
        if self.how == "raises" and any(hit):
            raise RuntimeError("sabotage")
        answers = super().answer(tokens, policies, compute)
        if self.how == "is slow" and any(hit):
            time.sleep(0.3)
        elif self.how == "is not finite":
            for row, bad in enumerate(hit):
                answers.finite[row] = not bad
        return answers


@pytest.mark.parametrize("how", ["raises", "is not finite"])
def test_a_candidate_that_fails_is_taken_out_and_costs_stable_nothing(
    model: LoadedModel, how: str
) -> None:
    runner = Sabotaged(model)
    front = Front(model, runner)
    bad = snapshot(runner.shape, EXITING, weight=5000)
    assert bad.candidate is not None
    runner.digest, runner.how = bad.candidate.digest, how
    front.assign(bad)
    for turn in range(4):
        front.ask(TEXTS[:2], [0, 9_000])
        answered = front.rows(Kind.ANSWERS, 2)
        assert answered[1][1] == Status.ANSWERED, "stable's row of the same batch is answered"
        ok = answered[0][1] == Status.ANSWERED
        assert ok is (turn == 3), "the fourth batch is served by stable alone"
    assert front.take(Kind.TRIPPED) == {"version": 1, "digest": bad.candidate.digest}
    front.close()


class Poisoned(Runner):
    """Raises over a text, or gives no numbers for it, whoever serves it."""

    poison = "poison"
    how = "raises"

    def tokens(self, texts: Any) -> list[list[int]]:
        self.texts = list(texts)
        return super().tokens(texts)

    def answer(self, tokens: Any, policies: Any, compute: Any) -> Answers:
        hit = [text == self.poison for text in self.texts]
        if self.how == "raises" and any(hit):
            raise IndexError("index out of range in self")
        answers = super().answer(tokens, policies, compute)
        for row, bad in enumerate(hit):
            answers.finite[row] = answers.finite[row] and not bad
        return answers

    def audit_steps(self, tasks: Any) -> Any:
        if any(task.id == 3 for task in tasks):
            raise IndexError("index out of range in self")
        return (yield from super().audit_steps(tasks))


@pytest.mark.parametrize("cohort", [0, 9_000], ids=["on the candidate", "on stable"])
@pytest.mark.parametrize("how", ["raises", "is not finite"])
def test_a_row_that_spoils_its_batch_fails_alone_and_trips_nothing(
    model: LoadedModel, how: str, cohort: int
) -> None:
    """76 of 80 innocent requests failed with one bad text before."""
    runner = Poisoned(model)
    runner.how = how
    with closing(Front(model, runner)) as front:
        front.assign(snapshot(runner.shape, EXITING, weight=5000))
        for _ in range(6):
            front.ask(
                TEXTS[:5] + ["poison"] + TEXTS[6:8], [0, 9_000, 0, 9_000, 0, cohort, 0, 9_000]
            )
            statuses = [row[1] for _, row in sorted(front.rows(Kind.ANSWERS, 8).items())]
            bad = Status.FAILED if how == "raises" else Status.NOT_FINITE
            assert statuses == [0] * 5 + [bad] + [0] * 2
        assert not any(kind is Kind.TRIPPED for kind, _ in front.frames)


def test_a_bad_text_does_not_shield_a_candidate_that_fails(model: LoadedModel) -> None:
    """Rows that fail on stable by themselves are no sign that the machine is at fault."""
    runner = Sabotaged(model)
    bad = snapshot(runner.shape, EXITING, weight=5000)
    assert bad.candidate is not None
    runner.digest, runner.how = bad.candidate.digest, "raises"
    calls = runner.tokens

    def tokens(texts: Any) -> list[list[int]]:
        if "poison" in texts:
            raise ValueError("tokenizer: it panicked")
        return calls(texts)

    runner.tokens = tokens  # type: ignore[method-assign]
    with closing(Front(model, runner)) as front:
        front.assign(bad)
        for _ in range(3):
            front.ask(["poison", *TEXTS[:2]], [9_000, 9_000, 0])
            assert front.rows(Kind.ANSWERS, 3)[1][1] == Status.ANSWERED
        assert front.take(Kind.TRIPPED)["digest"] == bad.candidate.digest


def test_an_audit_that_raises_is_lost_alone(model: LoadedModel) -> None:
    with closing(Front(model, Poisoned(model))) as front:
        front.assign(snapshot(front.runner.shape))
        front.ask(TEXTS[:8], audited=True)
        assert sorted(front.rows(Kind.AUDITED, 7)) == [0, 1, 2, 4, 5, 6, 7]
        assert front.take(Kind.LOST) == {"ids": [3], "reason": "not_finite"}


def test_a_snapshot_on_the_wire_does_not_undo_a_trip(model: LoadedModel) -> None:
    runner = Sabotaged(model)
    bad = snapshot(runner.shape, EXITING, weight=5000)
    assert bad.candidate is not None
    runner.digest, runner.how = bad.candidate.digest, "raises"
    with closing(Front(model, runner)) as front:

        def statuses_on_candidate(count: int, salt: str = "salt") -> list[int]:
            found = []
            for _ in range(count):
                front.ask(TEXTS[:1], [0], salt=salt)
                found.append(front.rows(Kind.ANSWERS, 1)[0][1])
            return found

        front.assign(bad)
        assert statuses_on_candidate(3) == [Status.FAILED] * 3
        front.take(Kind.TRIPPED)
        front.assign(snapshot(runner.shape, EXITING, version=2, weight=9000))
        assert statuses_on_candidate(3) == [Status.ANSWERED] * 3
        front.assign(snapshot(runner.shape, EXITING, version=3, weight=9000, salt="another"))
        assert statuses_on_candidate(1, "another") == [Status.FAILED], "it may try again"


def test_a_candidate_that_is_slow_is_taken_out_where_stable_is_not(model: LoadedModel) -> None:
    runner = Sabotaged(model)
    front = Front(model, runner)
    # Other experts than stable's: such a candidate has batches, and slowness, of its own.
    slow = snapshot(runner.shape, EXITING | {"moe": {"topK": 1}}, weight=5000)
    assert slow.candidate is not None
    runner.digest, runner.how = slow.candidate.digest, "is slow"
    front.assign(slow)
    for _ in range(10):
        front.ask(TEXTS[:2])
        front.rows(Kind.ANSWERS, 2)
    arms = []
    # Three slow batches would do, if this machine gave each its control.
    while not any(kind is Kind.TRIPPED for kind, _ in front.frames) and len(arms) < 30:
        front.ask(TEXTS[:2])
        front.rows(Kind.ANSWERS, 2)
        front.ask(TEXTS[:2], [0, 0])
        arms += [{row[6] for row in front.rows(Kind.ANSWERS, 2).values()}]
    assert front.take(Kind.TRIPPED) == {"version": 1, "digest": slow.candidate.digest}
    assert arms.count({1}) >= 3 and arms.count({0}) <= 1, "nobody is on the candidate any more"
    front.close()


def test_a_slow_candidate_that_has_every_request_is_left_to_its_guard(model: LoadedModel) -> None:
    runner = Sabotaged(model)
    front = Front(model, runner, slo=0.05)
    everyone = snapshot(runner.shape, EXITING, weight=10_000)
    assert everyone.candidate is not None
    runner.digest, runner.how = everyone.candidate.digest, "is slow"
    front.assign(everyone)
    for _ in range(6):
        front.ask(TEXTS[:1], [0])
        assert front.rows(Kind.ANSWERS, 1)[0][6] == 1
    assert not any(kind is Kind.TRIPPED for kind, _ in front.frames)
    front.close()


def test_a_swap_between_batches_is_acknowledged_in_order(front: Front) -> None:
    shape = front.runner.shape
    front.assign(snapshot(shape))
    front.send(Kind.SNAPSHOT, snapshot(shape, EXITING, version=2, weight=10_000).to_wire())
    front.ask(TEXTS[:1], [0])
    front.send(Kind.SNAPSHOT, snapshot(shape, EXITING, version=3, weight=0).to_wire())
    assert front.take(Kind.APPLIED) == {"version": 2}
    assert front.take(Kind.APPLIED) == {"version": 3}
    assert front.rows(Kind.ANSWERS, 1)[0][6] == 0, "the batch came after the second swap"


def task(id_: int, answered: float, stable: ResidentPolicy) -> AuditTask:
    return AuditTask(id_, [1], stable, stable, None, answered)


def test_audits_wait_for_company_and_run_in_chunks_of_one_snapshot() -> None:
    shape = ModelShape("", "", 4, (1, 2, 3), 4, 2, 2, ("a", "b"))
    one, other = resident(DENSE, shape), resident(parse_policy(EXITING), shape)
    queue = AuditQueue(limit=20)
    for id_ in range(3):
        queue.offer(task(id_, 10.0, one))
    assert queue.take(10.0 + LINGER_SECONDS / 2) == []
    queue.offer(task(3, 10.0, other))
    assert [t.id for t in queue.take(10.0 + LINGER_SECONDS)] == [0, 1, 2]
    for id_ in range(4, 14):
        queue.offer(task(id_, 10.0, other))
    assert [t.id for t in queue.take(10.0)] == list(range(3, 11)), "a full chunk need not wait"
    assert [t.id for t in queue.take(10.0, at_once=True)] == [11, 12, 13]
