"""Exit codes of every verb, and how an error becomes one: its sentence, its code.

`ErrorHandling` is mixed into the root group, so verbs just raise from `trimwheel_api.errors`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from trimwheel_api.errors import InvalidInput, SetupFailed, TrimwheelError, Unavailable
from trimwheel_console.output import META_OUTPUT

OK = 0
"""Done, or the answer is yes."""
NEGATIVE = 1
"""The question was answered, and the answer is no."""
USAGE = 2
"""The call was wrong, or a prerequisite is missing: changing the call or the machine helps."""
UNREACHABLE = 3
"""A service did not answer: trying again later may help."""

_CODES: tuple[tuple[type[TrimwheelError], int], ...] = (
    (InvalidInput, USAGE),
    (SetupFailed, USAGE),
    (Unavailable, UNREACHABLE),
)


def exit_code(error: TrimwheelError) -> int:
    """The code of an error: usage, not reachable, and for all others a negative answer."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), NEGATIVE)


def error_body(error: TrimwheelError) -> dict[str, Any]:
    """The error object that `-o json` writes to stderr; the same four fields as over HTTP."""
    body: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, InvalidInput):
        body |= error.as_body() | {"remedy": error.remedy}
    return {"error": body}


class ErrorHandling(click.Group):
    """A group whose verbs may raise any TrimwheelError: it is told on stderr, then exits."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; a TrimwheelError becomes a message and its exit code."""
        try:
            return super().invoke(ctx)
        except TrimwheelError as error:
            if ctx.meta.get(META_OUTPUT) == "json":
                click.echo(json.dumps(error_body(error), ensure_ascii=False), err=True)
            else:
                click.echo(f"{click.style('error', fg='red')}: {error}", err=True)
            sys.exit(exit_code(error))
