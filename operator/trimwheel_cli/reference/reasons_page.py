"""docs/reference/reasons.md: every reason of a condition, decision or Event, from the one list.

The list is `trimwheel_api.names.Reason`; the sentence of each is the comment behind it, and the
heading of each part the comment above it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from trimwheel_api import names
from trimwheel_cli.reference.markdown import code, page, table

_INTRO = (
    "Reasons of conditions (`kubectl get amodel NAME -o yaml`, `trimwheel explain`), of decisions "
    "(`trimwheel history`) and of Events. The message beside one names the object and the value."
)
_PART = re.compile(r"^    # (?P<kind>\w+)$")
_REASON = re.compile(r'^    [A-Z_]+ = "(?P<reason>\w+)"(?:  # (?P<sentence>.+))?$')


@dataclass(frozen=True)
class Line:
    """One reason."""

    kind: str
    reason: str
    sentence: str


def lines() -> Iterator[Line]:
    """All reasons, in the order of the list."""
    kind = ""
    for text in inspect.getsource(names.Reason).splitlines():
        if part := _PART.match(text):
            kind = part["kind"]
        elif found := _REASON.match(text):
            yield Line(kind, found["reason"], found["sentence"] or "")


def render() -> str:
    """The page."""
    found = list(lines())
    kinds = list(dict.fromkeys(line.kind for line in found))
    parts = [_part(kind, [line for line in found if line.kind == kind]) for kind in kinds]
    return page("Reasons", "trimwheel_api.names", _INTRO, *parts)


def _part(kind: str, found: list[Line]) -> str:
    rows = ((code(line.reason), line.sentence) for line in found)
    return f"## {kind}\n\n{table(('reason', 'meaning'), rows)}"
