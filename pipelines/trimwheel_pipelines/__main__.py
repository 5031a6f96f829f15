"""`python -m trimwheel_pipelines run | tune | ledger | records`: what the pipelines image does.

`run` is the Deployment, `tune` a TuningRun's Job; `ledger` and `records` are for people and are
also found as `trimwheel ledger` and `trimwheel records`.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import click

from trimwheel_api.errors import TrimwheelError
from trimwheel_console import exit_code
from trimwheel_pipelines.commands import ledger, records

_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_QUIET = ("mlflow", "alembic", "urllib3", "kubernetes", "matplotlib", "optuna", "ray", "fsspec")


class _Told(click.Group):
    """Ends with an error's sentence and code in place of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except TrimwheelError as error:
            logging.getLogger(__name__).error("%s", error)
            sys.exit(exit_code(error))


@click.group(cls=_Told, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Keep policies right: watch, tune, certify, remember."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format=_FORMAT, datefmt="%H:%M:%S")
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of each retry; an outage is told once, by whoever lives through it.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@main.command()
def run() -> None:
    """Watch all models until stopped (the Deployment)."""
    from trimwheel_pipelines import service
    from trimwheel_pipelines.isolated_decoding import hide_memory
    from trimwheel_pipelines.settings import from_environment

    hide_memory()
    service.run(from_environment())


@main.command()
@click.option("--namespace", required=True, help="Namespace of the TuningRun.")
@click.option("--name", required=True, help="Name of the TuningRun.")
def tune(namespace: str, name: str) -> None:
    """Play one TuningRun to its end (its Job). Exit 0 whenever it ended honestly."""
    from trimwheel_pipelines import kube
    from trimwheel_pipelines.executors import executor_of
    from trimwheel_pipelines.isolated_decoding import hide_memory
    from trimwheel_pipelines.registry import registry_of
    from trimwheel_pipelines.settings import from_environment
    from trimwheel_pipelines.tune import tune as play
    from trimwheel_pipelines.tuning_world import World, model_loader

    hide_memory()
    settings = from_environment()
    with tempfile.TemporaryDirectory(prefix="trimwheel-") as scratch:
        cache = Path(settings.model_cache or scratch)
        world = World(
            objects=kube.connect(),
            records_uri=settings.records_uri,
            registry=registry_of(settings),
            executor=executor_of(settings),
            load_model=model_loader(cache, settings.allowed_prefixes),
        )
        outcome = play(world, namespace, name)
    click.echo(f"TuningRun {namespace}/{name}: {outcome}")


main.add_command(ledger)
main.add_command(records)

if __name__ == "__main__":
    main(prog_name="python -m trimwheel_pipelines")
