"""`trimwheel bench serving`: the encoder against `transformers`, and early exits against full
depth.

Trains (or finds) a model, certifies one threshold at 1 % disagreement, tests it once on texts that
chose nothing, and times the contenders of `trimwheel_workers.bench_serving` in interleaved rounds.
The default corpus needs no file; ``--data`` takes a folder with CLINC150's `data_full.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimwheel_api.errors import InvalidInput
from trimwheel_api.policy import parse_policy
from trimwheel_api.values import decimal_string
from trimwheel_console import emit, note, output_option, text_table
from trimwheel_console.ranges import SEED, Real, Whole, WholeList
from trimwheel_demo import certified, corpus, training
from trimwheel_demo.training import Trained
from trimwheel_pipelines.loss_tests import p_value
from trimwheel_pipelines.replay import ReplayRecords
from trimwheel_workers.fitting.recipe import Recipe, TrainingSet

if TYPE_CHECKING:
    from trimwheel_workers.model.artifact import AskedDtype, LoadedModel

EPSILON, DELTA = 0.01, 0.01
"""Stricter than the product's delta: the policy is tested once more, on texts of its own."""
DATA_FILE = "data_full.json"
TIMED_TEXTS = 512
FOLDER_EPOCHS = 9
"""Epochs over a folder's texts, which are fewer and shorter than the corpus's."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A trained model, and texts that took no part in its training."""

    name: str
    trained: Trained
    calibration: Sequence[str]
    test: Sequence[str]


@click.command("serving", short_help="Time the encoder against transformers, exits against dense.")
@click.option("--data", type=click.Path(path_type=Path), help=f"Folder with {DATA_FILE}.")
@click.option(
    "--seed", type=Whole(0, SEED), default=0, show_default=True, help="Of the model and the split."
)
@click.option(
    "--batch", type=WholeList(1, 1024), default="1,8,32", show_default=True, help="Batch sizes."
)
@click.option(
    "--rounds", type=Whole(1, 10_000), default=15, show_default=True, help="Interleaved rounds."
)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="float32")
@click.option(
    "--http-seconds",
    type=Real(0, 3_600),
    default=5.0,
    show_default=True,
    help="Length of each load through HTTP; 0 leaves it out.",
)
@output_option
def command(
    data: Path | None,
    seed: int,
    batch: tuple[int, ...],
    rounds: int,
    dtype: AskedDtype,
    http_seconds: float,
    output: str,
) -> None:
    """Time one model three ways on one thread, then a worker through HTTP and its bookkeeping.

    \b
    trimwheel bench serving
    trimwheel bench serving --data clinc150 --dtype bfloat16
    """
    workload = _corpus_workload(seed) if data is None else _folder_workload(data, seed)
    value = run(workload, batch, rounds, dtype)
    value |= through_worker(workload, value["policy"]["thresholds"], value["dtype"], http_seconds)
    emit(value, output, table=lambda: _table(value))


def run(
    workload: Workload, batches: Sequence[int], rounds: int, dtype: AskedDtype
) -> dict[str, Any]:
    """Certify, test, check that all contenders agree, and time them."""

    from trimwheel_workers import bench_serving as timing
    from trimwheel_workers.model import artifact

    exact = artifact.load(workload.trained.folder, workload.trained.digest)
    model = artifact.load(workload.trained.folder, workload.trained.digest, dtype)
    weights = artifact.weights(workload.trained.folder)
    policy = certified.certify(_records(model, workload.calibration), EPSILON, DELTA)
    depths = (*model.config.exits, model.config.layers)
    tested = certified.apply(_records(model, workload.test), policy, depths)
    ids = model.tokenizer.encode(workload.test[:TIMED_TEXTS])
    runs = timing.contenders(weights, model.encoder, policy, model.dtype)
    timed = []
    for size in batches:
        note(f"timing batch {size}")
        timed.append(timing.summary(timing.measure(runs, ids, size, rounds), size))
    wrong = round(tested.disagreement * tested.texts)
    return {
        "workload": workload.name,
        "dtype": model.dtype,
        "threads": 1,
        "rounds": rounds,
        "model": {"digest": exact.digest, **exact.metadata},
        "policy": {
            "threshold": policy[0],
            "thresholds": list(policy),
            "epsilon": EPSILON,
            "delta": DELTA,
            "calibrated_on": len(workload.calibration),
            "test": asdict(tested) | {"p_value": p_value(wrong, tested.texts, 1.0, EPSILON)},
        },
        "largest_probability_difference": timing.largest_difference(
            weights, model.encoder, ids[:64], model.dtype
        ),
        "batches": timed,
    }


