"""What the gatherer keeps between looks, and what it asks for anew."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tests.operator.world import START

from trimwheel_operator.gather import Gatherer, Memory
from trimwheel_operator.plan.observed import Evidence
from trimwheel_operator.settings import Settings


class Reader:
    """Evidence of 5000 requests, of which the gatherer may ask when it likes."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def read(self, rollout: Any, workers: int, now: Any) -> Evidence:
        self.asked.append(rollout.status.step_started_at)
        return Evidence(rollout.metadata.uid, (), 5000, rollout.status.step_started_at)


def test_evidence_is_kept_for_half_a_scrape_but_not_for_the_next_step(started: Any) -> None:
    """Else the requests of one step would count for the next one as well."""
    reader: Any = Reader()
    parts: Any = {
        "api": None,
        "store": None,
        "admission": None,
        "evidence": reader,
        "settings": Settings(),
    }
    gatherer, memory = Gatherer(**parts), Memory()
    after = started.status.model_copy(update={"step": 1, "step_started_at": "2026-11-22T12:09:00Z"})
    next_step = started.model_copy(update={"status": after})
    first, second = started.status.step_started_at, "2026-11-22T12:09:00Z"
    for rollout, seconds, asked in (
        (started, 0.0, [first]),
        (started, 0.1, [first]),
        (next_step, 0.2, [first, second]),
        (next_step, 0.3, [first, second]),
        (next_step, 9.0, [first, second, second]),
    ):
        gatherer._evidence([rollout], 2, memory, START + timedelta(seconds=seconds))
        assert reader.asked == asked


def test_a_pass_that_may_go_back_does_not_wait_for_prometheus(started: Any) -> None:
    reader: Any = Reader()
    parts: Any = {"api": None, "store": None, "admission": None, "evidence": reader}
    gatherer, memory = Gatherer(**parts, settings=Settings()), Memory()
    assert gatherer._evidence([started], 2, memory, START, going_back=True) is None
    assert reader.asked == []
    assert gatherer._evidence([started], 2, memory, START) is not None
