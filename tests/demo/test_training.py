"""The cache of trained models: whole or absent, keyed by everything that the weights depend on."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from trimwheel_demo import training
from trimwheel_workers.fitting.recipe import Recipe, TrainingSet
from trimwheel_workers.model import artifact

ROWS = [(f"{word} {n}", label) for n in range(40) for word, label in (("up", "a"), ("down", "b"))]
DATA = TrainingSet(("a", "b"), ROWS, ROWS[:40])
TINY = replace(
    Recipe(), vocabulary=280, dim=16, layers=2, heads=2, feed_forward=16, max_tokens=12,
    expert_feed_forward=16, epochs=1, batch=16, exit_weights=(0.5, 1.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, training.Trained]:
    cache = tmp_path_factory.mktemp("cache")
    return cache, training.ensure_on(DATA, TINY, 0, ROWS, cache)


def test_a_trained_model_is_a_loadable_artifact_with_its_figures(
    cached: tuple[Path, training.Trained],
) -> None:
    trained = cached[1]
    model = artifact.load(trained.folder, trained.digest)
    assert model.metadata == trained.metadata
    assert trained.metadata["classes"] == 2 and trained.metadata["majority_share"] == 0.5
    assert 0 < trained.metadata["oracle_cost"] <= 1


def test_the_second_time_nothing_is_trained(
    cached: tuple[Path, training.Trained], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_train", lambda *_: pytest.fail("trained again"))
    assert training.ensure_on(DATA, TINY, 0, ROWS, cached[0]) == cached[1]


@pytest.mark.parametrize(
    ("data", "recipe", "seed"),
    [
        (DATA, TINY, 1),
        (DATA, replace(TINY, learning_rate=1e-4), 0),
        (replace(DATA, train=ROWS[:-1]), TINY, 0),
    ],
    ids=["seed", "recipe", "texts"],
)
def test_another_seed_recipe_or_text_is_another_model(
    cached: tuple[Path, training.Trained], monkeypatch: pytest.MonkeyPatch,
    data: TrainingSet, recipe: Recipe, seed: int,
) -> None:  # fmt: skip
    class Asked(Exception):
        """Training was asked for."""

    def ask(*_: object) -> None:
        raise Asked

    monkeypatch.setattr(training, "_train", ask)
    with pytest.raises(Asked):
        training.ensure_on(data, recipe, seed, ROWS, cached[0])


def test_a_forgotten_model_is_trained_again(
    cached: tuple[Path, training.Trained], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(training, "_demo_data", lambda seed: (DATA, tuple(ROWS)))
    for seed in (0, 1):
        shutil.copytree(cached[1].folder, training._demo_folder(seed, tmp_path))
    training.forget(0, tmp_path)
    assert [training.is_cached(seed, tmp_path) for seed in (0, 1)] == [False, True]
    training.forget(0, tmp_path)  # what is not there is no error


def test_whoever_waits_is_told_each_step(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    training.ensure_on(DATA, TINY, 3, ROWS, tmp_path, lambda *seen: told.append(seen))
    total = told[0][1]
    assert told == [(done, total) for done in range(1, total + 1)]


def test_an_interrupted_training_leaves_nothing_that_looks_trained(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            training.ensure_on(DATA, TINY, 0, ROWS, tmp_path)
    assert not [path for path in tmp_path.rglob(training.SUMMARY_FILE)]
    assert training.ensure_on(DATA, TINY, 0, ROWS, tmp_path).folder.is_dir()
