"""Reads what a process is told by environment variables; a bad one is named.

Used by the settings of operator, workers and pipelines: which variables there are and what they
mean is said there. An empty variable counts as unset, since charts and shells write empty ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimwheel_api.errors import SpecInvalid
from trimwheel_api.values import seconds

LONGEST_SPAN = 3660 * 86_400.0
"""Ten years, as long as records may be kept: what no clock, timer or calendar overflows on."""
_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables of a process."""

    variables: Mapping[str, str]

    def text(self, name: str, default: str = "") -> str:
        """A variable as it is."""
        return self.variables.get(name) or default

    def words(self, name: str) -> tuple[str, ...]:
        """A comma list, without blanks and empty parts."""
        return tuple(part.strip() for part in self.text(name).split(",") if part.strip())

    def count(self, name: str, default: int, most: int = 1_000_000) -> int:
        """A whole number from 1 to `most`. Raises SpecInvalid."""
        text = self.text(name, str(default))
        digits = text.isascii() and text.isdigit() and len(text) <= _DIGITS
        if not digits or int(text) < 1:
            raise SpecInvalid(name, "must be a whole number, 1 or more", text)
        if int(text) > most:
            raise SpecInvalid(name, f"must be a whole number, at most {most}", text)
        return int(text)

    def json(self, name: str, default: Any) -> Any:
        """A JSON document of the default's kind, list or object. Raises SpecInvalid."""
        text = self.text(name)
        try:
            value = json.loads(text) if text else default
        except (ValueError, RecursionError) as error:
            raise SpecInvalid(name, "must be JSON", text) from error
        if not isinstance(value, type(default)):
            kind = "list" if isinstance(default, list) else "object"
            raise SpecInvalid(name, f"must be a JSON {kind}", text)
        return value

    def span(
        self, name: str, default: float, least: float = 0.0, most: float = LONGEST_SPAN
    ) -> float:
        """Seconds from `least` to `most`: `1m30s`, or a plain number. Raises SpecInvalid."""
        text = self.text(name)
        if not text:
            return default
        try:
            found = seconds(text) if text[-1].isalpha() else float(text)
        except ValueError as error:
            raise SpecInvalid(name, "must be a duration such as 30s", text) from error
        if not 0 <= found < math.inf:
            raise SpecInvalid(name, "must be a duration such as 30s", text)
        if not least <= found <= most:
            rule = f"must be a duration from {least:g} to {most:g} seconds"
            raise SpecInvalid(name, rule, text)
        return found
