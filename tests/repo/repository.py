"""What the repository tests share: its root, its tracked files, its packages."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SOURCE_ROOTS = ("operator", "workers", "pipelines", "dashboards")


@cache
def tracked() -> tuple[Path, ...]:
    """Files that git knows or would add, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return tuple(Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file())


def modules() -> list[Path]:
    """Python files of the packages."""
    return [path for path in tracked() if path.suffix == ".py" and path.parts[0] in SOURCE_ROOTS]


def packages() -> list[Path]:
    """Top-level packages, such as operator/trimwheel_api."""
    return sorted({Path(*path.parts[:2]) for path in modules() if path.name == "__init__.py"})


@cache
def tree(path: Path) -> ast.Module:
    """A parsed Python file."""
    return ast.parse((ROOT / path).read_text())


@cache
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
