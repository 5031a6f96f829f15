"""Train the demo's encoder, once for each seed and recipe, into the cache folder.

    python -m trimwheel_demo.training --seed 0            # train, or say where the cached model is
    python -m trimwheel_demo.training --seed 0 --is-cached  # exit 0 when it is there, 1 when not

The stage that registers the model calls `ensure`; the set-up runs this module while other things
build. How to fit is the workers' business (`trimwheel_workers.fitting`); this module brings the
corpus, measures the result on held-out snippets, and keeps the cache. A trained folder appears
whole or not at all; an interrupted training goes on from its last checkpoint; of two trainers at
the same time one waits.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimwheel_console import NEGATIVE, emit, note, output_option, progress
from trimwheel_console.exits import HandlingCommand
from trimwheel_console.ranges import SEED, Whole
from trimwheel_demo import corpus
from trimwheel_local.layout import cache_folder

if TYPE_CHECKING:
    from trimwheel_workers.fitting.recipe import Recipe, TrainingSet
    from trimwheel_workers.model.artifact import LoadedModel

Told = Callable[[int, int], None]
SUMMARY_FILE = "trained.json"
MEASURED = 3000
"""Held-out snippets that the figures in the metadata are measured on."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained artifact in ``folder``, its digest, and figures measured on held-out snippets."""

    folder: Path
    digest: str
    metadata: Mapping[str, Any]


def ensure(seed: int, cache: Path | None = None, told: Told | None = None) -> Trained:
    """The demo's model of ``seed``, from the cache or trained now with a progress bar on stderr.

    ``told`` is called with the steps done and the steps in all while it trains.
    """
    from trimwheel_workers.fitting.recipe import Recipe

    data, held = _demo_data(seed)
    return ensure_on(data, Recipe(), seed, held, cache, told)


def ensure_on(
    data: TrainingSet,
    recipe: Recipe,
    seed: int,
    held: Sequence[tuple[str, str]],
    cache: Path | None = None,
    told: Told | None = None,
) -> Trained:
    """`ensure` for any labelled texts; ``held`` is what the figures are measured on."""
    folder = _folder(data, recipe, seed, cache or cache_folder())
    if (found := _cached(folder)) is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(folder.with_suffix(".lock")):
        return _cached(folder) or _train(data, recipe, seed, held, folder, told)


def is_cached(seed: int, cache: Path | None = None) -> bool:
    """Whether `ensure` would return at once."""
    return _cached(_demo_folder(seed, cache)) is not None


def _demo_data(seed: int) -> tuple[TrainingSet, tuple[tuple[str, str], ...]]:
    from trimwheel_workers.fitting.recipe import TrainingSet

    pools = corpus.build(seed)
    data = TrainingSet(pools.classes, pools.labelled("train"), pools.labelled("score"))
    return data, pools.labelled("heldout")


def _demo_folder(seed: int, cache: Path | None) -> Path:
    from trimwheel_workers.fitting.recipe import Recipe

    data, _ = _demo_data(seed)
    return _folder(data, Recipe(), seed, cache or cache_folder())


def _folder(data: TrainingSet, recipe: Recipe, seed: int, cache: Path) -> Path:
    """Keyed by recipe, texts and seed; not by the type of the products, which this processor
    chooses: either type trains the model to the same figures."""
    key = sha256(f"{recipe.digest()} {data.digest()} {seed}".encode()).hexdigest()
    return cache / "models" / f"encoder-{key[:16]}"


def _cached(folder: Path) -> Trained | None:
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return Trained(folder, summary["digest"], summary["metadata"])


