"""Small file helpers: atomic and private writes. Used by every part that keeps state."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def private_folder(path: Path) -> Path:
    """Create `path` (and parents) readable by its owner alone."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` in one step, never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as JSON, 0600."""
    write_atomic(path, json.dumps(value, indent=1).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when there is no such file, or it is damaged.

    All of them are written whole (`write_json`): a damaged one was spoilt by somebody else, and
    says as little as one that is missing.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, for error messages; empty when there is none."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
