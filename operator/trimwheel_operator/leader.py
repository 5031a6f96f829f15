"""Who decides: one Lease in the release's namespace, and no write without it.

Kopf's peering is no leader election: two operators would both act. The holder renews the Lease;
a process that could not renew for two thirds of its time considers it lost, by its monotonic
clock, before anybody else may take it. So an operator that was stopped (SIGSTOP, a paused VM)
finds on waking that it may not write; and should it be stopped between that check and the write,
the write carries a resourceVersion that its successor has moved on from.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Conflict, TrimwheelError, Unavailable
from trimwheel_api.times import to_micro
from trimwheel_operator.cluster import KubeApi, path_of

log = logging.getLogger(__name__)

RENEWALS = 5
"""Attempts to renew within the lease's time."""
TRUSTED_SHARE = 2 / 3
"""Of the lease's time, for which the holder trusts in it."""


class NotLeader(Unavailable):
    """Another operator decides, or this one cannot tell: nothing may be written."""


class Leader:
    """The lock, kept by a thread of its own; `held` may be asked from anywhere."""

    def __init__(
        self,
        api: KubeApi,
        namespace: str,
        identity: str,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._path = path_of("Lease", namespace, names.OPERATOR_LEASE)
        self._collection = path_of("Lease", namespace)
        self._identity = identity
        self._seconds = seconds
        self._clock = clock
        self._renewed_at: float | None = None
        self._seen: tuple[str, float] = ("", 0.0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def held(self) -> bool:
        """Whether this process may write now."""
        renewed = self._renewed_at
        return renewed is not None and self._clock() - renewed < self._seconds * TRUSTED_SHARE

    def require(self) -> None:
        """Raises NotLeader unless this process may write now. Called before every write."""
        if not self.held():
            raise NotLeader(f"lease {names.OPERATOR_LEASE} is not ours: nothing is written")

    def alive(self) -> bool:
        """Whether the thread that keeps the lock still runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Keep the lock from now on."""
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give the lock back, so that a successor need not wait."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self._seconds)
        if self.held():
            self._renewed_at = None
            try:
                self._release()
            except TrimwheelError as error:
                log.info("lease not given back, it will run out: %s", error)

    def attempt(self) -> bool:
        """Take or renew the lock once; whether it is held."""
        began = self._clock()
        try:
            taken = self._attempt(began)
        except (Conflict, Unavailable) as error:
            log.info("lease %s not renewed, trying again: %s", names.OPERATOR_LEASE, error)
            return self.held()
        if taken and self._renewed_at is None:
            log.info("this operator (%s) decides from now on", self._identity)
        # The time before the request: what the server stored is at most that old.
        self._renewed_at = began if taken else None
        return taken

    def _run(self) -> None:
        while not self._stop.wait(
            0 if self._renewed_at is None and self._seen[0] == "" else self._seconds / RENEWALS
        ):
            try:
                self.attempt()
            except Exception:  # whatever it was: without this thread nobody decides any more
                log.exception("lease %s: trying again", names.OPERATOR_LEASE)
                self._stop.wait(self._seconds / RENEWALS)

    def _attempt(self, began: float) -> bool:
        lease = self._api.find(self._path)
        if lease is None:
            self._api.create(self._collection, self._lease({}))
            return True
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, began)
        silent = began - self._seen[1] >= float(spec.get("leaseDurationSeconds") or self._seconds)
        if holder not in ("", self._identity) and not silent:
            return False
        # resourceVersion: of two that find it free, one gets a 409.
        written = self._api.replace(self._path, self._lease(spec) | {"metadata": lease["metadata"]})
        self._seen = (written["metadata"]["resourceVersion"], began)
        return True

    def _release(self) -> None:
        lease = self._api.find(self._path)
        if lease and (lease.get("spec") or {}).get("holderIdentity") == self._identity:
            spec = lease["spec"] | {"holderIdentity": ""}
            self._api.replace(self._path, lease | {"spec": spec})

    def _lease(self, spec: dict[str, Any]) -> dict[str, Any]:
        now = to_micro(datetime.now(UTC))
        same = spec.get("holderIdentity") == self._identity
        transitions = int(spec.get("leaseTransitions") or 0)
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": names.OPERATOR_LEASE,
                "labels": {names.LABEL_PART_OF: names.PART_OF},
            },
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._seconds)),
                "acquireTime": spec.get("acquireTime", now) if same else now,
                "renewTime": now,
                "leaseTransitions": transitions + (0 if same or not spec else 1),
            },
        }
