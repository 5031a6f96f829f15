"""The two figures of a TuningRun, for a person who decides on it in MLflow.

`pareto`: what each trial could do (risk against cost), what was certified, and where the promise
lies. `calibration`: whether the score that exits are judged by means what it says on this traffic.
Called by `tune`; drawn without a display.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.special import betaincinv  # scipy.stats has it too, and costs half a second to load

from trimwheel_pipelines.replay import ReplayRecords
from trimwheel_pipelines.trials import TrialResult

INK = "#24292f"
MUTED = "#8c959f"
BLUE = "#0969da"
GREEN = "#1a7f37"
RED = "#cf222e"
ORANGE = "#bc4c00"
_EXIT_COLOURS = ("#54278f", "#756bb1", "#3182bd", "#31a354", "#e6550d", "#a63603")
_BINS = 10
_LEAST_IN_BIN = 10


@dataclass(frozen=True)
class Point:
    """One policy in the plane of risk and cost, with the limit that a certificate gives."""

    label: str
    risk: float
    cost: float
    upper: float | None = None


def pareto(
    results: list[TrialResult],
    epsilon: float,
    incumbent: Point | None,
    certified: Point | None,
    title: str,
) -> Figure:
    """Every trial's front on the search audits, the best envelope, and the certified policy."""
    figure, axes = _figure(title)
    limit = 3.0 * epsilon
    for result in results:
        colour = BLUE if result is results[0] else MUTED
        axes.plot(
            100 * result.front_risk,
            result.front_cost,
            color=colour,
            linewidth=1.8 if result is results[0] else 0.7,
            alpha=1.0 if result is results[0] else 0.45,
            zorder=3 if result is results[0] else 1,
        )
    best = results[0].signature
    axes.plot(
        [], [], color=BLUE, label=f"best trial: topK {best.top_k}, blend {best.router_blend:g}"
    )
    if len(results) > 1:
        axes.plot([], [], color=MUTED, label=f"{len(results) - 1} other signatures")
    axes.axvline(100 * epsilon, color=RED, linewidth=1.0, linestyle=(0, (5, 3)))
    axes.annotate(
        f"promised: at most {epsilon:.1%}",
        (100 * epsilon, 1.0), (4, -2), textcoords="offset points",
        color=RED, fontsize=8, va="top", rotation=90, ha="left",
    )  # fmt: skip
    if incumbent is not None and incumbent.risk <= limit:
        axes.scatter(
            [100 * incumbent.risk], [incumbent.cost], marker="s", s=42, color=ORANGE, zorder=4,
            label=f"{incumbent.label}: {incumbent.cost:.2f} of full compute",
        )  # fmt: skip
    if certified is not None:
        _certified(axes, certified)
    axes.set_xlim(-0.03 * 100 * limit, 100 * limit)
    axes.set_ylim(0.0, 1.05)
    axes.set_xlabel("answers that differ from full depth, %")
    axes.set_ylabel("compute, as a share of full depth")
    axes.legend(loc="upper right", frameon=False, fontsize=8)
    return figure


def calibration(records: ReplayRecords, title: str) -> Figure:
    """How often an exit agrees with full depth, by its score; on the line, the score is honest."""
    figure, axes = _figure(title)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
    for exit_index in range(records.exits):
        centre, mean, low, high = _bins(records.scores[:, exit_index], records.agree[:, exit_index])
        if not len(centre):
            continue
        colour = _EXIT_COLOURS[exit_index % len(_EXIT_COLOURS)]
        axes.errorbar(
            centre, mean, yerr=np.array([mean - low, high - mean]), color=colour, linewidth=1.3,
            elinewidth=0.7, capsize=2, marker="o", markersize=3.5, label=f"exit {exit_index + 1}",
        )  # fmt: skip
    axes.set_xlim(0.0, 1.02)
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("score: stated probability of agreeing with full depth")
    axes.set_ylabel("share that agrees (95 % interval)")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    return figure


def _certified(axes: Any, point: Point) -> None:
    axes.scatter(
        [100 * point.risk], [point.cost], marker="*", s=150, color=GREEN, zorder=6,
        label=f"{point.label}: {point.cost:.2f} of full compute",
    )  # fmt: skip
    if point.upper is not None:
        axes.plot(
            [100 * point.risk, 100 * point.upper], [point.cost] * 2, color=GREEN, linewidth=1.4,
            marker="|", markevery=[1], markersize=9, zorder=5,
        )  # fmt: skip


def _bins(
    scores: npt.NDArray[np.float32], agree: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], ...]:
    """Mean score, share agreeing and its Clopper-Pearson interval in bins of equal counts."""
    order = np.argsort(scores, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if len(part) >= _LEAST_IN_BIN]
    centre = np.array([float(scores[part].mean()) for part in parts])
    counts = np.array([len(part) for part in parts], dtype=np.float64)
    hits = np.array([float(agree[part].sum()) for part in parts])
    mean = hits / np.maximum(counts, 1.0)
    low = np.where(hits > 0, betaincinv(hits, counts - hits + 1, 0.025), 0.0)
    high = np.where(hits < counts, betaincinv(hits + 1, counts - hits, 0.975), 1.0)
    return centre, mean, low, high


def _figure(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, 4.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=10, color=INK, fontweight="bold")
    axes.grid(color="#d0d7de", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    return figure, axes
