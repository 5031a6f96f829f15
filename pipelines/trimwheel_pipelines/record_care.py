"""How long records live: by age, by owner, and after their model.

Called by the watch loop on every pass; looks at each model, and at the store as a whole, once an
hour. Deleting is `retention`'s and `ownership`'s. Leaves out tenants: a person asks for those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from trimwheel_api.times import instant
from trimwheel_api.values import seconds
from trimwheel_pipelines import checkpoints
from trimwheel_pipelines.ownership import Claim, claim, delete_abandoned
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.retention import purge
from trimwheel_pipelines.view import View

log = logging.getLogger(__name__)

EVERY = 3600.0
Living = Callable[[], set[tuple[str, str]]]


@dataclass
class RecordCare:
    """Deletes what is too old; `keep_deleted` seconds is how long records outlive their model."""

    root: str
    keep_deleted: float
    _done: dict[str, float] = field(default_factory=dict)
    _swept: float = float("-inf")

    def purge(self, view: View, reader: RecordReader, account: str) -> None:
        """Delete a model's records beyond its retention or of a former owner; claim the rest.

        An object of the same name that was deleted before this one was made has left records: they
        go as if it had been deleted when this one was created.
        """
        model, now = view.model, view.now.timestamp()
        uid, retention = model.metadata.uid, seconds(model.spec.audits.retention)
        if not self.root or now - self._done.get(uid, float("-inf")) < EVERY:
            return
        keep = min(self.keep_deleted, retention)
        created = instant(model.metadata.creation_timestamp).timestamp()
        before = max(now - retention, created if now - created >= keep else 0.0)
        gone = purge(reader, before)
        owner = Claim(uid, account, now, keep)
        claim(self.root, model.metadata.namespace, model.name, owner)
        self._done[uid] = now
        if gone:
            log.info("%s: %d segments were beyond retention.", view.subject, gone)

    def sweep(self, living: Living, uids: set[str], account: str, now: float) -> None:
        """Delete the records of models that are gone for good, and checkpoints of all that are.

        `living`: asked only when it is time to look; `uids`: of the models of this pass.
        """
        if not self.root or now - self._swept < EVERY:
            return
        delete_abandoned(self.root, account, living(), now)
        checkpoints.keep_only(self.root, account, uids)
        self._swept = now

    def keep_only(self, uids: set[str]) -> None:
        """Forget models that are gone."""
        self._done = {uid: when for uid, when in self._done.items() if uid in uids}
