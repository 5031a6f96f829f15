"""Which knobs a study may turn, and how a point of the search becomes a policy document.

Derived from the marks in the policy schema: a knob that `needs: run` changes hidden states, so
Optuna proposes it and a trial runs the model; one that `needs: replay` is searched inside each
trial from the recorded scores. Called by `study`, `trials` and `tune`. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from trimwheel_api.errors import SpecInvalid
from trimwheel_api.policy import ExitPolicy, MoePolicy, Policy
from trimwheel_api.values import decimal_string
from trimwheel_workers.model.config import EncoderConfig, Signature

THRESHOLDS = "exit.thresholds"
TOP_K = "moe.topK"
BLEND = "moe.routerBlend"
BLEND_STEP = 0.01
"""Blends are tried in whole hundredths: finer ones answer alike, and equal ones are run once."""
BLEND_DIGITS = 2

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class KnobSplit:
    """Knobs of a study by how they are judged."""

    run: tuple[str, ...]
    replay: tuple[str, ...]


def split_knobs(knobs: Sequence[str]) -> KnobSplit:
    """Sort knob paths such as `moe.topK` by their `needs` mark.

    Raises SpecInvalid for a path that is no knob of the policy document.
    """
    needs = {knob: _needs(knob) for knob in knobs}
    return KnobSplit(
        run=tuple(knob for knob in knobs if needs[knob] == "run"),
        replay=tuple(knob for knob in knobs if needs[knob] == "replay"),
    )


def search_space(run_knobs: Sequence[str], config: EncoderConfig) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the knobs that this model has."""
    space: dict[str, BaseDistribution] = {}
    if TOP_K in run_knobs and config.experts > 1:
        space[TOP_K] = IntDistribution(1, config.experts)
    if BLEND in run_knobs and config.experts > 1 and config.routers > 1:
        space[BLEND] = FloatDistribution(0.0, 1.0, step=BLEND_STEP)
    return space


def space_size(space: Mapping[str, BaseDistribution]) -> int:
    """How many different points a space of steps holds."""
    size = 1
    for knob in space.values():
        assert isinstance(knob, (IntDistribution, FloatDistribution)), "all knobs have steps"
        size *= round((knob.high - knob.low) / (knob.step or 1)) + 1
    return size


def signature_of(params: Mapping[str, Any], config: EncoderConfig) -> Signature:
    """The compute signature of a point; knobs that it leaves out are dense."""
    dense = config.dense_signature
    return Signature(
        int(params.get(TOP_K, dense.top_k)),
        round(float(params.get(BLEND, dense.router_blend)), BLEND_DIGITS),
    )


def params_of(
    policy: Policy, space: Mapping[str, BaseDistribution], config: EncoderConfig
) -> Params:
    """Where a policy lies in a space: what is enqueued so that the incumbent is in every study."""
    point: Params = {
        TOP_K: config.dense_signature.top_k if policy.moe.top_k is None else policy.moe.top_k,
        BLEND: round(float(policy.moe.router_blend), BLEND_DIGITS),
    }
    return {knob: point[knob] for knob in space}


def policy_signature(policy: Policy, config: EncoderConfig) -> Signature:
    """The compute signature of a policy document, not rounded."""
    dense = config.dense_signature
    return Signature(
        dense.top_k if policy.moe.top_k is None else policy.moe.top_k,
        float(policy.moe.router_blend),
    )


def policy_of(signature: Signature, thresholds: Sequence[str], config: EncoderConfig) -> Policy:
    """The document of a point: its knobs where they differ from the dense model."""
    dense = config.dense_signature
    return Policy(
        exit=ExitPolicy(enabled=True, score="learned", thresholds=tuple(thresholds)),
        moe=MoePolicy(
            top_k=None if signature.top_k == dense.top_k else signature.top_k,
            router_blend=decimal_string(signature.router_blend, BLEND_DIGITS),
        ),
    )


def exit_costs(config: EncoderConfig, signature: Signature) -> tuple[float, ...]:
    """What a request costs that leaves at each exit, and at full depth, over dense full depth.

    Multiplications a token in each layer: four D x D projections and the feed-forward net, in the
    mixture layer those of the experts visited. Attention scores, heads and the router are left out:
    together under 2 % for short texts.
    """

    def layer(number: int, top_k: int) -> float:
        projections = 4 * config.dim**2
        inner = config.feed_forward
        if number == config.moe_layer:
            inner = top_k * config.expert_feed_forward
        return float(projections + 2 * config.dim * inner)

    numbers = range(1, config.layers + 1)
    dense = sum(layer(number, config.default_top_k) for number in numbers)
    depths = (*config.exits, config.layers)
    return tuple(
        sum(layer(number, signature.top_k) for number in numbers if number <= depth) / dense
        for depth in depths
    )


def _needs(knob: str) -> str:
    group, _, name = knob.partition(".")
    section = Policy.model_fields.get(group)
    fields: Mapping[str, Any] = getattr(section.annotation, "model_fields", {}) if section else {}
    for field in fields.values():
        if field.alias == name:
            return str(field.json_schema_extra["needs"])
    raise SpecInvalid("spec.tuning.knobs", "must be a knob of the policy document", knob)
