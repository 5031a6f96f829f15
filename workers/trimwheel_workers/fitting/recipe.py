"""How a model is fitted: every number of the training, in one frozen object.

Its digest, with that of the data and the seed, is the key under which a trained model is cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

from trimwheel_api.policy import canonical_json

VERSION = 1
"""Raise when the code of this package changes what it would train."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and schedule. Defaults suit about 30,000 short texts and one CPU thread."""

    vocabulary: int = 6000
    max_tokens: int = 64
    dim: int = 192
    layers: int = 6
    heads: int = 4
    feed_forward: int = 512
    moe_layer: int = 2
    experts: int = 4
    expert_feed_forward: int = 256
    epochs: int = 2
    batch: int = 64
    learning_rate: float = 1.2e-3
    warmup: float = 0.08
    weight_decay: float = 0.05
    label_smoothing: float = 0.0
    exit_weights: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    """Loss weight of each exit and, last, of full depth."""
    balance: float = 0.01
    """Weight of the experts' load-balancing loss."""
    sharpness: float = 0.015
    """Weight of the router's entropy: a decided router makes the second expert's part small."""
    lone_expert_share: float = 0.25
    """Share of batches trained with one expert a token, so that one is a usable choice later."""
    second_router_texts: int = 3000

    def digest(self) -> str:
        """Names the recipe and the code's version."""
        values = {key: repr(value) for key, value in asdict(self).items()} | {"version": VERSION}
        return sha256(canonical_json(values)).hexdigest()


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Labelled texts: ``train`` for weights, ``score`` (never trained on) for the learned
    scores."""

    classes: tuple[str, ...]
    train: Sequence[tuple[str, str]]
    score: Sequence[tuple[str, str]]

    def digest(self) -> str:
        """Hex digest of classes and texts."""
        whole = sha256("\0".join(self.classes).encode())
        for name, part in (("train", self.train), ("score", self.score)):
            for text, label in part:
                whole.update(f"\0{name}\0{label}\0{text}".encode())
        return whole.hexdigest()
