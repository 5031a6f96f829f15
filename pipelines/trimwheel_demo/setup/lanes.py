"""Runs the steps side by side, packages and model in one lane, Go builds in the other, with bars.

Called by `__main__`.
"""

from __future__ import annotations

import sys
import threading
import time

from trimwheel_demo.setup.cached import is_cached
from trimwheel_demo.setup.steps import Step

LANES = (("python", "model"), ("binaries",))
"""The model needs the packages; the Go builds need neither."""


def run_steps(steps: list[Step]) -> None:
    """Run both lanes at once, showing how far each step is. Raises StepFailed."""
    failures: list[Exception] = []
    by_name = {step.name: step for step in steps}
    lanes = [[by_name[name] for name in lane if name in by_name] for lane in LANES]
    threads = [threading.Thread(target=_run_lane, args=(lane, failures)) for lane in lanes if lane]
    for thread in threads:
        thread.start()
    _show(steps, threads)
    if failures:
        raise failures[0]


def _run_lane(lane: list[Step], failures: list[Exception]) -> None:
    for step in lane:
        if failures:
            return
        step.started = time.monotonic()
        try:
            step.cached = is_cached(step.name)
            if not step.cached:
                step.state = "running"
                step.log.write_text("")
                step.run(step)
            step.state = "done"
        except Exception as error:  # shown and raised by the main thread
            step.state = "failed"
            failures.append(error)
            return
        finally:
            step.seconds = time.monotonic() - step.started


def _show(steps: list[Step], threads: list[threading.Thread]) -> None:
    terminal = sys.stdout.isatty()
    drawn = 0
    last = time.monotonic()
    while True:
        alive = any(thread.is_alive() for thread in threads)
        lines = [_line(step) for step in steps if not step.cached and step.started]
        if terminal and lines:
            sys.stdout.write(f"\x1b[{drawn}F" if drawn else "")
            sys.stdout.write("".join(f"\x1b[2K{line}\n" for line in lines))
            drawn = len(lines)
        elif lines and (time.monotonic() - last > 20 or not alive):
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            last = time.monotonic()
        sys.stdout.flush()
        if not alive:
            return
        for thread in threads:
            thread.join(0.25)


def _line(step: Step) -> str:
    share = step.progress()
    bar = "#" * round(share * 24)
    elapsed = step.seconds or (time.monotonic() - step.started if step.started else 0.0)
    return (
        f"  {step.name:<9} [{bar:<24}] {share:4.0%} {elapsed:5.0f} s  "
        f"{step.state if step.state != 'running' else step.message}"
    )
