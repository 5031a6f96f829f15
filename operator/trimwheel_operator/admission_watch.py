"""Tests admission every minute while this operator decides, whether or not there is any model.

Made by `app`. Without it a change of the policies, such as an upgrade, would be dated by the next
object that asks, and that object would be found to be too old to count.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from trimwheel_operator.admission import AdmissionTest

log = logging.getLogger(__name__)

PAUSE = 1.0
"""Seconds between looks at the lock, and at whether the test is due."""


class AdmissionWatch:
    """A daemon thread that keeps the test fresh in the release's namespace."""

    def __init__(self, test: AdmissionTest, held: Callable[[], bool], namespace: str) -> None:
        self._test = test
        self._held = held
        self._namespace = namespace
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="admission", daemon=True)

    def start(self) -> None:
        """Test from now on."""
        self._thread.start()

    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Test no more."""
        self._stop.set()

    def _run(self) -> None:
        said = ""
        while not self._stop.wait(PAUSE):
            if not self._held():
                continue
            try:
                message = self._test.check(self._namespace).message
            except (
                Exception
            ) as error:  # whatever it was: without this thread changes are dated late
                message = f"the self-test of admission failed: {error}"
            if message != said:
                log.log(logging.WARNING if message else logging.INFO,
                        "%s", message or "every admission policy is in force")  # fmt: skip
            said = message
