"""What a verb prints: JSON for programs, aligned text for people; both to stdout, notes to stderr.

A verb takes `@output_option`, which passes `output` ("table" or "json"), and ends with
`emit(value, output, table=...)`. `value` is the whole truth; the table is a view of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import click
from pydantic import BaseModel

Output = Literal["table", "json"]
META_OUTPUT = "trimwheel.output"
"""Key in the click context's `meta` under which errors find the wished format."""

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])
_GAP = "   "


def output_option(function: AnyFunction) -> AnyFunction:
    """Add `-o/--output table|json` to a verb; the value arrives as argument `output`."""

    def remember(ctx: click.Context, _: click.Parameter, value: str) -> str:
        ctx.meta[META_OUTPUT] = value
        return value

    option = click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        # Read first: what another option's callback raises is told in the wished format.
        is_eager=True,
        callback=remember,
        help="table for people, json for programs.",
    )
    return option(function)


def emit(
    value: Any, output: str, *, table: str | Callable[[], str] | None = None, newline: bool = True
) -> None:
    """Print a result to stdout.

    `value` is anything JSON can say (pydantic models included, at any depth); `table` is the text
    for people, or a function that makes it. Without a table both formats print JSON.
    """
    if output == "json" or table is None:
        text = json.dumps(value, default=_plain, indent=2, ensure_ascii=False)
    else:
        text = table() if callable(table) else table
    click.echo(text, nl=newline)


def note(message: str) -> None:
    """A line for the person who waits, on stderr: it never mixes with a result."""
    click.echo(message, err=True)


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as kubectl prints them: upper-case headers, three spaces, no lines."""
    lines = [[header.upper() for header in headers]]
    lines += [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headers))]
    return "\n".join(
        _GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    return str(value)
