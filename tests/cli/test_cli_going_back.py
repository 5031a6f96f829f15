"""Where `trimwheel rollback` goes when it is not told, and when it says that it is done."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner

from trimwheel_api.errors import SpecInvalid, Unavailable
from trimwheel_api.kinds import AdaptiveModel, PolicyRollout
from trimwheel_api.kinds.adaptive_model import AdaptiveModelStatus
from trimwheel_api.policy import DENSE
from trimwheel_cli import going_back
from trimwheel_cli.going_back import aim, ending_of, follow
from trimwheel_cli.main import cli
from trimwheel_console import NEGATIVE, OK, UNREACHABLE

GOOD, OLD, BAD = (f"sha256:{letter * 64}" for letter in "abc")


def remembered(
    *digests: str,
    stable: str = GOOD,
    intended: str | None = None,
    revoked: tuple[str, ...] = (),
    rejected: tuple[str, ...] = (),
) -> AdaptiveModelStatus:
    history = [
        {
            "digest": one,
            "policy": "p",
            "revokedAt": "2026-01-01T00:00:00Z" if one in revoked else "",
        }
        for one in digests
    ]
    return AdaptiveModelStatus.model_validate(
        {
            "stable": {"digest": stable, "policy": "s"},
            "intended": {"digest": intended or stable, "policy": "s"},
            "history": history,
            "rejectedDigests": list(rejected),
        }
    )


@pytest.mark.parametrize(
    ("status", "to", "digest"),
    [
        (remembered(OLD), None, OLD),
        (remembered(OLD, GOOD), None, OLD),
        (remembered(), None, DENSE.digest),
        (remembered(OLD), "dense", DENSE.digest),
        (remembered(OLD, BAD), OLD, OLD),
        (remembered(OLD, BAD), "bbbbbbbb", OLD),
        (remembered(OLD), DENSE.digest, DENSE.digest),
        (remembered(OLD), GOOD, GOOD),
    ],
)
def test_a_rollback_aims_at_a_former_policy(status, to, digest):
    assert aim(status, to)[0] == digest


@pytest.mark.parametrize(
    ("status", "digest"),
    [
        (remembered(OLD, BAD, revoked=(BAD,)), OLD),
        (remembered(OLD, BAD, rejected=(BAD,)), OLD),
        (remembered(OLD, revoked=(OLD,)), DENSE.digest),
        (remembered(OLD, stable=DENSE.digest, intended=GOOD), OLD),
    ],
)
def test_what_harm_or_a_person_ended_is_nothing_to_go_back_to(status, digest):
    assert aim(status, None)[0] == digest


def test_while_degraded_dense_is_an_aim_although_it_serves():
    """Otherwise the revoked policy would return with the next certificate."""
    assert aim(remembered(stable=DENSE.digest, intended=GOOD), None) == (DENSE.digest, "")


def test_with_a_candidate_under_way_the_aim_is_what_everyone_is_served():
    assert aim(remembered(OLD), None, canary=True) == (GOOD, "s")
    degraded = remembered(OLD, stable=DENSE.digest, intended=GOOD)
    assert aim(degraded, None, canary=True)[0] == DENSE.digest
    assert aim(AdaptiveModelStatus(), None, canary=True) == (DENSE.digest, "")


@pytest.mark.parametrize("to", ["bbbbbbb", "sha256:", "f" * 64, "newest"])
def test_a_rollback_to_what_never_was_stable_is_refused(to):
    with pytest.raises(SpecInvalid, match="--to"):
        aim(remembered(OLD), to)


def test_there_is_nothing_to_go_back_from_when_dense_is_meant_and_served():
    with pytest.raises(SpecInvalid, match="something to go back from"):
        aim(remembered(stable=DENSE.digest), None)


def rollback(**status: Any) -> PolicyRollout:
    return PolicyRollout.model_validate(
        {
            "kind": "PolicyRollout",
            "metadata": {"name": "m-rollback-1", "namespace": "shop"},
            "spec": {"model": "m", "policyDigest": DENSE.digest, "type": "Rollback",
                     "requestedBy": "rolf"},
            "status": status,
        }
    )  # fmt: skip


def condition(kind: str, reason: str, message: str) -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": "2026-01-02T11:00:00Z"}  # fmt: skip


ACTING = rollback(phase="RollingBack", actuation={"workers": 2, "pending": ["w-1"]})
DONE = rollback(
    phase="RolledBack",
    finishedAt="2026-01-02T11:00:00Z",
    actuation={"workers": 2, "milliseconds": 20},
    conditions=[condition("RolledBack", "Acknowledged", "all 2 workers acknowledged in 20 ms")],
)
SILENT = rollback(
    phase="RolledBack",
    finishedAt="2026-01-02T11:00:00Z",
    actuation={"workers": 2, "pending": ["w-1"]},
    conditions=[condition("RolledBack", "Acknowledged", "the lease of w-1 ran out")],
)
REFUSED = rollback(
    phase="Stalled",
    finishedAt="2026-01-02T11:00:00Z",
    conditions=[condition("Stalled", "Uncertified", "expired at noon")],
)
RETRIED = rollback(
    phase="Stalled", conditions=[condition("Stalled", "PolicyNotFound", "no policy has it")]
)


def test_only_the_operators_last_word_is_an_ending():
    assert ending_of(rollback()) is None
    assert ending_of(ACTING) is None
    assert ending_of(RETRIED) is None, "the operator asks again"
    assert [ending_of(one).outcome for one in (DONE, SILENT, REFUSED)] == [
        "Acknowledged", "LeaseRanOut", "Refused",
    ]  # fmt: skip
    assert ending_of(REFUSED).message == "Uncertified: expired at noon"


@dataclass
class Scripted:
    """An API server that answers with these rollouts or errors, the last one for ever."""

    answers: list[PolicyRollout | Exception]
    created: list[dict[str, Any]] = field(default_factory=list)

    def get(self, kind: type, name: str) -> Any:
        if kind is AdaptiveModel:
            status = {"stable": {"digest": GOOD}, "intended": {"digest": GOOD}}
            spec = {"model": {"uri": "models:/m/1", "digest": GOOD}}
            return AdaptiveModel.model_validate(
                {"kind": "AdaptiveModel", "metadata": {"name": name}, "spec": spec,
                 "status": status}
            )  # fmt: skip
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def every(self, kind: type) -> list[Any]:
        return []

    def create(self, kind: type, metadata: dict[str, str], spec: dict[str, Any]) -> str:
        self.created.append(spec)
        return "m-rollback-1"

    def whoami(self) -> str:
        return "rolf"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(going_back, "POLL_SECONDS", 0.001)


def test_a_server_that_is_away_for_a_moment_is_waited_for():
    away = Unavailable("away")
    assert follow(Scripted([ACTING, away, away, DONE]), "r", timeout=30).outcome == "Acknowledged"


def test_an_operator_that_does_nothing_is_not_reachable():
    with pytest.raises(Unavailable, match="trimwheel doctor"):
        follow(Scripted([rollback()]), "r", timeout=0.01)
    with pytest.raises(Unavailable, match="away"):
        follow(Scripted([Unavailable("away")]), "r", timeout=0.01)


@pytest.mark.parametrize(
    ("answers", "options", "code", "said"),
    [
        ([ACTING, DONE], [], OK, "Acknowledged: all 2 workers"),
        ([ACTING, SILENT], [], NEGATIVE, "LeaseRanOut: the lease of w-1"),
        ([REFUSED], [], NEGATIVE, "Refused: Uncertified: expired at noon"),
        ([ACTING], ["--timeout", "1"], UNREACHABLE, ""),
        ([ACTING], ["--no-wait"], OK, "goes back to dense"),
    ],
)
def test_the_verb_exits_with_how_it_ended(monkeypatch, answers, options, code, said):
    server = Scripted(list(answers))
    monkeypatch.setattr("trimwheel_cli.rollouts.connect", lambda **where: server)
    command = ["rollback", "m", "--to", "dense", "--reason", "tickets", *options]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == code, done.output
    assert said in done.stdout
    assert server.created[0]["reason"] == "tickets"


def test_the_ending_is_in_the_json(monkeypatch):
    monkeypatch.setattr("trimwheel_cli.rollouts.connect", lambda **where: Scripted([DONE]))
    done = CliRunner().invoke(cli, ["rollback", "m", "--reason", "tickets", "-o", "json"])
    told = json.loads(done.stdout)
    assert (told["outcome"], told["actuation"]["milliseconds"]) == ("Acknowledged", 20)
    assert (told["policyDigest"], told["ends"]) == (DENSE.digest, None)


def test_a_rollback_that_is_refused_for_now_is_waited_for_and_then_told_as_it_stands():
    """The policy may come back while somebody waits; when it does not, the reason is told."""
    assert follow(Scripted([RETRIED, ACTING, DONE]), "m-rollback-1", 5.0).outcome == "Acknowledged"
    ending = follow(Scripted([RETRIED]), "m-rollback-1", 0.0)
    assert (ending.outcome, ending.message) == (
        "Refused", "PolicyNotFound: no policy has it; the operator asks again at every look",
    )  # fmt: skip
