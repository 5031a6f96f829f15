"""Times as they stand in objects: RFC 3339, UTC; seconds in conditions, microseconds elsewhere.

Used by operator, pipelines, CLI and demo. Pure; the current time is always an argument.
"""

from __future__ import annotations

from datetime import UTC, datetime

from trimwheel_api.errors import SpecInvalid

EPOCH = datetime.fromtimestamp(0, UTC)


def to_text(moment: datetime) -> str:
    """RFC 3339 with whole seconds, as `metav1.Time` writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_micro(moment: datetime) -> str:
    """RFC 3339 with microseconds, as `metav1.MicroTime` writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse(text: str) -> datetime | None:
    """The moment behind a time of either form; None for an empty or unreadable one."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def parse_or(text: str, fallback: datetime) -> datetime:
    """As `parse`, with an answer for the unreadable."""
    found = parse(text)
    return fallback if found is None else found


def instant(text: str) -> datetime:
    """As `parse`, for a time that has to be there. Raises SpecInvalid for anything else."""
    found = parse(text)
    if found is None:
        raise SpecInvalid("time", "must be RFC 3339", text)
    return found
