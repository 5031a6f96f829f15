"""The whole fit, top to bottom: tokenizer, weights, learned scores, second router."""

from __future__ import annotations

from pathlib import Path

import torch

from trimwheel_workers.fitting.agreement import fit_agreement
from trimwheel_workers.fitting.recipe import Recipe, TrainingSet
from trimwheel_workers.fitting.routing import fit_second_router
from trimwheel_workers.fitting.weights import Progress, train_weights
from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.measured import AUTO, AskedDtype, chosen
from trimwheel_workers.model.tokenizer import Tokenizer


def fit(
    data: TrainingSet,
    recipe: Recipe,
    seed: int,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
    dtype: AskedDtype = AUTO,
) -> tuple[Encoder, Tokenizer]:
    """Fit a model; deterministic for one machine, data, recipe and seed.

    ``dtype`` is that of the products; ``auto`` takes the faster one here. ``state`` is a folder for
    checkpoints: an interrupted fit goes on from there.
    """
    torch.set_num_threads(1)  # sums in one order, whatever the machine; twice as fast on a busy one
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train(
        (text for text, _ in data.train), recipe.vocabulary, recipe.max_tokens
    )
    encoder = Encoder(config_of(data.classes, tokenizer, recipe))
    _initialise(encoder)
    labels = {name: index for index, name in enumerate(data.classes)}
    tokens = tokenizer.encode([text for text, _ in data.train])
    examples = [(ids, labels[label]) for ids, (_, label) in zip(tokens, data.train, strict=True)]
    train_weights(
        encoder, examples, recipe, seed, state=state, progress=progress, dtype=chosen(dtype)
    )
    fit_agreement(encoder, tokenizer.encode([text for text, _ in data.score]))
    fit_second_router(encoder, tokens, recipe, seed)
    return encoder, tokenizer


def config_of(classes: tuple[str, ...], tokenizer: Tokenizer, recipe: Recipe) -> EncoderConfig:
    """Sizes of the model that a recipe trains."""
    return EncoderConfig(
        vocabulary=tokenizer.vocabulary,
        classes=classes,
        dim=recipe.dim,
        layers=recipe.layers,
        heads=recipe.heads,
        feed_forward=recipe.feed_forward,
        max_tokens=recipe.max_tokens,
        exits=tuple(range(1, recipe.layers)),
        moe_layer=recipe.moe_layer,
        experts=recipe.experts,
        expert_feed_forward=recipe.expert_feed_forward,
    )


def _initialise(encoder: Encoder) -> None:
    """Small embeddings, as BERT; linear layers keep torch's defaults."""
    for table in (encoder.tokens, encoder.positions):
        torch.nn.init.normal_(table.weight, std=0.02)