def forget(seed: int, cache: Path | None = None) -> None:
    """Remove the cached model of ``seed``; nothing happens when there is none."""
    shutil.rmtree(_demo_folder(seed, cache), ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _train(
    data: TrainingSet,
    recipe: Recipe,
    seed: int,
    held: Sequence[tuple[str, str]],
    folder: Path,
    told: Told | None,
) -> Trained:
    """Fit, save, measure; the finished folder is renamed into place."""
    from trimwheel_workers.fitting.fit import fit
    from trimwheel_workers.model import artifact
    from trimwheel_workers.model.measured import dtype_comparison, fastest_dtype

    dtype = fastest_dtype()
    note(f"training in {dtype}: on this processor {dtype_comparison()}")
    work = folder.with_suffix(".partial")
    with progress() as bar:
        task = bar.add_task(f"training the encoder (seed {seed})", total=None)

        def step(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if told is not None:
                told(done, total)

        encoder, tokenizer = fit(
            data,
            recipe,
            seed,
            state=work / "state",
            progress=step,
            dtype=dtype,
        )
    shutil.rmtree(work / "state", ignore_errors=True)
    artifact.save(work, encoder, tokenizer, {})
    metadata = {"seed": seed, "trained_in": dtype} | figures(artifact.load(work), held)
    digest = artifact.save(work, encoder, tokenizer, metadata)
    summary = json.dumps({"digest": digest, "metadata": metadata}, indent=2)
    (work / SUMMARY_FILE).write_text(summary + "\n", "utf-8")
    work.replace(folder)
    return Trained(folder, digest, metadata)


def figures(model: LoadedModel, held: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Accuracy, majority share and earliest-agree oracle cost on texts that were held out."""
    from trimwheel_workers.offline import evaluate

    measured = held[:MEASURED]
    result = evaluate(model, [text for text, _ in measured], model.config.dense_signature)
    final = result.predictions[:, -1]
    right = sum(
        model.config.classes[guess] == label
        for guess, (_, label) in zip(final.tolist(), measured, strict=True)
    )
    depths = (*model.config.exits, model.config.layers)
    earliest = (result.predictions == final[:, None]).argmax(axis=1)
    cost = sum(depths[index] for index in earliest.tolist()) / (depths[-1] * len(measured))
    commonest = Counter(label for _, label in held).most_common(1)[0][1]
    return {
        "classes": len(model.config.classes),
        "accuracy_full": round(right / len(measured), 4),
        "majority_share": round(commonest / len(held), 4),
        "oracle_cost": round(cost, 4),
        "measured_on": len(measured),
    }


@click.command("train", cls=HandlingCommand, short_help="Train the demo's encoder into the cache.")
@click.option(
    "--seed",
    type=Whole(0, SEED),
    default=0,
    show_default=True,
    help="Of weights, split and batches.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Copy the trained folder here as well."
)
@click.option("--is-cached", "only_ask", is_flag=True, help="Only say whether it is cached.")
@click.option("--retrain", is_flag=True, help="Forget the cached model first.")
@click.option(
    "--progress-file",
    type=click.Path(path_type=Path),
    help="Keep the share done there, for a caller that draws its own bar.",
)
@output_option
def command(
    seed: int,
    out: Path | None,
    only_ask: bool,
    retrain: bool,
    progress_file: Path | None,
    output: str,
) -> None:
    """Train the demo's encoder, or find it in the cache."""
    if retrain:
        forget(seed)
    if only_ask:
        cached = is_cached(seed)
        emit({"seed": seed, "cached": cached}, output, table="cached" if cached else "not cached")
        if not cached:
            click.get_current_context().exit(NEGATIVE)
        return

    def told(done: int, total: int) -> None:
        if progress_file is not None:
            progress_file.write_text(f"{done / total:.4f}\n")

    try:
        trained = ensure(seed, told=told)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("run it again: training goes on from its last checkpoint")
        raise
    if out is not None:
        shutil.copytree(trained.folder, out, dirs_exist_ok=True)
        note(f"copied to {out}")
    emit(
        {"folder": str(trained.folder), "digest": trained.digest, "metadata": trained.metadata},
        output,
    )


if __name__ == "__main__":
    command()
