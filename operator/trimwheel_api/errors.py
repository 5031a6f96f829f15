"""The exception tree of Trimwheel; every package raises from here.

    TrimwheelError
    +-- InvalidInput          the caller's fault; never retried
    |   +-- PolicyInvalid     a policy document breaks a rule
    |   +-- SpecInvalid       an object's spec breaks a rule
    |   +-- DigestMismatch    bytes are not those that a digest names
    |   +-- RequestInvalid    an inference request breaks a rule (HTTP 4xx)
    +-- Conflict              somebody else wrote first; gather again
    +-- Refused               an authority said no; asking again does not help
    +-- Unavailable           a service did not answer; retried with back-off
    |   +-- Overloaded        we answered "later" (HTTP 429 or 503)
    +-- NotEnoughData         records or audits are too few for the question asked
    +-- SetupFailed           a prerequisite of the machine is missing

`InvalidInput` carries field, rule, value and remedy, so that every surface (HTTP body, condition
message, CLI line) says the same four things.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection


class TrimwheelError(Exception):
    """Base of all errors that Trimwheel raises on purpose."""


class InvalidInput(TrimwheelError):
    """Something a person or program gave us breaks a rule."""

    def __init__(self, field: str, rule: str, value: object = None, remedy: str = "") -> None:
        self.field = field
        self.rule = rule
        self.value = value
        self.remedy = remedy
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """`field: rule, but got value. remedy`"""
        text = f"{self.field}: {self.rule}, but got {quote(self.value)}"
        return f"{text}. {self.remedy}" if self.remedy else text

    def details(self) -> dict[str, object]:
        """What a program reads of the error, beside the sentence for a person."""
        return {"field": self.field, "rule": self.rule, "value": quote(self.value)}

    def as_body(self) -> dict[str, object]:
        """Details and sentence in one object: the error of a verb with `-o json`."""
        return self.details() | {"message": self.sentence()}


class PolicyInvalid(InvalidInput):
    """A policy document breaks a rule."""


class SpecInvalid(InvalidInput):
    """An object's spec breaks a rule that the API server could not check."""


class DigestMismatch(InvalidInput):
    """The bytes at hand are not the bytes that a digest names."""


class RequestInvalid(InvalidInput):
    """An inference request breaks a rule; answered with a 4xx that names the field."""


class Conflict(TrimwheelError):
    """The object changed since it was read; gather again and decide anew."""


class Refused(TrimwheelError):
    """Whoever decides (RBAC, an admission policy) said no; the message is theirs."""


class Unavailable(TrimwheelError):
    """A service did not answer in time; try again later."""


class Overloaded(Unavailable):
    """The queue is full; `retry_after` seconds is when trying again makes sense."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class NotEnoughData(TrimwheelError):
    """Too few records for the question; says how many there are and how many it takes."""

    def __init__(self, what: str, have: int, need: int) -> None:
        self.what = what
        self.have = have
        self.need = need
        super().__init__(f"{what}: {have} are there, {need} are needed")


class SetupFailed(TrimwheelError):
    """A prerequisite of the machine is missing; the message says which and how to get it."""


_QUOTE_CHARACTERS = 120
_QUOTE_ITEMS = 6
_QUOTE_DEPTH = 3
_LONGEST_NUMBER = 400
"""Bits of an integer that is written out; Python refuses to write very long ones."""


def quote(value: object) -> str:
    """A value as an error repeats it: its repr, cut at 120 characters.

    The work is bounded too, whatever the value: a megabyte of text or a list nested a thousand deep
    costs as little as a word.
    """
    text = _bounded(value, _QUOTE_DEPTH)
    return text if len(text) <= _QUOTE_CHARACTERS else text[: _QUOTE_CHARACTERS - 3] + "..."


def _bounded(value: object, depth: int) -> str:
    if isinstance(value, (str, bytes)):
        return repr(value[:_QUOTE_CHARACTERS])
    if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, dict):
        return _bounded_items(value, "{}", depth)
    if isinstance(value, list):
        return _bounded_items(value, "[]", depth)
    if isinstance(value, tuple):
        return _bounded_items(value, "()", depth)
    return repr(value)


def _bounded_items(value: Collection[object], brackets: str, depth: int) -> str:
    if depth == 0 and value:
        return f"{brackets[0]}...{brackets[1]}"
    some = list(itertools.islice(value, _QUOTE_ITEMS))
    if isinstance(value, dict):
        parts = [f"{_bounded(k, 0)}: {_bounded(value[k], depth - 1)}" for k in some]
    else:
        parts = [_bounded(item, depth - 1) for item in some]
    more = ", ..." if len(value) > len(some) else "," * (brackets == "()" and len(some) == 1)
    return f"{brackets[0]}{', '.join(parts)}{more}{brackets[1]}"
