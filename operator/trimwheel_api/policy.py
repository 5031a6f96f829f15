"""The policy document: the few kilobytes of knobs that Trimwheel keeps right.

One home for every knob: name, type, range, default, and what it takes to judge it. The CRD
description, the worker's loader, the tuner's search space and the reference page derive from here.
The empty document `{}` is the dense model: every default means "full computation".

Knobs carry two marks in their JSON schema: `needs` (`replay`: judged from audit records; `run`:
changes hidden states, judged by running the model) and `scope` (`row`: mixes freely in one batch;
`batch`: splits a batch by its compute signature).
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from trimwheel_api.decide import NEVER, as_compared
from trimwheel_api.errors import PolicyInvalid
from trimwheel_api.values import Fraction, Threshold, normalise_decimal

MAX_EXITS = 64
MAX_EXPERTS = 64
MAX_DOCUMENT_BYTES = 65_536

ScoreName = Literal["learned", "maxProb", "margin", "entropy"]


_STRICT: dict[str, Any] = {"strict": True}
"""For numbers and booleans: true is not 1, and "yes" is not true, as the API server has it."""


def _knob(default: Any, description: str, *, needs: str, scope: str, **limits: Any) -> Any:
    marks: dict[str, JsonValue] = {"needs": needs, "scope": scope}
    if callable(default):
        return Field(
            default_factory=default, description=description, json_schema_extra=marks, **limits
        )
    return Field(default=default, description=description, json_schema_extra=marks, **limits)


class _Group(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


class ExitPolicy(_Group):
    """Early exits: answer at the first exit whose score reaches its threshold."""

    enabled: bool = _knob(
        False,
        "Answer at exits at all; off means full depth.",
        needs="replay",
        scope="row",
        **_STRICT,
    )
    score: ScoreName = _knob(
        "learned",
        "What an exit is judged by: learned (probability of agreeing with full depth), maxProb, "
        "margin or entropy (1 - normalised entropy). Higher is surer.",
        needs="replay",
        scope="batch",
    )
    thresholds: tuple[Threshold, ...] = _knob(
        tuple,
        "One for each exit, shallow first; an exit answers when its score reaches it; above 1 "
        "means never.",
        needs="replay",
        scope="row",
        max_length=MAX_EXITS,
    )
    max_depth: int | None = _knob(
        None,
        "Answer at this exit at the latest (0 is the first); unset means no cap.",
        needs="replay",
        scope="row",
        ge=0,
        le=MAX_EXITS,
        **_STRICT,
    )


class MoePolicy(_Group):
    """Mixture of experts: how many experts a token visits, and which router sends it."""

    top_k: int | None = _knob(
        None,
        "Experts a token visits; unset means as many as in training.",
        needs="run",
        scope="batch",
        ge=1,
        le=MAX_EXPERTS,
        **_STRICT,
    )
    router_blend: Fraction = _knob(
        "0",
        "Router logits are (1 - b) A + b B; 0 is the router of training, 1 the second router.",
        needs="run",
        scope="batch",
    )


class Policy(_Group):
    """A whole policy document; `Policy()` is the dense model."""

    exit: ExitPolicy = Field(default_factory=ExitPolicy, description="Early exits.")
    moe: MoePolicy = Field(default_factory=MoePolicy, description="Mixture of experts.")

    @property
    def is_dense(self) -> bool:
        """Whether this is the document `{}`."""
        return self.document() == {}

    def thresholds(self, exits: int) -> tuple[float, ...]:
        """One threshold for each of the model's exits, as compared; all "never" when disabled."""
        if not self.exit.enabled:
            return (NEVER,) * exits
        return tuple(as_compared(float(text)) for text in self.exit.thresholds)

    def document(self) -> dict[str, Any]:
        """The document with decimals normalised and defaults dropped, as plain JSON values."""
        return _pruned(self.model_dump(by_alias=True), Policy().model_dump(by_alias=True))

    def canonical_bytes(self) -> bytes:
        """RFC 8785 bytes of `document()`: what the digest names and MLflow stores."""
        return canonical_json(self.document())

    @property
    def digest(self) -> str:
        """`sha256:` and the hex of the canonical bytes."""
        return digest_of(self.canonical_bytes())


DENSE = Policy()


def parse_policy(document: Any, *, exits: int | None = None, experts: int | None = None) -> Policy:
    """Read a policy document, and check it against a model's shape when that is known.

    Raises PolicyInvalid naming the field, the rule, the value and the remedy.
    """
    if not isinstance(document, dict):
        raise PolicyInvalid("policy", "must be an object", document)
    try:
        policy = Policy.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(["policy", *(str(part) for part in first["loc"])])
        remedy = "Fractions are decimal strings; see docs/reference/policy.md"
        raise PolicyInvalid(field, first["msg"], first.get("input"), remedy) from error
    _check_fit(policy, exits, experts)
    return policy


def parse_canonical(text: str, digest: str) -> Policy:
    """Read a document as an assignment carries it; the digest is recomputed, never trusted."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PolicyInvalid("policy", f"must be JSON ({error})", text) from error
    policy = parse_policy(document)
    if policy.digest != digest:
        raise PolicyInvalid("policy.digest", f"the document's digest is {policy.digest}", digest)
    return policy


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes of a value without floats whose keys are ASCII, as all of ours are."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def digest_of(data: bytes) -> str:
    """`sha256:` and the hex digest of some bytes."""
    return f"sha256:{sha256(data).hexdigest()}"


def _check_fit(policy: Policy, exits: int | None, experts: int | None) -> None:
    given = len(policy.exit.thresholds)
    if policy.exit.enabled and not given:
        raise PolicyInvalid(
            "policy.exit.thresholds",
            "must hold one threshold for each exit when exit.enabled is true",
            [],
        )
    if policy.exit.enabled and exits is not None and given != exits:
        raise PolicyInvalid(
            "policy.exit.thresholds",
            f"must hold one threshold for each of the model's {exits} exits",
            list(policy.exit.thresholds),
        )
    if experts is not None and policy.moe.top_k is not None and policy.moe.top_k > experts:
        raise PolicyInvalid(
            "policy.moe.topK", f"must be at most the model's {experts} experts", policy.moe.top_k
        )


def _pruned(value: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, item in value.items():
        plain = _pruned(item, defaults[key]) if isinstance(item, dict) else _plain(item)
        if plain != {} and (isinstance(item, dict) or plain != _plain(defaults[key])):
            kept[key] = plain
    return kept


def _plain(item: Any) -> Any:
    if isinstance(item, (list, tuple)):
        return [_plain(part) for part in item]
    if isinstance(item, str) and item[:1].isdigit():
        return normalise_decimal(item)
    return item
