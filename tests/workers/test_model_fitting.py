"""Fitting: it learns, it resumes to the same weights, and what is fitted afterwards helps."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trimwheel_workers.fitting import weights
from trimwheel_workers.fitting.fit import fit
from trimwheel_workers.fitting.recipe import Recipe, TrainingSet
from trimwheel_workers.model.config import Signature
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.packing import pack
from trimwheel_workers.model.tokenizer import Tokenizer

CLASSES = ("colours", "numbers", "animals")
WORDS = {
    "colours": ["red", "green", "blue", "pink"],
    "numbers": ["one", "two", "three", "four"],
    "animals": ["cat", "dog", "cow", "hen"],
}
SMALL = replace(
    Recipe(),
    vocabulary=300,
    max_tokens=16,
    dim=32,
    layers=3,
    heads=2,
    feed_forward=48,
    expert_feed_forward=24,
    epochs=3,
    batch=16,
    learning_rate=4e-3,
    exit_weights=(0.5, 0.7, 1.0),
)


def examples(count: int, seed: int) -> list[tuple[str, str]]:
    """Mostly words of the class, and some of another, so that exits may err."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        label = rng.choice(CLASSES)
        other = rng.choice(CLASSES)
        words = [rng.choice(WORDS[rng.choice([label, label, other])]) for _ in range(5)]
        rows.append((" ".join(words), label))
    return rows


DATA = TrainingSet(CLASSES, examples(400, seed=0), examples(200, seed=1))


@pytest.fixture(scope="module")
def fitted() -> tuple[Encoder, Tokenizer]:
    return fit(DATA, SMALL, seed=0)


def full(encoder: Encoder, tokenizer: Tokenizer, texts: list[str], signature: Signature):  # type: ignore[no-untyped-def]
    return encoder.full(pack(tokenizer.encode(texts)), signature)


def test_every_exit_learns_the_classes(fitted: tuple[Encoder, Tokenizer]) -> None:
    rows = examples(300, seed=2)
    outcome = full(*fitted, [text for text, _ in rows], Signature(2, 0.0))
    labels = torch.tensor([CLASSES.index(label) for _, label in rows])
    accuracy = (outcome.predictions == labels.unsqueeze(1)).float().mean(0)
    assert (accuracy > 0.75).all(), f"accuracy by exit: {accuracy.tolist()}"


def test_learned_scores_are_calibrated_probabilities_of_agreeing(
    fitted: tuple[Encoder, Tokenizer],
) -> None:
    outcome = full(*fitted, [text for text, _ in examples(600, seed=3)], Signature(2, 0.0))
    agrees = (outcome.predictions[:, :-1] == outcome.predictions[:, -1:]).float()
    claimed, true = outcome.scores.mean(0), agrees.mean(0)
    assert (claimed - true).abs().max() < 0.05, f"claimed {claimed}, true {true}"


def test_the_second_router_differs_and_the_first_is_as_trained(
    fitted: tuple[Encoder, Tokenizer],
) -> None:
    mixture = fitted[0].layers[SMALL.moe_layer - 1].mixture
    first, second = mixture.routers
    assert not torch.equal(first.weight, second.weight)
    outcome = full(*fitted, [text for text, _ in examples(200, seed=4)], Signature(1, 1.0))
    assert outcome.finite.all()


def test_the_same_seed_fits_the_same_weights_and_another_seed_does_not() -> None:
    few, data = replace(SMALL, epochs=1), replace(DATA, train=DATA.train[:120])
    one, again, other = (fit(data, few, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["tokens.weight"], other["tokens.weight"])


class Interrupted(Exception):
    """Stands for a kill in the middle of an epoch."""


def test_an_interrupted_fit_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    few, data = replace(SMALL, epochs=2), replace(DATA, train=DATA.train[:120])
    whole = fit(data, few, seed=0)[0].state_dict()

    def interrupt(done: int, total: int) -> None:
        if done == total // 2 + 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(data, few, seed=0, state=tmp_path / "parts", progress=interrupt)
    assert (tmp_path / "parts" / weights.CHECKPOINT).exists()
    steps: list[int] = []
    resumed = fit(
        data, few, 0, state=tmp_path / "parts", progress=lambda done, _: steps.append(done)
    )[0].state_dict()
    assert steps[0] > 1, "the resumed fit skipped the epochs already done"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_recipe_and_data_digests_change_with_any_part() -> None:
    assert SMALL.digest() == replace(SMALL).digest() != replace(SMALL, epochs=4).digest()
    assert DATA.digest() != replace(DATA, train=DATA.train[1:]).digest()
    assert DATA.digest() != replace(DATA, score=DATA.score[1:]).digest()
