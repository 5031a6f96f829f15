"""Decimal strings, durations and percentages."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api import values

DECIMALS = st.decimals(-(10**9), 10**9, places=9)


@given(DECIMALS)
def test_a_normalised_decimal_keeps_its_value_and_is_plain(value):
    text = values.normalise_decimal(str(value))
    assert Decimal(text) == value
    assert re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?", text)
    assert text != "-0"


@given(DECIMALS)
def test_normalising_twice_changes_nothing(value):
    once = values.normalise_decimal(str(value))
    assert values.normalise_decimal(once) == once


@pytest.mark.parametrize(
    ("text", "plain"),
    [("1E+2", "100"), ("1e-3", "0.001"), ("-0.0", "0"), ("0.50", "0.5"), ("7.0", "7"), ("00", "0")],
)
def test_decimals_lose_exponents_and_zeros(text, plain):
    assert values.normalise_decimal(text) == plain


@given(st.floats(0, 1, allow_nan=False))
def test_a_float_becomes_a_fraction_string_that_the_schema_accepts(value):
    assert re.match(values.FRACTION_PATTERN, values.decimal_string(value))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", 30), ("1h30m", 5400), ("250ms", 0.25), ("1d", 86400), ("1m1s", 61), ("0s", 0)],
)
def test_durations_add_up(text, expected):
    assert values.seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1.5s", "1s ", "1h2m3s4ms5d"])
def test_what_is_no_duration_is_refused_with_its_value(text):
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        values.seconds(text)


@given(st.integers(0, 10_000))
def test_percentages_and_basis_points_are_inverse(weight):
    assert values.basis_points(values.percent(weight)) == weight


@pytest.mark.parametrize("text", ["101%", "5", "-1%", "0.001%", "%", "100.5%"])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(ValueError, match="percent"):
        values.basis_points(text)
