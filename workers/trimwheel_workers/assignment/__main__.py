"""`python -m trimwheel_workers.assignment`: a watch-and-arms loop without a model.

Watches and acknowledges as a worker does, and serves nothing: what `trimwheel bench rollback` runs
many of. Takes POD_NAME, POD_UID, POD_NAMESPACE and TRIMWHEEL_MODEL from the environment.
"""

from __future__ import annotations

import logging
import os
import signal
import threading

from trimwheel_workers.assignment.acknowledger import LeaseAcknowledger, Pod
from trimwheel_workers.assignment.kubernetes_source import KubernetesSource
from trimwheel_workers.assignment.loop import Applied, AssignmentLoop
from trimwheel_workers.assignment.rule import Effective


def apply(effective: Effective) -> Applied:
    """Nothing has to be loaded: it is in force at once."""
    spec = effective.spec
    return Applied(spec.epoch, spec.stable.digest, spec.candidate.digest if spec.candidate else "")


def main() -> None:
    """Until SIGTERM."""
    logging.basicConfig(level=logging.WARNING)
    pod = Pod(os.environ["POD_NAME"], os.environ["POD_UID"], os.environ["POD_NAMESPACE"])
    model = os.environ["TRIMWHEEL_MODEL"]
    source = KubernetesSource(pod.namespace, model)
    loop = AssignmentLoop(source, apply, LeaseAcknowledger(model, pod))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    loop.start()
    ended.wait()
    loop.stop()


if __name__ == "__main__":
    main()
