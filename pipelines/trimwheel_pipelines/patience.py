"""Tries a call again while a service is away, with growing pauses and an end.

Used where the pipelines depend on a service that may be gone for a minute (MLflow, the API server,
the record store). Clock and sleep are arguments of the object, so tests need no waiting.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from trimwheel_api.errors import Unavailable

log = logging.getLogger(__name__)
AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True)
class Patience:
    """How long, and how often, an unavailable service is asked again."""

    total: float = 300.0
    """Seconds after which the last `Unavailable` is raised."""
    first: float = 1.0
    """Seconds before the second try; doubles up to `longest`."""
    longest: float = 20.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def call(self, what: str, action: Callable[[], AnswerT]) -> AnswerT:
        """The answer of `action`; other errors than `Unavailable` pass at once."""
        end, pause = self.clock() + self.total, self.first
        while True:
            try:
                return action()
            except Unavailable as error:
                if self.clock() + pause > end:
                    raise
                log.warning("%s: %s. Trying again in %g s.", what, error, pause)
            self.sleep(pause)
            pause = min(2 * pause, self.longest)
