"""What `trimwheel --help` says: a line for each verb, and the extra that brings what it needs.

A table rather than the commands' own docstrings, because reading those would import every package.
A test holds each line equal to its command's `short_help`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verb:
    """One line of help."""

    summary: str
    extra: str = ""
    """Extra of the distribution that the verb's package needs; empty: none."""
    section: str = ""


DECIDE = "Decide"
LOOK = "Look"
RUN = "Run on this machine"

COMMANDS_GROUP = "trimwheel.commands"
BENCH_GROUP = "trimwheel.bench"

COMMANDS: dict[str, Verb] = {
    "status": Verb("Show a model, its policies, its rollout and its guards.", "cli", LOOK),
    "history": Verb("List every decision taken on a model, oldest first.", "cli", LOOK),
    "explain": Verb("Say in sentences why a model or rollout is where it is.", "cli", LOOK),
    "doctor": Verb("Check what Trimwheel needs, and name what is missing.", "cli", LOOK),
    "approve": Verb("Approve the rollout that waits for a person.", "cli", DECIDE),
    "reject": Verb("Reject a rollout: its candidate is rolled back.", "cli", DECIDE),
    "rollback": Verb("Take a model back to a former policy at once.", "cli", DECIDE),
    "policy": Verb("Digest and validate policy documents.", "", DECIDE),
    "crds": Verb("Print the CustomResourceDefinitions.", "", LOOK),
    "dashboards": Verb("Print dashboards, rules and their queries.", "dashboards", LOOK),
    "cluster": Verb("Start, stop and inspect the embedded Kubernetes.", "local", RUN),
    "demo": Verb("Play or remove the demo (what make demo and make down call).", "pipelines", RUN),
    "env": Verb("Print the exports that reach a running demo.", "", RUN),
    "load": Verb("Start, change or stop the demo's load generator.", "pipelines", RUN),
    "ledger": Verb("Read and verify the ledger of decisions.", "pipelines", LOOK),
    "records": Verb("Delete audit records of a tenant or a model.", "pipelines", RUN),
    "bench": Verb("Measure a part: replay, certificate, canary and more.", "", RUN),
}

BENCHES: dict[str, Verb] = {
    "replay": Verb("Threshold vectors scored a second and core.", "pipelines"),
    "certificate": Verb("Violations and cost of certificates over many draws.", "pipelines"),
    "canary": Verb("False Fails of identical arms, and delay to a real one.", "pipelines"),
    "memory": Verb("What the watch loop holds over simulated days.", "pipelines"),
    "drift": Verb("False Harmful verdicts in clusters, and delay to a real rise.", "pipelines"),
    "rollback": Verb("Decision to last acknowledgement over many workers.", "operator"),
    "serving": Verb("Time the encoder against transformers, exits against dense.", "pipelines"),
    "task": Verb("Check that the demo's task has something to lose.", "pipelines"),
}
