"""How the binaries that are missing will come, decided before the plan is printed.

Called by `__main__`, which prints it, checks the machine by it and passes it to the step, so that
plan and deed agree. Asks the origins of releases, for a few seconds at most; gets nothing.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimwheel_demo.setup.cached import missing_binaries

if TYPE_CHECKING:
    from trimwheel_local.ways import Way


@dataclass(frozen=True)
class Supply:
    """The way of each missing binary, or why there is none."""

    ways: tuple[Way, ...] = ()
    problem: str = ""

    @property
    def built(self) -> list[str]:
        """The binaries that Go has to build."""
        return [way.name for way in self.ways if way.artifact is None]

    @property
    def reasons(self) -> str:
        """Why they are built and not downloaded; empty when a build was asked for."""
        from trimwheel_local.ways import reasons

        return reasons(self.ways)

    def lines(self) -> list[str]:
        """What the plan says, a line each."""
        return [*_download_lines(self), *_build_lines(self)]


def look() -> Supply:
    """Ask what can be had; never raises."""
    from trimwheel_api.errors import TrimwheelError
    from trimwheel_local.ways import plan

    try:
        names = missing_binaries()
        return Supply(tuple(plan(names)) if names else ())
    except TrimwheelError as error:
        return Supply(problem=str(error))


def _download_lines(supply: Supply) -> list[str]:
    from trimwheel_local.reporting import megabytes

    ways = [way for way in supply.ways if way.artifact is not None]
    if not ways:
        return []
    names = ", ".join(way.name for way in ways)
    artifacts = {way.artifact for way in ways if way.artifact is not None}
    hosts = ", ".join(sorted({artifact.host for artifact in artifacts}))
    size = megabytes(sum(artifact.size for artifact in artifacts))
    return _wrapped(
        "will get",
        f"{names}: official releases, about {size}, from {hosts}, checked against the checksums "
        "published beside them",
    )


def _build_lines(supply: Supply) -> list[str]:
    from trimwheel_local.golang import USUAL_SECONDS

    if not supply.built:
        return []
    minutes = max(1, round(sum(USUAL_SECONDS[name] for name in supply.built) / 60))
    text = (
        f"{', '.join(supply.built)} with Go: about {minutes} min on two cores, 0.6 GB (3 GB with "
        "Go's cache)"
    )
    if supply.reasons:
        text += f", since the official releases cannot be had ({supply.reasons})"
    return _wrapped("will build", text)


def _wrapped(label: str, text: str) -> list[str]:
    lines = textwrap.wrap(text, 84, break_long_words=False, break_on_hyphens=False)
    return [f"  {label if number == 0 else '':<11} {line}" for number, line in enumerate(lines)]
