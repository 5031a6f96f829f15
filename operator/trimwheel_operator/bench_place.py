"""Which cluster a bench measures on: the one that is named, or an embedded one of its own.

Called by `bench_rollback`. A work cluster in ~/.kube/config is never used: a bench creates
namespaces and many pods, so its cluster has to be said. The embedded cluster's package is loaded
only where it is needed; the operator's image does not carry it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trimwheel_console import note

OWN_FOLDER = "bench"


@contextmanager
def cluster_for_bench(kubeconfig: str | None, state: Path | None, index: int) -> Iterator[str]:
    """A kubeconfig: `kubeconfig`, KUBECONFIG, the running embedded cluster's, or a new one's.

    A new one has the chart's rules and nobody who decides; it is removed at the end.
    """
    if named := kubeconfig or os.environ.get("KUBECONFIG"):
        yield named
        return
    from trimwheel_local import release
    from trimwheel_local.cluster import Cluster
    from trimwheel_local.progress import progress_bar

    running = Cluster(state, index)
    if running.status()["running"]:
        yield str(running.kubeconfig)
        return
    own = Cluster(running.layout.state / OWN_FOLDER, index)
    note("no cluster is named and none runs: starting one for this bench")
    try:
        with progress_bar() as progress:
            own.up(progress)
        release.install_chart(own, replicas=0)
        yield str(own.kubeconfig)
    finally:
        own.down(purge=True)
