"""Check, say what will happen, run what is not cached, note how long it took.

Interrupted, the same command resumes. Timings go to `build/setup.json` for the demo's report.
`~/.kube/config` is never touched, nor anything outside the repository's folder and one cache
folder.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from functools import partial

from trimwheel_demo.setup.cached import BUILD, LOGS, ROOT, cache_folder, is_cached
from trimwheel_demo.setup.checks import problems
from trimwheel_demo.setup.lanes import Interrupted, run_steps
from trimwheel_demo.setup.steps import RUNNERS, SECONDS, TITLES, Step, StepFailed, get_binaries
from trimwheel_demo.setup.supply import Supply, look

SIZES = {"python": "6 GB (torch from PyPI brings CUDA)", "model": "10 MB"}
PLANS = {
    "demo": "Trimwheel's demo: the whole loop on this machine, without root, Docker or a cluster.",
    "test": "Trimwheel's tests, on a real API server started here.",
    "setup": "Setting Trimwheel up.",
}


def print_plan(kind: str, missing: list[str], supply: Supply) -> None:
    """What will happen, how long it usually takes, and what stays untouched."""
    out = [PLANS[kind], ""]
    for name in missing:
        if name == "binaries":
            out += supply.lines()
            continue
        out.append(
            f"  will make   {TITLES[name]}: about {SECONDS[name] / 60:.0f} min, {SIZES[name]}"
        )
    out.append(f"  writes to   {ROOT} and {cache_folder()}")
    out.append("  leaves be   ~/.kube/config and everything else; ambient KUBECONFIG,")
    out.append("              PROMETHEUS_URL and MLFLOW_TRACKING_URI are ignored")
    skips = "KUBEBUILDER_ASSETS, TRIMWHEEL_USE_KUBECONFIG, TRIMWHEEL_USE_PROMETHEUS, "
    out.append(f"  can skip    {skips}TRIMWHEEL_USE_MLFLOW:")
    out.append("              docs/how-to/your-own-services.md")
    sys.stdout.write("\n".join(out) + "\n\n")
    sys.stdout.flush()


def write_timings(steps: list[Step], seconds: float) -> None:
    """`build/setup.json`: what the demo's report says about the set-up."""
    cold = any(not step.cached for step in steps)
    rows = [
        {"name": step.name, "seconds": round(step.seconds, 1), "cached": step.cached}
        for step in steps
    ]
    previous = BUILD / "setup.json"
    record = {"cold": cold, "seconds": round(seconds, 1), "steps": rows}
    if not cold and previous.exists():
        from trimwheel_local.files import read_json

        first = read_json(previous) or {}
        record["first_run"] = first.get("first_run") or (first if first.get("cold") else None)
    previous.write_text(json.dumps(record, indent=2) + "\n")


def main() -> int:
    """Check, plan, run. Exit 0 done, 1 a step failed, 2 the machine lacks something, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", default="python,binaries,model")
    parser.add_argument("--plan", default="setup", choices=[*PLANS, "quiet"])
    options = parser.parse_args()
    names = [name for name in options.steps.split(",") if name]
    supply = look() if "binaries" in names else Supply()
    found = problems(names, options.plan, supply)
    if found:
        sys.stderr.write("This machine is not ready:\n")
        sys.stderr.write("".join(f"  - {text}\n" for text in found))
        return 2
    started = time.monotonic()
    missing = [name for name in names if not is_cached(name)]
    if options.plan != "quiet" and (missing or options.plan == "demo"):
        print_plan(options.plan, missing, supply)
    LOGS.mkdir(parents=True, exist_ok=True)
    runners = RUNNERS | {"binaries": partial(get_binaries, built=supply.built)}
    steps = [Step(name, runners[name]) for name in names]
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        run_steps(steps)
    except Interrupted as interrupt:
        sys.stderr.write(f"\n{interrupt}\nRun the same command again: it goes on from there.\n")
        return 130
    except StepFailed as error:
        sys.stderr.write(f"{error}\nRun the same command again: finished parts are kept.\n")
        return 1
    write_timings(steps, time.monotonic() - started)
    if options.plan == "setup":
        sys.stdout.write("Set up. Next: make demo, or docs/tutorial.md to play it by hand.\n")
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
