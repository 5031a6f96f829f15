"""Plays the story from top to bottom; this is the file to read first.

Called by `make demo`. Exit 0: the loop closed. Exit 1: it did not, and the report's `exit_reason`
says why: `kept full depth` when the statistics found nothing to certify, `kept the certified
policy` when the changed traffic does it no harm. Both are honest outcomes and never retried with
another seed. Exit 2: an option was wrong or a prerequisite is missing.
"""

from __future__ import annotations

import importlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from trimwheel_api.errors import TrimwheelError
from trimwheel_console import exit_code
from trimwheel_demo.evidence import Evidence
from trimwheel_demo.memory import MEASURED
from trimwheel_demo.places import ROOT, default_places
from trimwheel_demo.report import Report
from trimwheel_demo.settings import Options
from trimwheel_demo.stages import control, drift, environment, harm, serving, summary, tuning
from trimwheel_demo.stages.following import (
    KeptFullDepth,
    Withstood,
    first_run,
    run_after_drift,
)
from trimwheel_demo.teller import Teller
from trimwheel_demo.world import World, bring_up, take_down

INTERRUPTED = "interrupted"
TUNED = "tuned"
"""Note of the run that answered the drift: stage 6 leaves it for stage 7."""


@dataclass(frozen=True)
class Stage:
    """One stage as the visitor sees it (number, title) and as the report names it."""

    number: int
    title: str
    """Empty: it goes on under the heading before."""
    name: str
    play: Callable[[World, list[Evidence]], None]


def _bootstrap(world: World, found: list[Evidence]) -> None:
    run = tuning.tune(world, first_run, found)
    tuning.roll_out(world, run, found, refusals=False)


def _tune(world: World, found: list[Evidence]) -> None:
    world.notes[TUNED] = tuning.tune(world, run_after_drift, found)


def _roll_out(world: World, found: list[Evidence]) -> None:
    world.report["rollout"] = tuning.roll_out(world, world.notes[TUNED], found, refusals=True)


STAGES = (
    Stage(1, "A small encoder with exits and experts, trained on Python's own standard library",
          "train", serving.train),
    Stage(2, "kubectl apply an AdaptiveModel: two workers, full depth",
          "serve", serving.serve),
    Stage(3, "Held-out snippets at a fixed rate; workers audit themselves",
          "load", serving.start_load),
    Stage(3, "Bootstrap: a first policy is searched, certified, rolled out and approved",
          "bootstrap", _bootstrap),
    Stage(4, "Control: the same behaviour under another digest must show no Fail",
          "control", control.control),
    Stage(5, "The traffic changes: comments from modules never trained on",
          "drift", drift.drift),
    Stage(6, "A TuningRun searches on Ray and certifies on audits that it never saw",
          "tuning", _tune),
    Stage(7, "Canary in every worker: shadow, steps, verdicts, and a person's approval",
          "rollout", _roll_out),
    Stage(7, "", "after", summary.measure_after),
    Stage(8, "A harmful policy without a certificate",
          "harm", harm.harm),
)  # fmt: skip


def main(teller: Teller | None = None) -> int:
    """Play, write the report, and leave everything running until Ctrl-C (or for good: DETACH=1)."""
    options, places = Options.from_environment(), default_places()
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    teller = teller or Teller()
    report = Report(options.report, options.seed, ROOT)
    report["not_shown"] = summary.not_shown(options)
    code = 1
    world: World | None = None
    # Importing the MLflow client takes seconds, and the cluster needs them as well.
    threading.Thread(target=importlib.import_module, args=("mlflow",), daemon=True).start()
    try:
        teller.heading(0, "A Kubernetes control plane on loopback, Prometheus, MLflow, the chart")
        with report.stage("environment") as found:
            world = bring_up(options, places, teller, report)
            environment.look(world, found)
        story(world)
        report["ok"], report["exit_reason"], code = True, "promoted", 0
    except KeptFullDepth as outcome:
        report["exit_reason"] = f"kept full depth: {outcome}"
        teller.bad(report["exit_reason"])
    except Withstood as outcome:
        report["exit_reason"] = f"kept the certified policy: {outcome}"
        teller.bad(report["exit_reason"])
    except KeyboardInterrupt:
        report["exit_reason"] = INTERRUPTED
    except TrimwheelError as error:
        report["exit_reason"], code = str(error), exit_code(error)
        teller.bad(str(error))
    except Exception as error:  # a tool that failed, a service that went away, a defect of ours
        report["exit_reason"] = in_words(error)
        teller.console.print_exception()
        teller.bad(report["exit_reason"])
    finally:
        if world is not None:
            report["peak_memory_bytes"] = world.memory.stop()
            report["peak_memory_of"] = MEASURED
        report.write()
    if world is None or report["exit_reason"] == INTERRUPTED:
        teller.say(f"report: {options.report}")
        teller.say("removing what was started")
        take_down(places)
        return code
    teller.heading(STAGES[-1].number + 1, "Summary")
    summary.tell(world)
    teller.say(f"report: {options.report}")
    leave(world, options, teller)
    return code


def in_words(error: Exception) -> str:
    """An unforeseen error as the report tells it: its kind, and what a failed program said."""
    told = f"{type(error).__name__}: {error}"
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        said = error.stderr if isinstance(error.stderr, str) else error.stderr.decode()
        return f"{told} {said.strip()}"
    return told


def story(world: World) -> None:
    """The story, stage by stage."""
    for stage in STAGES:
        if stage.title:
            world.teller.heading(stage.number, stage.title)
        with world.report.stage(stage.name) as found:
            stage.play(world, found)


def leave(world: World, options: Options, teller: Teller) -> None:
    """Stay until Ctrl-C and then remove everything, or return and leave it running."""
    teller.say('everything is running; reach it with: eval "$(.venv/bin/trimwheel env)"')
    if options.detach:
        teller.say("make down stops and removes it")
        return
    teller.say("Ctrl-C stops and removes it")
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        teller.say("stopping")
        take_down(world.places)


def _interrupt() -> None:
    raise KeyboardInterrupt
