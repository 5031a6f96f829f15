"""Which assignment is in force: epochs, renewals, leases and holds against a fake clock."""

from __future__ import annotations

from typing import Any

import pytest

from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec
from trimwheel_api.policy import DENSE
from trimwheel_workers.assignment.rule import CAUSE_HOLD, CAUSE_LEASE, News, Rule

POLICY = {"digest": DENSE.digest, "document": "{}"}


def spec(
    epoch: int, renewals: int = 0, *, weight: int = 500, **fields: Any
) -> PolicyAssignmentSpec:
    value = {
        "epoch": epoch, "renewals": renewals, "stable": POLICY, "candidate": POLICY,
        "weightBasisPoints": weight, "leaseSeconds": 30, **fields,
    }  # fmt: skip
    return PolicyAssignmentSpec.model_validate(value)


def weight(rule: Rule, now: float) -> tuple[int, str]:
    effective = rule.effective(now)
    assert effective is not None
    return effective.weight, effective.cause


SECOND_READINGS = {
    "a higher epoch": ("u1", spec(6), News.NEW),
    "a renewal": ("u1", spec(5, 3), News.RENEWED),
    "the same again": ("u1", spec(5, 2), News.SAME),
    "a lower epoch": ("u1", spec(4), News.OLDER),
    "a lower epoch of a re-created object": ("u2", spec(1), News.NEW),
}


@pytest.mark.parametrize(("uid", "reading", "news"), SECOND_READINGS.values(),
                         ids=SECOND_READINGS.keys())  # fmt: skip
def test_a_reading_after_epoch_5_renewal_2_is(
    uid: str, reading: PolicyAssignmentSpec, news: News
) -> None:
    rule = Rule()
    assert rule.see("u1", spec(5, 2), 0.0) is News.NEW
    assert rule.see(uid, reading, 1.0) is news
    assert rule.spec is not None
    kept = reading if news in (News.NEW, News.RENEWED) else spec(5, 2)
    assert rule.spec == kept


def test_a_candidate_that_is_not_renewed_loses_its_weight_until_there_is_news() -> None:
    rule = Rule()
    rule.see("u1", spec(5), 100.0)
    assert rule.expires_at() == 130.0
    assert weight(rule, 129.9) == (500, "")
    assert weight(rule, 130.0) == (0, CAUSE_LEASE)
    rule.see("u1", spec(5), 140.0)
    assert weight(rule, 140.0) == (0, CAUSE_LEASE), "hearing the same again is not news"
    rule.see("u1", spec(5, 1), 150.0)
    assert weight(rule, 150.0) == (500, "")
    assert weight(rule, 179.9) == (500, "")


def test_no_lease_runs_without_a_candidate_in_service() -> None:
    rule = Rule()
    rule.see("u1", spec(5, weight=0), 0.0)
    assert rule.expires_at() is None
    assert weight(rule, 10_000.0) == (0, "")


def test_a_hold_takes_the_weight_at_once() -> None:
    rule = Rule()
    rule.see("u1", spec(5, hold=True), 0.0)
    assert weight(rule, 0.0) == (0, CAUSE_HOLD)


def test_what_comes_from_disk_serves_no_candidate_until_the_api_server_is_heard() -> None:
    rule = Rule()
    rule.restore("u1", spec(5, 2))
    assert weight(rule, 0.0) == (0, CAUSE_LEASE)
    rule.see("u1", spec(5, 3), 1.0)
    assert weight(rule, 1.0) == (500, "")


def test_before_any_assignment_there_is_nothing_to_serve() -> None:
    assert Rule().effective(0.0) is None
