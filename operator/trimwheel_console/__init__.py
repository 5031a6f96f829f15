"""How every Trimwheel command talks to a person or a script: output, exit codes, errors, progress.

Used by the CLI and by each package that owns a verb. Knows click and rich, and of Trimwheel only
the exception tree; what a verb does stays with its package.
"""

from trimwheel_console.exits import NEGATIVE, OK, UNREACHABLE, USAGE, exit_code
from trimwheel_console.generated import keep_current
from trimwheel_console.output import Output, emit, note, output_option, text_table
from trimwheel_console.progress import progress

__all__ = [
    "NEGATIVE",
    "OK",
    "UNREACHABLE",
    "USAGE",
    "Output",
    "emit",
    "exit_code",
    "keep_current",
    "note",
    "output_option",
    "progress",
    "text_table",
]
