"""A thread that does the latest thing it was asked, and tries again until it worked or is outdated.

Acknowledgements go through it: only the newest matters, an API server may be away, and the watch
must not wait for either.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from trimwheel_api.errors import TrimwheelError

_LOG = logging.getLogger(__name__)
_FIRST_RETRY = 0.2
_LAST_RETRY = 10.0

T = TypeVar("T")


class Latest(Generic[T]):
    """Runs `action` on the newest value submitted; TrimwheelErrors are retried with back-off."""

    def __init__(self, name: str, action: Callable[[T], None]) -> None:
        self._action = action
        self._condition = threading.Condition()
        self._wanted: list[T] = []  # at most one
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def submit(self, value: T) -> None:
        """Replace whatever is still to be done."""
        with self._condition:
            self._wanted = [value]
            self._condition.notify()

    def stop(self, timeout: float = 1.0) -> None:
        """End after the action in hand, or after `timeout`."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        delay = _FIRST_RETRY
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._wanted or self._stopping)
                if self._stopping:
                    return
                value = self._wanted.pop()
            try:
                self._action(value)
                delay = _FIRST_RETRY
            except TrimwheelError as error:
                _LOG.warning("%s; again in %.1f s", error, delay)
                self._put_back(value, delay)
                delay = min(delay * 2, _LAST_RETRY)

    def _put_back(self, value: T, delay: float) -> None:
        """Keep a failed value unless a newer one came, then wait out the back-off."""
        with self._condition:
            if not self._wanted:
                self._wanted = [value]
            self._condition.wait_for(
                lambda: self._stopping or self._wanted[-1] is not value, timeout=delay
            )
