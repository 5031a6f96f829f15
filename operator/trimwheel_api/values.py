"""Scalar types of specs: decimal strings, durations, percentages; no floats reach an object.

Used by the kinds and the policy document, and by whoever needs the number behind a string. Each
type is a string with a pattern that the CRD carries, so that the API server refuses a bad one.

A pattern is also enforced when an object is read, a `Rule` or `AtMost` is not: these came after
0.1.0, and what it stored has to stay readable. `trimwheel_api.limits` finds what breaks them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

FRACTION_PATTERN = r"^(0(\.[0-9]{1,9})?|1(\.0{1,9})?)$"
THRESHOLD_PATTERN = r"^[01](\.[0-9]{1,9})?$"
DURATION_PATTERN = r"^([0-9]{1,9}(ms|s|m|h|d)){1,4}$"
PERCENT_PATTERN = r"^(100(\.0{1,2})?|[0-9]{1,2}(\.[0-9]{1,2})?)%$"
QUANTITY_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,9})?$"
KUBERNETES_QUANTITY_PATTERN = (
    r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
)
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"

MAX_MODEL_NAME = 63
MODEL_NAME_PATTERN = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"
"""What a Service may be called, since each model has one of its name."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of one value in CEL, for the API server, which names the field itself."""

    rule: str
    message: str
    value: str = "self"
    """CEL for what is shown of the value; empty leaves that to the API server."""
    remedy: str = ""
    holds: Callable[[str], bool] = lambda _: True
    """The same rule in Python, for objects that were stored before it."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The value's schema with this rule."""
        schema = handler(core_schema)
        key = "x-kubernetes-validations"
        return {**schema, key: [*schema.get(key, []), self.as_cel()]}

    def as_cel(self) -> dict[str, Any]:
        """The rule as a CRD has it."""
        if not self.value:
            return {"rule": self.rule, "message": self.message}
        told = f"'{self.message}, but got ' + {self.value} + '; {self.remedy}'"
        return {"rule": self.rule, "message": self.message, "messageExpression": told}


_LIMIT_KEYWORDS = {
    "integer": "maximum", "string": "maxLength", "array": "maxItems", "object": "maxProperties",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class AtMost:
    """The largest number, or the largest length of a string, list or map."""

    limit: int

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The value's schema with this limit."""
        schema = handler(core_schema)
        return {**schema, _LIMIT_KEYWORDS[schema["type"]]: self.limit}

    def holds(self, value: Any) -> bool:
        """Whether a value keeps it."""
        return (value if isinstance(value, int) else len(value)) <= self.limit

    @property
    def message(self) -> str:
        """The rule in words."""
        return f"must be at most {self.limit}"


def cel_milliseconds(text: str) -> str:
    """CEL for the milliseconds of a duration: its own `duration()` knows no days."""
    unit = (
        "p.endsWith('ms') ? 1 : p.endsWith('s') ? 1000 : p.endsWith('m') ? 60000 : "
        "p.endsWith('h') ? 3600000 : 86400000"
    )
    return f"{text}.findAll('[0-9]+[a-z]+').map(p, int(p.find('^[0-9]+')) * ({unit})).sum()"


def _no_longer_than(limit: str) -> Rule:
    return Rule(
        f"{cel_milliseconds('self')} <= {round(seconds(limit) * 1000)}",
        f"must be at most {limit}",
        remedy="give a shorter span",
        holds=lambda value: seconds(value) <= seconds(limit),
    )


def _in_range(rule: str, words: str, remedy: str, holds: Callable[[float], bool]) -> Rule:
    return Rule(rule, words, remedy=remedy, holds=lambda value: holds(float(value)))


_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+)(ms|s|m|h|d)")
_LONGEST_SECONDS = 36_500 * 86_400.0
"""A hundred years: what no clock, calendar or Job deadline overflows on."""


