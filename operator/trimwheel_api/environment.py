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

    def count(self, name: str, default: int) -> int:
        """A whole number from 1. Raises SpecInvalid."""
        text = self.text(name, str(default))
        if not text.isdecimal() or int(text) < 1:
            raise SpecInvalid(name, "must be a whole number, 1 or more", text)
        return int(text)

    def json(self, name: str, default: Any) -> Any:
        """A JSON document. Raises SpecInvalid."""
        text = self.text(name)
        try:
            return json.loads(text) if text else default
        except ValueError as error:
            raise SpecInvalid(name, "must be JSON", text) from error

    def span(self, name: str, default: float) -> float:
        """Seconds: a duration such as `1m30s`, or a plain number of them. Raises SpecInvalid."""
        text = self.text(name)
        if not text:
            return default
        try:
            found = seconds(text) if text[-1].isalpha() else float(text)
        except ValueError as error:
            raise SpecInvalid(name, "must be a duration such as 30s", text) from error
        if not 0 <= found < math.inf:
            raise SpecInvalid(name, "must be a duration such as 30s", text)
        return found
