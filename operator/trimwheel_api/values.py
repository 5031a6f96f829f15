"""Scalar types of specs: decimal strings, durations, percentages; no floats reach an object.

Used by the kinds and the policy document, and by whoever needs the number behind a string. Each
type is a string with a pattern that the CRD carries, so that the API server refuses a bad one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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
    """CEL for what is shown of the value."""
    remedy: str = ""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The value's schema with this rule."""
        return {**handler(core_schema), "x-kubernetes-validations": [self.as_cel()]}

    def as_cel(self) -> dict[str, Any]:
        """The rule as a CRD has it."""
        told = f"'{self.message}, but got ' + {self.value} + '; {self.remedy}'"
        return {"rule": self.rule, "message": self.message, "messageExpression": told}


Fraction = Annotated[str, StringConstraints(pattern=FRACTION_PATTERN, max_length=16)]
"""A number in [0, 1] as a decimal string, such as "0.02"."""
Threshold = Annotated[str, StringConstraints(pattern=THRESHOLD_PATTERN, max_length=16)]
"""A number in [0, 2) as a decimal string; above 1 means that no score reaches it."""
PositiveNumber = Annotated[str, StringConstraints(pattern=QUANTITY_PATTERN, max_length=26)]
"""A number >= 0 as a decimal string, such as "5000000" or "1.5"."""
NumberFromOne = Annotated[
    PositiveNumber,
    Rule("double(self) >= 1.0", "must be at least 1", remedy="leave it out for the default"),
]
"""A number >= 1 as a decimal string."""
Duration = Annotated[str, StringConstraints(pattern=DURATION_PATTERN, max_length=48)]
"""A span of time such as "30s", "1h30m" or "250ms"."""
PositiveDuration = Annotated[
    Duration,
    Rule("self.matches('[1-9]')", "must be longer than 0s", remedy="give a span such as 30s"),
]
"""A span of time above 0."""
Percent = Annotated[str, StringConstraints(pattern=PERCENT_PATTERN, max_length=8)]
"""A share such as "5%" or "0.5%"."""
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN, max_length=71)]
"""`sha256:` and 64 hex characters."""
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=253)]
"""The name of an object in the same namespace."""
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
]
"""An amount of a resource as in a Pod: 1, "500m" or "2Gi"; a plain number becomes its string."""

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+)(ms|s|m|h|d)")


def seconds(duration: str) -> float:
    """`"1m30s"` -> 90.0. Raises ValueError on anything that is not a duration."""
    if not re.match(DURATION_PATTERN, duration):
        raise ValueError(f"duration: must look like 30s, 1h30m or 250ms, but got {duration!r}")
    return sum(int(number) * _UNIT_SECONDS[unit] for number, unit in _PART.findall(duration))


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
