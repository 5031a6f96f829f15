"""Keeps MLflow's aliases on the policies that serve, and the ledger informed of every move.

`stable` is on the policy that was promoted last, `candidate` on the one that is being rolled out;
at full depth, and between rollouts, nothing carries them. Called by the watch loop for each model.
MLflow keeps no history of aliases and has no compare-and-set, so each move is written to the ledger
first, with what it was before; a loop that dies between the two moves the alias on its next start
without writing a second row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from trimwheel_api import names
from trimwheel_api.errors import PolicyInvalid
from trimwheel_api.kinds import AdaptivePolicy
from trimwheel_api.policy import DENSE
from trimwheel_api.times import to_text
from trimwheel_pipelines.ledger import Event, Ledger, payload_of
from trimwheel_pipelines.registry import Registry
from trimwheel_pipelines.view import View, digest_of_object, promoted, rolled_out

log = logging.getLogger(__name__)

KIND = "AliasMoved"
ASK_EVERY = 60.0
"""Seconds between two looks at an alias that is where it should be."""


class Aliases:
    """The aliases of all models on one MLflow."""

    def __init__(
        self, registry: Registry, ledger: Ledger, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry, self._ledger, self._clock = registry, ledger, clock
        self._right: dict[tuple[str, str], tuple[str | None, float]] = {}
        self._wait: dict[str, float] = {}

    def follow(self, view: View) -> None:
        """Move the aliases that are not where they should be.

        Raises Unavailable while MLflow or the ledger is away; then asks again after a while.
        """
        if self._clock() < self._wait.get(view.subject, 0.0):
            return
        status = view.model.status
        intended, candidate = status.intended, status.candidate
        for alias, is_named, policy in (
            (names.ALIAS_STABLE, intended is not None and intended.digest != DENSE.digest,
             promoted(view)),
            (names.ALIAS_CANDIDATE, candidate is not None, rolled_out(view)),
        ):  # fmt: skip
            # A policy that the status names and nobody can read says nothing about its alias.
            if policy is not None or not is_named:
                self._follow(view, alias, policy)

    def keep_only(self, subjects: set[str]) -> None:
        """Forget models that are gone."""
        self._right = {key: value for key, value in self._right.items() if key[0] in subjects}
        self._wait = {key: value for key, value in self._wait.items() if key in subjects}

    def _follow(self, view: View, alias: str, policy: AdaptivePolicy | None) -> None:
        now, key = self._clock(), (view.subject, alias)
        known, asked = self._right.get(key, (None, 0.0))
        name = policy.name if policy else ""
        if known == name and now - asked < ASK_EVERY:
            return
        # Until this pass has ended well, leave MLflow alone for a while: a call to a dead server
        # takes seconds, which the other models would wait for.
        self._wait[view.subject] = now + ASK_EVERY / 2
        if policy is None:
            self._move(view, alias, "", "")
        else:
            self._place(view, alias, policy)
        del self._wait[view.subject]
        self._right[key] = (name, now)

    def _place(self, view: View, alias: str, policy: AdaptivePolicy) -> None:
        """Put an alias on a policy, if it was ever registered."""
        try:
            digest = digest_of_object(policy)
        except PolicyInvalid as error:
            log.warning("%s: alias %s stays where it is: %s", view.subject, alias, error)
            return
        namespace, model = view.model.metadata.namespace, view.model.name
        wanted = _version(policy.spec.mlflow) or self._registry.version_of(namespace, model, digest)
        if not wanted:
            log.debug("%s: the %s policy was never registered.", view.subject, alias)
            return
        self._move(view, alias, digest, wanted)

    def _move(self, view: View, alias: str, digest: str, wanted: str) -> None:
        """Put an alias on a version, or take it off where none is wanted; the ledger first."""
        namespace, model = view.model.metadata.namespace, view.model.name
        before = self._registry.alias(namespace, model, alias)
        if before == wanted:
            return
        payload = {"alias": alias, "before": before, "after": wanted, "policyDigest": digest}
        uid = f"{view.model.metadata.uid}/{KIND}/{alias}"
        last = self._ledger.last(view.subject, KIND, uid)
        if last is None or payload_of(last) != payload:
            number = 0 if last is None else last.source_seq + 1
            at = to_text(view.now)
            event = Event(at, names.PIPELINES_ACCOUNT, KIND, view.subject, uid, number, payload)
            self._ledger.append([event])
        if wanted:
            self._registry.move_alias(namespace, model, alias, wanted)
        else:
            self._registry.remove_alias(namespace, model, alias)
        log.info(
            "%s: MLflow alias %s %s -> %s.",
            view.subject, alias, before or "(none)", wanted or "(none)",
        )  # fmt: skip


def _version(reference: object) -> str:
    return str(getattr(reference, "model_version", "") or "")