def through_worker(
    workload: Workload, thresholds: Sequence[float], dtype: str, seconds: float
) -> dict[str, Any]:
    """A real worker under load, with the certified policy, and what its bookkeeping costs."""
    from trimwheel_workers.bench_http import bookkeeping, through_http

    value: dict[str, Any] = {"bookkeeping_microseconds": bookkeeping(), "http": []}
    if seconds > 0:
        note("loading a worker through HTTP")
        limits = [decimal_string(limit) for limit in thresholds]
        policy = parse_policy({"exit": {"enabled": True, "thresholds": limits}})
        value["http"] = through_http(
            workload.trained.folder,
            workload.trained.digest,
            policy,
            workload.test[:TIMED_TEXTS],
            seconds=seconds,
            dtype=dtype,
        )
    return value


def _records(model: LoadedModel, texts: Sequence[str]) -> ReplayRecords:
    from trimwheel_workers.offline import evaluate

    result = evaluate(model, texts, model.config.dense_signature)
    return ReplayRecords.from_predictions(
        result.scores, result.predictions, result.predictions[:, -1]
    )


def _corpus_workload(seed: int) -> Workload:
    texts = [snippet.text for snippet in corpus.build(seed).pools["heldout"]]
    half = len(texts) // 2
    return Workload("standard library", training.ensure(seed), texts[:half], texts[half:])


def _folder_workload(folder: Path, seed: int) -> Workload:
    """CLINC150's layout: lists `train`, `val`, `test` of [text, label].

    ``val`` fits the scores; half of ``test`` certifies, the other half tests.
    """
    data = _read(folder)
    classes = tuple(sorted({label for _, label in data["train"]}))
    training_set = TrainingSet(classes, data["train"], data["val"])
    recipe = replace(Recipe(), epochs=FOLDER_EPOCHS)
    trained = training.ensure_on(training_set, recipe, seed, data["test"])
    texts = [text for text, _ in data["test"]]
    return Workload(folder.name, trained, texts[::2], texts[1::2])


def _read(folder: Path) -> dict[str, list[tuple[str, str]]]:
    path = folder / DATA_FILE
    try:
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(
            "--data", f"must hold a readable {DATA_FILE} ({error})", str(folder)
        ) from error
    parts = ("train", "val", "test")
    missing = [name for name in parts if not (isinstance(data, dict) and _is_pairs(data.get(name)))]
    if missing:
        rule = f"{DATA_FILE} must hold lists of [text, label]: {', '.join(missing)}"
        raise InvalidInput("--data", rule, str(folder))
    return {name: [(text, label) for text, label in data[name]] for name in parts}


def _is_pairs(rows: Any) -> bool:
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(
            isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row)
            for row in rows
        )
    )


def _table(value: dict[str, Any]) -> str:
    rows = []
    for batch in value["batches"]:
        for name, ratio in batch["ratios"].items():
            spread = f"{ratio['low']:.2f} .. {ratio['high']:.2f}"
            rows.append([batch["batch"], name, f"{ratio['median']:.2f}", spread, ratio["aim"]])
        for name, ms in batch["ms_per_request"].items():
            spread = f"{ms['low']:.3f} .. {ms['high']:.3f}"
            rows.append([batch["batch"], f"{name} ms a request", f"{ms['median']:.3f}", spread, ""])
    for loop in value["http"]:
        figure = f"HTTP, {loop['connections']} connections: requests/s, p50 and p99 ms"
        spread = f"{loop['p50_ms']:.1f} .. {loop['p99_ms']:.1f}"
        rows.append(["", figure, f"{loop['requests_per_second']:.0f}", spread, ""])
    cost = value["bookkeeping_microseconds"]["total"]
    rows.append(["", "arms, metrics and records, microseconds a request", f"{cost:.1f}", "", 5])
    policy, test = value["policy"], value["policy"]["test"]
    heading = (
        f"{value['workload']}, {value['dtype']}, 1 thread: threshold {policy['threshold']:g} "
        f"certified at {policy['epsilon']:.0%}; "
        f"test disagreement {test['disagreement']:.2%} of {test['texts']} "
        f"(p {test['p_value']:.3g}), cost {test['cost']:.3f}; largest difference from transformers "
        f"{value['largest_probability_difference']:.1e}"
    )
    return heading + "\n" + text_table(["batch", "figure", "median", "p10 .. p90", "aim"], rows)
