"""Writes docs/reference from the code: `python -m trimwheel_cli.generate_docs [--check]`.

Each page has one source: kinds from the CRDs, the policy from its knobs, metrics from their table,
the CLI from the click commands. `--check` writes nothing and exits 1 when a page is not current.
The page of the CLI loads every verb, so it takes an environment with all extras.
"""

from __future__ import annotations

from pathlib import Path

import click

from trimwheel_cli.reference import (
    cli_page,
    kinds_page,
    metrics_page,
    policy_page,
    reasons_page,
)
from trimwheel_console import keep_current, output_option

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def pages() -> dict[Path, str]:
    """Every generated page and its content."""
    return {
        REFERENCE / "kinds.md": kinds_page.render(),
        REFERENCE / "policy.md": policy_page.render(),
        REFERENCE / "metrics.md": metrics_page.render(),
        REFERENCE / "cli.md": cli_page.render(),
        REFERENCE / "reasons.md": reasons_page.render(),
    }


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 when a page is not current.")
@output_option
def main(check: bool, output: str) -> None:
    """Generate docs/reference."""
    keep_current(pages(), REFERENCE, check=check, output=output)


if __name__ == "__main__":
    main()
