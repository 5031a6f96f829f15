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
        text = f"{self.field}: {self.rule}, but got {_shorten(self.value)}"
        return f"{text}. {self.remedy}" if self.remedy else text

    def as_body(self) -> dict[str, object]:
        """The error object of the HTTP interface."""
        return {
            "field": self.field,
            "rule": self.rule,
            "value": _shorten(self.value),
            "message": self.sentence(),
        }


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


def _shorten(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
