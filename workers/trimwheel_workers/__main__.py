"""`python -m trimwheel_workers serve | fetch`: the two commands of the worker image.

`fetch` is the init step that brings the model artifact; `serve` is the worker. Both read what the
operator put into the environment; heavy imports happen inside the command that needs them.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from trimwheel_api.errors import TrimwheelError

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Serve an adaptive model, or fetch its artifact."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=_FORMAT)


@main.command()
@click.option(
    "--assignment-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read the PolicyAssignment from this JSON file instead of the API server.",
)
@click.option("--port", type=int, help="Listen here instead of on the configured port.")
@click.option("--probes-port", type=int, help="Serve probes and /metrics here.")
def serve(assignment_file: Path | None, port: int | None, probes_port: int | None) -> None:
    """Answer inference requests until SIGTERM, then drain.

    The configuration is JSON in TRIMWHEEL_WORKER, as the operator writes it. Without a cluster:

    \b
      TRIMWHEEL_WORKER='{"model": "m", "namespace": "n", "modelDigest": "sha256:...",
        "modelPath": "model", "statePath": "state"}' TRIMWHEEL_BIND=127.0.0.1 \\
      python -m trimwheel_workers serve --assignment-file assignment.json
    """
    from dataclasses import replace

    from trimwheel_api import worker_config
    from trimwheel_workers import settings
    from trimwheel_workers.front import server

    config = worker_config.from_environment()
    chosen = settings.from_environment()
    if assignment_file is not None:
        chosen = replace(chosen, assignment_file=assignment_file)
    if port is not None:
        config = config.model_copy(update={"port": port})
    if probes_port is not None:
        config = config.model_copy(update={"probes_port": probes_port})
    sys.exit(server.run(config, chosen))


@main.command()
@click.option("--uri", required=True, help="models:/NAME/VERSION, models:/NAME@ALIAS or fsspec.")
@click.option("--digest", required=True, help="Digest that the artifact must have.")
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="Folder.")
def fetch(uri: str, digest: str, target: Path) -> None:
    """Bring a model artifact into a folder and check its digest.

    Only addresses below TRIMWHEEL_ALLOWED_PREFIXES (comma separated) are fetched.
    """
    from trimwheel_workers.fetch import allowed_prefixes, fetch_model

    fetch_model(uri, digest, target, allowed_prefixes())
    logging.getLogger("trimwheel_workers.fetch").info("%s is in %s", digest, target)


if __name__ == "__main__":
    try:
        main()
    except TrimwheelError as error:
        # A sentence for `kubectl logs`, not a traceback.
        logging.getLogger("trimwheel_workers").error("%s", error)
        sys.exit(1)
