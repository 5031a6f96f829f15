"""Where the demo keeps its things, and what it calls them.

Used by every module of this package; reads the environment and the session file, writes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trimwheel_api.errors import InvalidInput, SetupFailed
from trimwheel_local.names import MAX_INDEX

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "snippets"
MODEL = "snippets"
MODEL_NAME = "trimwheel-demo.snippets"
"""MLflow registered model of the trained weights."""
APPROVER, EDITOR, WAIVER, OPERATOR_ON_CALL = "alice", "bob", "carol", "dave"
"""People of the story: who may approve, who may only edit, who may waive, who may roll back."""


@dataclass(frozen=True, slots=True)
class Places:
    """Folders and files of one demo."""

    state: Path
    index: int = 0

    @property
    def demo(self) -> Path:
        """Everything of the demo that is not the cluster's."""
        return self.state / f"demo-{self.index}"

    @property
    def records(self) -> Path:
        """Audit records: the record store's address is this folder."""
        return self.demo / "records"

    @property
    def ledger(self) -> Path:
        """The ledger's SQLite file."""
        return self.demo / "ledger.sqlite"

    @property
    def load(self) -> Path:
        """Control and statistics of the load generator."""
        return self.demo / "load"

    @property
    def session(self) -> Path:
        """What `trimwheel env` and `make down` need to know of a running demo."""
        return self.demo / "session.json"


def default_places(index: int | None = None) -> Places:
    """The places of this checkout; TRIMWHEEL_STATE moves the state folder."""
    state = Path(os.environ.get("TRIMWHEEL_STATE") or ROOT / ".trimwheel")
    number = whole_number(os.environ, "TRIMWHEEL_INDEX", MAX_INDEX) if index is None else index
    return Places(state.resolve(), number)


def whole_number(environ: Mapping[str, str], name: str, largest: int) -> int:
    """A variable that holds a number; 0 when it is unset. Raises InvalidInput."""
    text = environ.get(name) or "0"
    digits = text.isascii() and text.isdigit() and len(text) <= 18
    if not digits or int(text) > largest:
        rule = f"must be a whole number from 0 to {largest}"
        raise InvalidInput(name, rule, text, f"Leave it out, or set {name}=1")
    return int(text)


def read_session(path: Path) -> dict[str, str]:
    """What a demo left for other commands. Raises SetupFailed when it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SetupFailed(_damaged(path, str(error))) from error
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise SetupFailed(_damaged(path, "it holds something else than texts by name"))
    return found


def _damaged(path: Path, reason: str) -> str:
    return f"{path} cannot be read ({reason}): remove it, then `make demo` or `make down` goes on"
