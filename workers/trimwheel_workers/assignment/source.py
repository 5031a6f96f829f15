"""Where assignments come from: the protocol, and a file for tests, benches and life without a
cluster.

`kubernetes_source` is the implementation of production. A source only reports what it reads; what a
reading means is `rule`'s.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec


@dataclass(frozen=True, slots=True)
class Seen:
    """The object was read."""

    uid: str
    spec: PolicyAssignmentSpec


@dataclass(frozen=True, slots=True)
class Gone:
    """The object does not exist; whoever has a last good one keeps it."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The object could not be read; the source goes on trying."""

    message: str


Event = Seen | Gone | Unreachable


class AssignmentSource(Protocol):
    """Reads one PolicyAssignment for as long as it is asked to.

    Obligations: `events` never raises for a service that is away or an object that is broken, it
    yields Unreachable and goes on; it yields every reading, also equal ones; it ends soon after
    `stop` is set and `close` was called. It is driven by one thread; `close` comes from another.
    """

    def events(self, stop: threading.Event) -> Iterator[Event]:
        """Readings in order, blocking in between."""

    def close(self) -> None:
        """Make a blocked `events` return."""


def parse_spec(text: str | bytes) -> tuple[str, PolicyAssignmentSpec]:
    """(uid, spec) of a whole PolicyAssignment or of its bare spec as JSON. Raises ValueError."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"assignment: must be an object, but got {type(value).__name__}")
    uid = str(value.get("metadata", {}).get("uid", "file"))
    try:
        return uid, PolicyAssignmentSpec.model_validate(value.get("spec", value))
    except ValidationError as error:
        raise ValueError(f"assignment: {error.errors()[0]}") from error


class FileSource:
    """A JSON file with a PolicyAssignment, or its spec; looked at every `interval` seconds."""

    def __init__(self, path: Path, interval: float = 0.1) -> None:
        self._path = path
        self._interval = interval

    def events(self, stop: threading.Event) -> Iterator[Event]:
        """A reading whenever the file's time or size changed."""
        before: tuple[int, int] | None = None
        while not stop.is_set():
            try:
                status = self._path.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                if stamp != before:
                    uid, spec = parse_spec(self._path.read_bytes())
                    before = stamp
                    yield Seen(uid, spec)
            except FileNotFoundError:
                before = None
                yield Gone()
            except (OSError, ValueError) as error:
                yield Unreachable(f"{self._path}: {error}")
            stop.wait(self._interval)

    def close(self) -> None:
        """Nothing blocks for longer than the interval."""
