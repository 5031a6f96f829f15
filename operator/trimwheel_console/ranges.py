"""Numbers on the command line: each has a smallest and a largest value, and NaN is not in between.

Used by every verb that takes a number; a test holds all of them to these two types. click's own
`FloatRange` lets NaN through, and its `INT` any number of digits.
"""

from __future__ import annotations

import math
import re
from typing import Any

import click
from click.core import ParameterSource

SEED = 2**31 - 1
"""The largest seed that every generator takes."""
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*", re.ASCII)
_REAL = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)


class Whole(click.IntRange):
    """A whole number from `least` to `most`."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and not _WHOLE.fullmatch(value):
            rule = f"is not a whole number from {self.min} to {self.max}"
            self.fail(f"{_shown(value)} {rule}{_origin(param, ctx)}.", param, ctx)
        return super().convert(value, param, ctx)


class Real(click.FloatRange):
    """A number from `least` to `most`; with `above` and `below` the ends themselves are refused."""

    def __init__(
        self, least: float, most: float, *, above: bool = False, below: bool = False
    ) -> None:
        super().__init__(least, most, min_open=above, max_open=below)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        good = not isinstance(value, str) or _REAL.fullmatch(value)
        if not good or not math.isfinite(float(value)):
            rule = f"is not a number in the range {self._describe_range()}"
            self.fail(f"{_shown(value)} {rule}{_origin(param, ctx)}.", param, ctx)
        return super().convert(value, param, ctx)


class WholeList(click.ParamType[tuple[int, ...]]):
    """Whole numbers with commas between them, each from `least` to `most`; a tuple."""

    name = "integers"

    def __init__(self, least: int, most: int, longest: int = 100) -> None:
        self.each = Whole(least, most)
        self.longest = longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not 1 <= len(parts) <= self.longest:
            rule = f"is not a list of 1 to {self.longest} numbers such as 1,8"
            self.fail(f"{_shown(value)} {rule}.", param, ctx)
        return tuple(self.each.convert(part, param, ctx) for part in parts)


def _origin(param: click.Parameter | None, ctx: click.Context | None) -> str:
    """Names the variable that a value comes from, when it was not given as an option."""
    if param is None or ctx is None or not param.name or not param.envvar:
        return ""
    given = ctx.get_parameter_source(param.name)
    return f" (from {param.envvar})" if given is ParameterSource.ENVIRONMENT else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
