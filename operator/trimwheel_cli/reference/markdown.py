"""The few Markdown shapes that the reference pages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def page(title: str, source: str, *parts: str) -> str:
    """A generated page: heading, where it comes from, parts set apart by blank lines."""
    note = f"<!-- Generated from {source} by python -m trimwheel_cli.generate_docs. -->"
    return "\n\n".join([f"# {title}", note, *parts]).rstrip() + "\n"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [list(headers), ["---"] * len(headers)]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: object) -> str:
    """Inline code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""
