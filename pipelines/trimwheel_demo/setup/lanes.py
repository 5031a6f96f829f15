"""Runs the steps side by side, packages and model in one lane, binaries in the other, with bars.

Called by `__main__`.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time

from trimwheel_demo.setup.cached import is_cached
from trimwheel_demo.setup.steps import KEPT, Step

LANES = (("python", "model"), ("binaries",))
"""The model needs the packages; the binaries need neither."""


class Interrupted(Exception):
    """Somebody ended the set-up; the message says what was going on and what of it is kept."""


def run_steps(steps: list[Step]) -> None:
    """Run both lanes at once, showing how far each step is. Raises StepFailed, Interrupted."""
    failures: list[Exception] = []
    by_name = {step.name: step for step in steps}
    lanes = [[by_name[name] for name in lane if name in by_name] for lane in LANES]
    threads = [
        threading.Thread(target=_run_lane, args=(lane, failures), daemon=True)
        for lane in lanes
        if lane
    ]
    for thread in threads:
        thread.start()
    try:
        _show(steps, threads)
    except KeyboardInterrupt:
        raise Interrupted(_stop(steps)) from None
    if failures:
        raise failures[0]


def _stop(steps: list[Step]) -> str:
    """End what runs, and say what it was."""
    running = [step for step in steps if step.state == "running"]
    lines = [f"  {step.name:<9} {step.progress():4.0%}  {step.message}: {KEPT[step.name]}"
             for step in running]  # fmt: skip
    stops = [threading.Thread(target=step.stop) for step in steps]
    for thread in stops:
        thread.start()
    for thread in stops:
        thread.join()
    return "\n".join(["Interrupted while at", *lines] if lines else ["Interrupted."])


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
    finished: set[str] = set()
    while True:
        alive = any(thread.is_alive() for thread in threads)
        shown = [step for step in steps if not step.cached and step.started]
        if terminal and shown:
            sys.stdout.write(f"\x1b[{drawn}F" if drawn else "")
            width = shutil.get_terminal_size().columns - 1  # a line that wraps is drawn twice
            sys.stdout.write("".join(f"\x1b[2K{_line(step)[:width]}\n" for step in shown))
            drawn = len(shown)
        elif shown and (time.monotonic() - last > 20 or not alive):
            fresh = [step for step in shown if step.name not in finished]
            finished |= {step.name for step in fresh if step.state == "done"}
            sys.stdout.write("".join(f"{_line(step)}\n" for step in fresh))
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
