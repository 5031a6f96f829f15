"""The search: knobs from the schema, incumbent first, one study a seed, honest failures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from trimwheel_api.errors import SpecInvalid, TrimwheelError
from trimwheel_api.kinds.adaptive_model import TuningSpec
from trimwheel_api.policy import DENSE, parse_policy
from trimwheel_pipelines.executors import Failure, Outcome, SerialExecutor
from trimwheel_pipelines.knobs import (
    exit_costs,
    policy_of,
    policy_signature,
    search_space,
    signature_of,
    space_size,
    split_knobs,
)
from trimwheel_pipelines.loss_tests import p_value
from trimwheel_pipelines.study import (
    Study,
    certifiable_risk,
    finalists_of,
    run_study,
)
from trimwheel_pipelines.trials import Audits, ModelRef, Search, run_trial
from trimwheel_workers.model.artifact import LoadedModel
from trimwheel_workers.model.config import EncoderConfig, Signature

EPSILON = 0.1
INCUMBENT = parse_policy({"moe": {"topK": 1, "routerBlend": "0.5"}})


@pytest.fixture(scope="module")
def search(audits: Audits, model: LoadedModel, model_ref: ModelRef) -> Search:
    return Search(audits, model.config, model_ref, epsilon=EPSILON, aim=EPSILON / 2, seed=7)


@pytest.fixture(scope="module")
def study(search: Search) -> Study:
    return run_study(search, _space(search), INCUMBENT, 6, SerialExecutor())


def _space(search: Search) -> dict[str, object]:
    return search_space(("moe.topK", "moe.routerBlend"), search.config)  # type: ignore[return-value]


def test_the_schema_says_which_knobs_need_model_runs() -> None:
    split = split_knobs(TuningSpec().knobs)
    assert split.run == ("moe.topK", "moe.routerBlend")
    assert split.replay == ("exit.thresholds",)
    with pytest.raises(SpecInvalid, match=r"exit\.colour"):
        split_knobs(["exit.colour"])


def test_a_model_without_experts_has_no_expert_knobs(model: LoadedModel) -> None:
    plain = replace(model.config, experts=1, default_top_k=1)
    assert search_space(("moe.topK", "moe.routerBlend"), plain) == {}
    assert space_size({}) == 1


def test_the_incumbent_is_first_and_the_dense_model_second(study: Study) -> None:
    assert study.trials[0].params == {"moe.topK": 1, "moe.routerBlend": 0.5}
    assert study.trials[1].params == {"moe.topK": 2, "moe.routerBlend": 0.0}


def test_a_seed_gives_the_same_study_and_another_one_does_not(search: Search, study: Study) -> None:
    again = run_study(search, _space(search), INCUMBENT, 6, SerialExecutor())
    assert [t.params for t in again.trials] == [t.params for t in study.trials]
    assert [r.cost for r in again.results] == [r.cost for r in study.results]
    other = run_study(replace(search, seed=8), _space(search), INCUMBENT, 6, SerialExecutor())
    assert [t.params for t in other.trials] != [t.params for t in study.trials]


class Counting(SerialExecutor):
    def __init__(self) -> None:
        self.ran: list[Signature] = []

    def run(
        self, search: Search, signatures: Sequence[Signature], until: float = math.inf
    ) -> Iterator[Outcome]:
        self.ran += signatures
        return super().run(search, signatures)


def test_each_trial_is_told_as_soon_as_it_has_ended(search: Search) -> None:
    begun: list[Signature] = []

    class Watched(SerialExecutor):
        def run(
            self, search: Search, signatures: Sequence[Signature], until: float = math.inf
        ) -> Iterator[Outcome]:
            for signature in signatures:
                begun.append(signature)
                yield from super().run(search, [signature])

    told: list[int] = []
    run_study(search, _space(search), INCUMBENT, 4, Watched(), lambda _: told.append(len(begun)))
    assert told == [1, 2, 3, 4], "four proposals are one batch, and none waits for the others"


def test_a_signature_is_run_once_however_often_it_is_proposed(search: Search) -> None:
    executor = Counting()
    space = search_space(("moe.topK",), search.config)
    study = run_study(search, space, DENSE, 20, executor)
    assert len(set(executor.ran)) == len(executor.ran) == 3
    assert len(study.trials) < 20, "three points cannot fill twenty trials"
    assert study.model_runs == 2
    assert sum(not trial.repeated for trial in study.trials) == 3


def test_without_knobs_that_run_the_model_there_is_one_trial_and_no_model(search: Search) -> None:
    blind = replace(search, model=None, audits=replace(search.audits, texts=None))
    study = run_study(blind, {}, INCUMBENT, 24, SerialExecutor())
    assert len(study.trials) == 1 and study.model_runs == 0
    assert study.results[0].signature == search.config.dense_signature
    assert study.results[0].floor == 0.0


class Failing(SerialExecutor):
    def __init__(self, bad: int) -> None:
        self.bad = bad

    def run(
        self, search: Search, signatures: Sequence[Signature], until: float = math.inf
    ) -> Iterator[Outcome]:
        for one in super().run(search, signatures):
            failed = one.signature.top_k == self.bad or not self.bad
            yield Failure(one.signature, "OOM") if failed else one


def test_a_failed_trial_leaves_the_others_right(search: Search) -> None:
    study = run_study(search, _space(search), DENSE, 5, Failing(bad=1))
    assert study.trials[0].result is not None
    assert all(result.signature.top_k != 1 for result in study.results)
    assert {trial.failure for trial in study.trials if trial.result is None} <= {"OOM"}
    with pytest.raises(TrimwheelError, match="all 4 trials failed: OOM"):
        run_study(search, _space(search), DENSE, 4, Failing(bad=0))


def test_a_missing_model_is_a_failed_trial_with_a_reason(search: Search) -> None:
    blind = replace(search, model=None)
    outcome = next(SerialExecutor().run(blind, [Signature(1, 0.0)]))
    assert isinstance(outcome, Failure) and "inputs" in outcome.reason


def test_dense_trials_replay_what_the_worker_recorded(search: Search, audits: Audits) -> None:
    result = run_trial(search, search.config.dense_signature)
    assert not result.ran_model and result.floor == 0.0
    np.testing.assert_array_equal(result.records.scores, audits.scores)
    never = result.front_risk[0], result.front_cost[0]
    assert never == (0.0, pytest.approx(1.0))


def test_a_trial_judges_against_the_recorded_dense_answer(search: Search) -> None:
    result = run_trial(search, Signature(1, 0.5))
    assert result.ran_model
    assert result.floor == pytest.approx(float((~result.records.final_agree).mean()))
    assert result.floor > 0.0, "one expert changes some of this model's answers"
    within = result.front_cost[result.front_risk <= search.aim]
    assert result.cost == (min(within.min(), 1.0) if len(within) else 1.0)
    assert result.cost_at_limit <= result.cost


def test_fixed_thresholds_are_kept(search: Search) -> None:
    fixed = replace(search, fixed=("0.9", "0.9", "1.01"))
    result = run_trial(fixed, search.config.dense_signature)
    assert result.chain.points == (("1.01", "1.01", "1.01"), ("0.9", "0.9", "1.01"))


def test_finalists_hold_the_best_and_an_insurance(search: Search, study: Study) -> None:
    dense = search.config.dense_signature
    proposals = finalists_of(study, EPSILON, 3, dense)
    assert len(proposals) <= 3
    assert proposals[0].result is study.results[0]
    assert len(finalists_of(study, EPSILON, 1, dense)) == 1
    if study.results[0].signature == dense:
        assert proposals[1].chain.name == "single"
    else:
        assert proposals[1].result.signature == dense
    assert len({(p.result.signature, p.chain.name) for p in proposals}) == len(proposals)


@pytest.mark.parametrize(("n", "level"), [(1500, 0.025), (2000, 0.0125), (50, 0.05), (300, 0.01)])
def test_the_aim_is_what_a_look_can_just_certify(n: int, level: float) -> None:
    errors = round(certifiable_risk(n, level, 0.02) * n)
    assert p_value(errors + 1, n, 1.0, 0.02) > level
    assert errors == 0 or p_value(errors, n, 1.0, 0.02) <= level


@pytest.mark.parametrize(
    ("params", "signature", "document"),
    [
        ({}, Signature(2, 0.0), {}),
        ({"moe.topK": 2, "moe.routerBlend": 0.0}, Signature(2, 0.0), {}),
        ({"moe.topK": 1}, Signature(1, 0.0), {"moe": {"topK": 1}}),
        (
            {"moe.topK": 1, "moe.routerBlend": 0.30000000000000004},
            Signature(1, 0.3),
            {"moe": {"topK": 1, "routerBlend": "0.3"}},
        ),
    ],
)
def test_a_point_becomes_a_document_and_back(
    model: LoadedModel, params: dict[str, float], signature: Signature, document: dict[str, object]
) -> None:
    assert signature_of(params, model.config) == signature
    policy = policy_of(signature, ("0.9", "0.8", "1.01"), model.config)
    exits = {"enabled": True, "thresholds": ["0.9", "0.8", "1.01"]}
    assert policy.document() == {"exit": exits, **document}
    assert policy_signature(policy, model.config) == signature


def test_costs_rise_with_depth_and_experts() -> None:
    config = EncoderConfig(vocabulary=10, classes=("a", "b"))
    dense = exit_costs(config, config.dense_signature)
    one = exit_costs(config, Signature(1, 0.7))
    assert dense[-1] == 1.0 and list(dense) == sorted(dense)
    assert all(a < b for a, b in zip(one[1:], dense[1:], strict=True)) and one[0] == dense[0]
