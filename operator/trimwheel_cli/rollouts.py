"""Verbs on models and rollouts: status, history, explain, approve, reject, rollback.

Each reads a snapshot or creates one object; the API server's admission policies decide whether the
caller may. Decisions that change a model take `--reason`, which the ledger keeps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from trimwheel_api import names
from trimwheel_api.errors import SpecInvalid, Unavailable
from trimwheel_api.kinds import AdaptiveModel, PolicyApproval, PolicyRollout, dump
from trimwheel_cli import reasoning, views, words
from trimwheel_cli.going_back import aim, follow
from trimwheel_cli.kube import Kube, NotFound, connect, kube_options
from trimwheel_cli.snapshot import gather, gather_rollouts
from trimwheel_cli.verbs import COMMANDS
from trimwheel_console import NEGATIVE, OK, emit, note, output_option
from trimwheel_console.ranges import Real

WATCH_SECONDS = 2.0


def _verb(name: str) -> Callable[[Callable[..., None]], click.Command]:
    return click.command(name, short_help=COMMANDS[name].summary)


_reason_option = click.option(
    "--reason", required=True, help="Why, in a sentence; kept in the object and the ledger."
)


@_verb("status")
@click.argument("model", required=False, envvar="TRIMWHEEL_MODEL")
@click.option("-w", "--watch", is_flag=True, help="Show anew at every change until Ctrl-C.")
@kube_options
@output_option
def status(model: str | None, watch: bool, output: str, **where: Any) -> None:
    """Show a model: what serves, what is rolled out, what each guard says, the last decisions.

    Without MODEL, lists the models of the namespace. Exits 0 when the model (or every model) is
    Ready, 1 when not.

    \b
      trimwheel status
      trimwheel status classifier -n shop --watch
      trimwheel status classifier -o json | jq .model.status.stable.digest
    """
    kube = connect(**where)
    if watch:
        _watch(kube, model, output)
        return
    ready, value, text = _picture(kube, model)
    emit(value, output, table=text)
    click.get_current_context().exit(OK if ready else NEGATIVE)


@_verb("history")
@click.argument("model", envvar="TRIMWHEEL_MODEL")
@kube_options
@output_option
def history(model: str, output: str, **where: Any) -> None:
    """List the policies that were stable and every decision, oldest first.

    Reads the objects in the cluster; older decisions, whose rollouts were pruned, are in the
    ledger.

    \b
      trimwheel history classifier
      trimwheel history classifier -o json | jq '.decisions[] | select(.action=="RollBack")'
    """
    snapshot = gather(connect(**where), model)
    served = snapshot.model.status
    value = {
        "model": model,
        "stable": served.stable,
        "formerlyStable": served.history,
        "rejectedDigests": served.rejected_digests,
        "decisions": [vars(row) for row in views.history_rows(snapshot)],
    }
    emit(value, output, table=lambda: views.history_view(snapshot))


@_verb("explain")
@click.argument("name", envvar="TRIMWHEEL_MODEL")
@click.option("--session", help="Also say which arm serves this session key.")
@kube_options
@output_option
def explain(name: str, session: str | None, output: str, **where: Any) -> None:
    """Say in sentences why a model or rollout is where it is, and what it waits for.

    NAME is an AdaptiveModel or a PolicyRollout; a model goes first when both exist.

    \b
      trimwheel explain classifier
      trimwheel explain drift-7xk2
      trimwheel explain classifier --session user-42
    """
    kube = connect(**where)
    now = datetime.now(UTC)
    if kube.find(AdaptiveModel, name):
        snapshot = gather(kube, name)
        sentences = reasoning.explain_model(snapshot, now)
    else:
        rollout = _rollout(kube, name)
        snapshot = gather(kube, rollout.spec.model)
        sentences = reasoning.explain_rollout(snapshot, rollout, now)
    if session is not None:
        sentences += reasoning.explain_session(snapshot, session)
    emit({"name": name, "sentences": sentences}, output, table="\n".join(sentences))


@_verb("approve")
@click.argument("name")
@_reason_option
@click.option("--digest", help="Refuse unless the rollout carries this policy digest.")
@kube_options
@output_option
def approve(name: str, reason: str, digest: str | None, output: str, **where: Any) -> None:
    """Approve the PolicyRollout NAME, which waits for a person.

    Creates a PolicyApproval bound to the rollout's uid and the policy's digest. The API server
    checks that you hold verb approve on it, that you are not who asked for it, and that it waits.

    \b
      trimwheel approve drift-7xk2 --reason "cheaper, certified"
      trimwheel approve drift-7xk2 --digest sha256:0f3c... --reason "as reviewed"
    """
    _decide(connect(**where), "Approve", name, reason, digest, output)


@_verb("reject")
@click.argument("name")
@_reason_option
@click.option("--digest", help="Refuse unless the rollout carries this policy digest.")
@kube_options
@output_option
def reject(name: str, reason: str, digest: str | None, output: str, **where: Any) -> None:
    """Reject the PolicyRollout NAME: its candidate is rolled back, and not tried again by itself.

    \b
      trimwheel reject drift-7xk2 --reason "risk too close to the bound"
    """
    _decide(connect(**where), "Reject", name, reason, digest, output)


@_verb("rollback")
@click.argument("model")
@click.option(
    "--to",
    help="Digest (or its first hex digits) of a formerly stable policy, or `dense`: full depth. "
    "Without it the candidate under way ends or, with none, the newest formerly stable policy "
    "returns that neither harm nor a person ended; else dense.",
)
@_reason_option
@click.option("--no-wait", is_flag=True, help="Return once the API server has accepted it.")
@click.option(
    "--timeout",
    type=Real(1, 86_400),
    default=120.0,
    show_default=True,
    help="Seconds to wait for the operator and the workers.",
)
@kube_options
@output_option
def rollback(
    model: str,
    to: str | None,
    reason: str,
    no_wait: bool,
    timeout: float,
    output: str,
    **where: Any,
) -> None:
    """Take MODEL back at once, without steps or approval, and wait until its workers say so.

    Going back takes verb rollback on the model, and a policy that was stable with a certificate
    that is still valid; the dense policy is always a legal aim. A candidate under way ends in any
    case. Exits 0 when every live worker has acknowledged, 1 when the operator refused or a worker
    said nothing, 3 when nobody carried it out in time.

    \b
      trimwheel rollback classifier --reason "support tickets since noon"
      trimwheel rollback classifier --to dense --reason "serve full depth until we know more"
    """
    kube = connect(**where)
    snapshot = gather_rollouts(kube, model)
    active = snapshot.active
    canary = active is not None and active.spec.type == "Canary"
    digest, policy = aim(snapshot.model.status, to, canary=canary)
    spec = {
        "model": model,
        "policy": policy,
        "policyDigest": digest,
        "type": "Rollback",
        "requestedBy": kube.whoami(),
        "reason": reason,
    }
    made = kube.create(PolicyRollout, {"generateName": f"{model}-rollback-"}, spec)
    ended = active.name if active is not None and canary else None
    done: dict[str, Any] = {
        "action": "Rollback", "rollout": made, "policyDigest": digest, "ends": ended,
    }  # fmt: skip
    asked = f"policyrollout/{made} created: {model} goes back to {words.short(digest)}"
    asked += f", {ended} ends" if ended else ""
    if no_wait:
        emit(done, output, table=asked)
        return
    note(asked)
    ending = follow(kube, made, timeout)
    done |= {
        "outcome": ending.outcome,
        "message": ending.message,
        "actuation": dump(ending.actuation) if ending.actuation else None,
    }
    emit(done, output, table=f"{ending.outcome}: {ending.message}")
    if ending.outcome != "Acknowledged":
        click.get_current_context().exit(NEGATIVE)


def _decide(
    kube: Kube, decision: str, name: str, reason: str, digest: str | None, output: str
) -> None:
    rollout = _rollout(kube, name)
    named = rollout.spec.policy_digest
    if digest is not None and digest != named:
        raise SpecInvalid("--digest", f"{name} carries {named}", digest, "Review it again")
    spec = {
        "rollout": name,
        "rolloutUID": rollout.metadata.uid,
        "policyDigest": named,
        "decision": decision,
        "approver": kube.whoami(),
        "reason": reason,
    }
    made = kube.create(PolicyApproval, {"generateName": f"{name}-{decision.lower()}-"}, spec)
    value = {"approval": made} | spec
    emit(value, output, table=f"policyapproval/{made} created: {decision} {name} ({named})")


def _watch(kube: Kube, model: str | None, output: str) -> None:
    """Print at every change until Ctrl-C; a server that is away for a while is waited for."""
    last = ""
    try:
        while True:
            try:
                _, value, text = _picture(kube, model)
            except Unavailable as error:
                note(f"waiting: {error}")
            else:
                said = json.dumps(value, sort_keys=True, default=str)
                if said != last and output == "table":
                    click.clear()
                if said != last:
                    emit(value, output, table=text)
                last = said
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        note("stopped watching")


def _picture(kube: Kube, model: str | None) -> tuple[bool, Any, str]:
    """(ready, JSON value, text) of one model, or of all."""
    now = datetime.now(UTC)
    if model is None:
        models = kube.every(AdaptiveModel)
        ready = all(one.status.is_true(names.READY) for one in models)
        return ready, {"items": models}, views.models_table(models, now)
    snapshot = gather(kube, model)
    ready = snapshot.model.status.is_true(names.READY)
    return ready, snapshot.as_json(), views.status_view(snapshot, now)


def _rollout(kube: Kube, name: str) -> PolicyRollout:
    found = kube.find(PolicyRollout, name)
    if found is None:
        known = [one.name for one in kube.every(PolicyRollout)][-5:]
        remedy = f"Newest there: {', '.join(known)}" if known else "There are no rollouts"
        rule = f"must name a PolicyRollout in namespace {kube.namespace}"
        raise NotFound("NAME", rule, name, remedy)
    return found
