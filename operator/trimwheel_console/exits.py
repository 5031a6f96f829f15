"""Exit codes of every verb, and how an error becomes one: its sentence, its code.

`ErrorHandling` is mixed into the root group, so verbs just raise from `trimwheel_api.errors`.
"""

from __future__ import annotations

import errno
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
INTERRUPTED = 130
"""Ctrl-C, as shells have it."""

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


class HandlingCommand(click.Command):
    """A command that may raise any TrimwheelError or be interrupted: a sentence on stderr, then
    the exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; a TrimwheelError becomes a message and its exit code."""
        try:
            return super().invoke(ctx)
        except TrimwheelError as error:
            _say(ctx, error_body(error)["error"], str(error))
            sys.exit(exit_code(error))
        except OSError as error:
            if error.errno in (errno.EPIPE, None):  # click knows what a closed pipe means
                raise
            # The machine's: a full disk, a folder that may not be written, a file that is none.
            where = f"{error.filename}: " if error.filename else ""
            text = f"{where}{error.strerror}"
            _say(ctx, {"type": type(error).__name__, "message": text}, text)
            sys.exit(USAGE)
        except KeyboardInterrupt as interrupt:
            kept = getattr(interrupt, "__notes__", [])
            click.echo("; ".join([f"\ninterrupted: {_called(ctx)}", *kept]), err=True)
            sys.exit(INTERRUPTED)


class ErrorHandling(HandlingCommand, click.Group):
    """The same for a group and all its verbs."""


def _say(ctx: click.Context, body: dict[str, Any], text: str) -> None:
    if ctx.meta.get(META_OUTPUT) == "json":
        click.echo(json.dumps({"error": body}, ensure_ascii=False), err=True)
    else:
        click.echo(f"{click.style('error', fg='red')}: {text}", err=True)


def _called(ctx: click.Context) -> str:
    """The verb that ran, as it was called; the options are the caller's to know."""
    words = [ctx.command_path]
    command: click.Command | None = ctx.command
    for word in sys.argv[1:]:
        if not isinstance(command, click.Group):
            break
        command = command.get_command(ctx, word)
        if command is None:
            break
        words.append(word)
    return " ".join(words)