def seconds(duration: str) -> float:
    """`"1m30s"` -> 90.0; a hundred years at most, so that no calendar overflows on the result.

    Raises ValueError on anything that is not a duration.
    """
    if not re.match(DURATION_PATTERN, duration):
        raise ValueError(f"duration: must look like 30s, 1h30m or 250ms, but got {duration!r}")
    total = sum(int(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(duration))
    return min(total, _LONGEST_SECONDS)


def span(duration: str) -> timedelta:
    """As `seconds`, as a span of the calendar."""
    return timedelta(seconds=seconds(duration))


Fraction = Annotated[str, StringConstraints(pattern=FRACTION_PATTERN, max_length=16)]
"""A number in [0, 1] as a decimal string, such as "0.02"."""
Share = Annotated[
    Fraction,
    _in_range(
        "double(self) > 0.0 && double(self) < 1.0",
        "must lie above 0 and below 1",
        "give a share such as 0.01",
        lambda value: 0 < value < 1,
    ),
]
"""A number above 0 and below 1 as a decimal string."""
LARGEST_DRIFT_RATIO = 5
"""The drift detector watches for this many times the promise, which must stay below 1."""
Risk = Annotated[
    Share,
    _in_range(
        f"double(self) * {LARGEST_DRIFT_RATIO}.0 < 1.0",
        f"must be below {1 / LARGEST_DRIFT_RATIO:g}",
        f"promise less disagreement, such as 0.02: drift is watched up to {LARGEST_DRIFT_RATIO} "
        "times as far",
        lambda value: value * LARGEST_DRIFT_RATIO < 1,
    ),
]
"""A promised share of disagreement."""
Threshold = Annotated[str, StringConstraints(pattern=THRESHOLD_PATTERN, max_length=16)]
"""A number in [0, 2) as a decimal string; above 1 means that no score reaches it."""
PositiveNumber = Annotated[str, StringConstraints(pattern=QUANTITY_PATTERN, max_length=26)]
"""A number >= 0 as a decimal string, such as "5000000" or "1.5"."""
NumberFromOne = Annotated[
    PositiveNumber,
    _in_range(
        "double(self) >= 1.0",
        "must be at least 1",
        "leave it out for the default",
        lambda value: value >= 1,
    ),
    _in_range(
        "double(self) <= 1000000000000.0",
        "must be at most 1000000000000",
        "leave it out for the default",
        lambda value: value <= 1e12,
    ),
]
"""A number from 1 to 10^12 as a decimal string."""
Margin = Annotated[
    PositiveNumber,
    _in_range(
        "double(self) >= 1.0 && double(self) <= 100.0",
        "must be from 1 to 100",
        "1.5 suits most models",
        lambda value: 1 <= value <= 100,
    ),
]
"""A factor from 1 to 100 as a decimal string."""
LONGEST = "366d"
"""Longest span of time in a spec; records alone may be kept longer."""
AnyDuration = Annotated[str, StringConstraints(pattern=DURATION_PATTERN, max_length=48)]
Duration = Annotated[AnyDuration, _no_longer_than(LONGEST)]
"""A span of time such as "30s", "1h30m" or "250ms", at most 366d."""
ShortDuration = Annotated[AnyDuration, _no_longer_than("1h")]
"""A span of time within one request, at most 1h."""
_LONGER_THAN_0 = Rule(
    "self.matches('[1-9]')",
    "must be longer than 0s",
    remedy="give a span such as 30s",
    holds=lambda value: bool(re.search("[1-9]", value)),
)
PositiveDuration = Annotated[Duration, _LONGER_THAN_0]
"""A span of time above 0."""
PositiveShortDuration = Annotated[ShortDuration, _LONGER_THAN_0]
"""A span of time above 0 within one request."""
Retention = Annotated[
    AnyDuration,
    _no_longer_than("3660d"),
    Rule(
        f"{cel_milliseconds('self')} >= 3600000",
        "must be at least 1h",
        remedy="records are judged before they are deleted",
        holds=lambda value: seconds(value) >= seconds("1h"),
    ),
]
"""How long records are kept: an hour at least, so that each is judged before it goes."""
Percent = Annotated[str, StringConstraints(pattern=PERCENT_PATTERN, max_length=8)]
"""A share such as "5%" or "0.5%"."""
LARGEST_WEIGHT = "50%"
"""Of a step: with more, no stable arm is left to compare with. Beyond it lies promotion."""
Weight = Annotated[
    Percent,
    Rule(
        f"double(self.replace('%', '')) <= {LARGEST_WEIGHT.rstrip('%')}.0",
        f"must be at most {LARGEST_WEIGHT}",
        remedy="leave the rest to promotion, which follows the last step",
        holds=lambda value: basis_points(value) <= basis_points(LARGEST_WEIGHT),
    ),
]
"""Share of cohorts on a candidate."""
Moment = Annotated[str, AtMost(64)]
"""A time as text (RFC 3339)."""
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN, max_length=71)]
"""`sha256:` and 64 hex characters."""
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=253)]
"""The name of an object in the same namespace."""
AccessSecretName = Annotated[
    str,
    StringConstraints(pattern=r"^trimwheel-[a-z0-9]([-a-z0-9.]{0,240}[a-z0-9])?$", max_length=253),
]
"""A Secret of the same namespace that its owner means for workers: whoever may declare a model may
not thereby have any other Secret mounted."""
ModelName = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MAX_MODEL_NAME)]
"""The name of an AdaptiveModel in the same namespace: labels and a Service carry it."""

Quantity = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
    StringConstraints(pattern=KUBERNETES_QUANTITY_PATTERN, max_length=64),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "pattern": KUBERNETES_QUANTITY_PATTERN,
            "maxLength": 64,
        }
    ),
    Rule(
        "type(self) == int ? self >= 0 && self <= 1000000000000000 : "
        "isQuantity(self) && !quantity(self).isGreaterThan(quantity('1P'))",
        "must be an amount from 0 to 10^15",
        value="",
    ),
]
"""An amount of a resource as in a Pod: 1, "500m" or "2Gi"; a plain number becomes its string."""


def basis_points(percent: str) -> int:
    """`"5%"` -> 500. Raises ValueError on anything that is not a percentage."""
    if not re.match(PERCENT_PATTERN, percent):
        raise ValueError(f"percent: must look like 5% or 0.5%, but got {percent!r}")
    return int(Decimal(percent.rstrip("%")) * 100)


def percent(weight_basis_points: int) -> str:
    """500 -> `"5%"`."""
    return f"{normalise_decimal(str(Decimal(weight_basis_points) / 100))}%"


def normalise_decimal(text: str) -> str:
    """Canonical form of a decimal: no exponent, no trailing zeros, no `-0`."""
    value = Decimal(text)
    if not value:
        return "0"
    plain = format(value, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def decimal_string(value: float, digits: int = 9) -> str:
    """A float as a decimal string with at most `digits` decimals."""
    return normalise_decimal(f"{value:.{digits}f}")
