"""The policy document: its digest against an independent RFC 8785, its checks."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api.errors import DigestMismatch, InvalidInput, PolicyInvalid
from trimwheel_api.policy import (
    DENSE,
    Policy,
    canonical_json,
    parse_canonical,
    parse_policy,
)

THRESHOLD = st.decimals(0, "1.99", places=4).map(str)
FRACTION = st.decimals(0, 1, places=4).map(str)
EXIT = st.fixed_dictionaries(
    {},
    optional={
        "enabled": st.just(False),
        "score": st.sampled_from(["learned", "maxProb", "margin", "entropy"]),
        "thresholds": st.lists(THRESHOLD, max_size=8),
        "maxDepth": st.none() | st.integers(0, 64),
    },
)
MOE = st.fixed_dictionaries(
    {}, optional={"topK": st.none() | st.integers(1, 64), "routerBlend": FRACTION}
)
DOCUMENT = st.fixed_dictionaries({}, optional={"exit": EXIT, "moe": MOE})

KEY = st.text(st.characters(max_codepoint=0xD7FF))
"""Keys of ours are ASCII; beyond the basic plane RFC 8785 sorts by UTF-16, Python by code point."""
JSON_WITHOUT_FLOATS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEY, inner, max_size=4),
    max_leaves=12,
)


@given(DOCUMENT)
def test_the_digest_names_the_rfc_8785_bytes_of_the_document(document):
    policy = parse_policy(document)
    assert policy.canonical_bytes() == rfc8785.dumps(policy.document())
    assert policy.digest == f"sha256:{sha256(rfc8785.dumps(policy.document())).hexdigest()}"


@given(JSON_WITHOUT_FLOATS)
def test_canonical_json_equals_rfc_8785_for_any_value_without_floats(value):
    assert canonical_json(value) == rfc8785.dumps(value)


@given(DOCUMENT)
def test_a_canonical_document_reads_back_as_the_same_policy(document):
    policy = parse_policy(document)
    again = parse_canonical(policy.canonical_bytes().decode(), policy.digest)
    assert again.document() == policy.document()
    assert again.digest == policy.digest


@given(DOCUMENT)
def test_key_order_does_not_change_the_digest(document):
    turned = {
        group: dict(reversed(list(knobs.items()))) for group, knobs in reversed(document.items())
    }
    assert parse_policy(turned).digest == parse_policy(document).digest


@given(st.lists(THRESHOLD, min_size=1, max_size=8), st.integers(0, 4))
def test_trailing_zeros_do_not_change_the_digest(thresholds, zeros):
    padded = [f"{text}{'0' * zeros}" for text in thresholds]
    one, other = ({"exit": {"enabled": True, "thresholds": each}} for each in (thresholds, padded))
    assert parse_policy(one).digest == parse_policy(other).digest


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"exit": {}},
        {"moe": {}, "exit": {}},
        {"exit": {"enabled": False, "score": "learned", "thresholds": []}},
        {"moe": {"topK": None, "routerBlend": "0.000"}},
    ],
)
def test_defaults_and_empty_objects_make_the_dense_policy(document):
    assert parse_policy(document).is_dense
    assert parse_policy(document).digest == DENSE.digest


def test_the_dense_policy_is_the_empty_document():
    assert DENSE.canonical_bytes() == b"{}"
    assert DENSE.digest == f"sha256:{sha256(b'{}').hexdigest()}"


def test_the_digest_of_a_known_document_never_changes():
    """Digests are in people's clusters: another canonical form would orphan every certificate."""
    document = {
        "exit": {"enabled": True, "thresholds": ["0.90", "1.01", "0"]},
        "moe": {"topK": 1, "routerBlend": "1.0"},
    }
    expected = (
        b'{"exit":{"enabled":true,"thresholds":["0.9","1.01","0"]},'
        b'"moe":{"routerBlend":"1","topK":1}}'
    )
    policy = parse_policy(document)
    assert policy.canonical_bytes() == expected
    assert policy.digest == f"sha256:{sha256(expected).hexdigest()}"


def test_a_changed_knob_changes_the_digest():
    seen = {
        parse_policy(document).digest
        for document in (
            {},
            {"exit": {"enabled": True, "thresholds": ["0.9"]}},
            {"exit": {"enabled": True, "thresholds": ["0.91"]}},
            {"exit": {"enabled": True, "thresholds": ["0.9", "0.9"]}},
            {"exit": {"enabled": True, "thresholds": ["0.9"], "score": "margin"}},
            {"exit": {"maxDepth": 0}},
            {"moe": {"topK": 1}},
            {"moe": {"routerBlend": "0.5"}},
        )
    }
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("document", "field", "rule"),
    [
        ([], "policy", "must be an object"),
        ({"exits": {}}, "policy.exits", "Extra inputs"),
        ({"exit": {"thresholds": [0.9]}}, "policy.exit.thresholds.0", "valid string"),
        ({"exit": {"thresholds": ["2"]}}, "policy.exit.thresholds.0", "pattern"),
        ({"exit": {"thresholds": ["1e-1"]}}, "policy.exit.thresholds.0", "pattern"),
        ({"exit": {"thresholds": ["-0"]}}, "policy.exit.thresholds.0", "pattern"),
        ({"exit": {"enabled": True}}, "policy.exit.thresholds", "one threshold for each exit"),
        ({"exit": {"score": "luck"}}, "policy.exit.score", "learned"),
        ({"exit": {"maxDepth": 65}}, "policy.exit.maxDepth", "less than or equal to 64"),
        ({"moe": {"topK": 0}}, "policy.moe.topK", "greater than or equal to 1"),
        ({"moe": {"routerBlend": "1.5"}}, "policy.moe.routerBlend", "pattern"),
    ],
)
def test_a_broken_rule_is_named_with_field_and_value(document, field, rule):
    with pytest.raises(PolicyInvalid) as raised:
        parse_policy(document)
    assert raised.value.field == field
    assert rule in raised.value.rule
    assert "but got" in str(raised.value)


def test_a_policy_must_fit_the_model():
    document = {"exit": {"enabled": True, "thresholds": ["0.9"]}, "moe": {"topK": 3}}
    parse_policy(document, exits=1, experts=4)
    with pytest.raises(PolicyInvalid, match="model's 2 exits"):
        parse_policy(document, exits=2)
    with pytest.raises(PolicyInvalid, match="model's 2 experts"):
        parse_policy(document, experts=2)


@pytest.mark.parametrize("text", ["{", '{"exit":{"enabled":true,"thresholds":["0.8"]}}', "{} x"])
def test_an_assignments_document_must_be_what_its_digest_names(text):
    with pytest.raises(InvalidInput):
        parse_canonical(text, DENSE.digest)


def test_another_document_than_the_digest_names_is_a_mismatch():
    with pytest.raises((DigestMismatch, PolicyInvalid), match="digest"):
        parse_canonical('{"moe":{"topK":1}}', DENSE.digest)


def test_every_knob_is_marked_described_and_off_by_default():
    for group in json.loads(json.dumps(Policy.model_json_schema()))["$defs"].values():
        for name, knob in group["properties"].items():
            assert knob["description"], name
            assert knob["needs"] in ("replay", "run"), name
            assert knob["scope"] in ("row", "batch"), name
    assert Policy().is_dense
