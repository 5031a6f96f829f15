"""How sure an exit is of its answer: one number in [0, 1] for each row, higher is surer.

``learned`` estimates the probability that this exit agrees with full depth, by a logistic
regression for each exit, fitted after training on snippets that the weights never saw. The others
need no fitting: ``maxProb``, ``margin`` (best less second probability), ``entropy`` (1 - normalised
entropy).

Shapes: N rows, C classes, E exits, 4 features (probability, log-odds margin, entropy, agreement
with earlier exits). ``judge`` serves batches, ``judge_one`` one row in Python floats, which at
batch 1 is faster than a dozen tiny tensor ops; they agree to rounding (tested).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trimwheel_api.decide import single

SCORES = ("learned", "maxProb", "margin", "entropy")
FEATURES = 4
TINY = 1e-30


class Judged(NamedTuple):
    """One exit's view of N rows."""

    score: Tensor  # float32 [N]
    prediction: Tensor  # int64 [N]
    probability: Tensor  # float32 [N], of the prediction


class LearnedScore(nn.Module):
    """Logistic regressions for E exits: 4 features and the predicted class."""

    weight: Tensor
    class_bias: Tensor

    def __init__(self, exits: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(exits, FEATURES))
        self.register_buffer("class_bias", torch.zeros(exits, classes))

    def forward(self, exit_index: int, features: Tensor, prediction: Tensor) -> Tensor:
        """Features [N, 4], predictions [N] -> probability of agreeing with full depth [N]."""
        bias = self.class_bias[exit_index].index_select(0, prediction)
        return torch.sigmoid(features @ self.weight[exit_index] + bias)

    def tables(self) -> list[tuple[list[float], list[float]]]:
        """For each exit (weights, class biases) as Python floats, for ``judge_one``."""
        return list(zip(self.weight.tolist(), self.class_bias.tolist(), strict=True))


def judge(
    logits: Tensor, exit_index: int, earlier: Tensor, learned: LearnedScore, score: str
) -> Judged:
    """Score N rows at one exit. ``logits`` float32 [N, C], ``earlier`` int64 [N, e] predictions."""
    p = torch.softmax(logits, dim=-1)
    top, index = p.topk(2, dim=-1)
    probability, prediction = top[:, 0], index[:, 0]
    if score == "learned":
        features = features_of(logits, p, index, earlier)
        return Judged(learned(exit_index, features, prediction), prediction, probability)
    if score == "maxProb":
        return Judged(probability, prediction, probability)
    if score == "margin":
        return Judged(top[:, 0] - top[:, 1], prediction, probability)
    if score == "entropy":
        return Judged(1 - _entropy(p), prediction, probability)
    raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")


def features_of(logits: Tensor, p: Tensor, index: Tensor, earlier: Tensor) -> Tensor:
    """The learned score's inputs [N, 4]; ``index`` [N, 2] holds the two best classes."""
    best = logits.gather(1, index)
    same = (earlier == index[:, :1]).float().mean(1) if earlier.shape[1] else p.new_zeros(len(p))
    probability = p.gather(1, index[:, :1])[:, 0]
    return torch.stack((probability, best[:, 0] - best[:, 1], _entropy(p), same), dim=1)


def _entropy(p: Tensor) -> Tensor:
    """Entropy over the uniform distribution's, in [0, 1]. Clamped: 0 log 0 is 0."""
    return -(p * p.clamp_min(TINY).log()).sum(-1) / math.log(p.shape[-1])


def judge_one(
    logits: Sequence[float],
    earlier: Sequence[int],
    table: tuple[list[float], list[float]],
    score: str,
) -> tuple[float, int, float]:
    """``judge`` for one row in Python floats: (score, a 32-bit float; prediction; probability)."""
    best = max(logits)
    if not math.isfinite(best) or any(value != value for value in logits):
        return math.nan, 0, math.nan
    prediction = logits.index(best)
    weights = [math.exp(value - best) for value in logits]
    total = sum(weights)
    probability = 1.0 / total
    if score == "maxProb":
        return single(probability), prediction, probability
    second = max(value for place, value in enumerate(logits) if place != prediction)
    if score == "margin":
        return single((1.0 - math.exp(second - best)) / total), prediction, probability
    # entropy = log(total) - sum p (logit - best)
    spread = sum(w * (value - best) for w, value in zip(weights, logits, strict=True) if w)
    entropy = (math.log(total) - spread / total) / math.log(len(logits))
    if score == "entropy":
        return single(1.0 - entropy), prediction, probability
    if score != "learned":
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    w, class_bias = table
    same = earlier.count(prediction) / len(earlier) if earlier else 0.0
    z = w[0] * probability + w[1] * (best - second) + w[2] * entropy + w[3] * same
    return single(_sigmoid(z + class_bias[prediction])), prediction, probability


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z)) if z > -700 else 0.0
