"""How sure an exit is of its answer: one number in [0, 1] for each row, higher is surer.

``learned`` estimates the probability that this exit agrees with full depth, by a logistic
regression for each exit, fitted after training on snippets that the weights never saw. The others
need no fitting: ``maxProb``, ``margin`` (best less second probability), ``entropy`` (1 - normalised
entropy).

Exits are decided on the host, so ``judge`` works on numpy arrays: one transfer an exit, and calls
that cost a fraction of a small tensor op's. ``features_of`` is for fitting; the two agree (tested).

Shapes: N rows, C classes, E exits, e earlier exits, 4 features (probability, log-odds margin,
entropy, agreement with earlier exits).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SCORES = ("learned", "maxProb", "margin", "entropy")
FEATURES = 4
TINY = 1e-30
OVERFLOW = np.float32(80)  # exp of more would be infinite in fp32


class Judged(NamedTuple):
    """One exit's view of N rows; a row whose logits hold a NaN has NaN scores."""

    score: NDArray[np.float32]  # [N]
    prediction: NDArray[np.int64]  # [N]
    probability: NDArray[np.float32]  # [N], of the prediction


class Regression(NamedTuple):
    """The learned score of one exit, on the host."""

    weight: NDArray[np.float32]  # [4]
    class_bias: NDArray[np.float32]  # [C]


class LearnedScore(nn.Module):
    """Logistic regressions for E exits: 4 features and the predicted class."""

    weight: Tensor
    class_bias: Tensor

    def __init__(self, exits: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(exits, FEATURES))
        self.register_buffer("class_bias", torch.zeros(exits, classes))

    def regressions(self) -> list[Regression]:
        """Copies for ``judge``, one for each exit."""
        weight, bias = self.weight.cpu().numpy().copy(), self.class_bias.cpu().numpy().copy()
        return [Regression(*pair) for pair in zip(weight, bias, strict=True)]


def judge(
    logits: NDArray[np.float32], earlier: NDArray[np.int64], learned: Regression, score: str
) -> Judged:
    """Score N rows at one exit. ``logits`` [N, C], ``earlier`` [N, e] predictions."""
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
    rows = np.arange(len(logits))
    prediction = logits.argmax(1)
    with np.errstate(invalid="ignore"):  # rows of broken numbers say so by their NaN
        shifted = logits - logits[rows, prediction][:, None]  # at most 0
    weights = np.exp(shifted)
    total = weights.sum(1)
    probability = 1 / total
    if score == "maxProb":
        return Judged(probability, prediction, probability)
    # -sum p log p = log(total) - sum p shifted, over the uniform distribution's
    spread = np.einsum("nc,nc->n", weights, shifted)
    entropy = (np.log(total) - spread * probability) / np.float32(math.log(logits.shape[1]))
    if score == "entropy":
        return Judged(1 - entropy, prediction, probability)
    shifted[rows, prediction] = -np.inf
    second = shifted.max(1)  # log-odds of the second best, at most 0
    if score == "margin":
        return Judged((1 - np.exp(second)) * probability, prediction, probability)
    w = learned.weight
    z = w[0] * probability - w[1] * second + w[2] * entropy + learned.class_bias[prediction]
    if earlier.shape[1]:
        same = np.count_nonzero(earlier == prediction[:, None], axis=1)
        z += (w[3] / earlier.shape[1]) * same.astype(np.float32)
    odds_against = np.exp(np.minimum(-z, OVERFLOW))
    return Judged(1 / (1 + odds_against), prediction, probability)


def features_of(logits: Tensor, p: Tensor, index: Tensor, earlier: Tensor) -> Tensor:
    """The learned score's inputs [N, 4]; ``index`` [N, 2] holds the two best classes."""
    best = logits.gather(1, index)
    same = (earlier == index[:, :1]).float().mean(1) if earlier.shape[1] else p.new_zeros(len(p))
    probability = p.gather(1, index[:, :1])[:, 0]
    return torch.stack((probability, best[:, 0] - best[:, 1], _entropy(p), same), dim=1)


def _entropy(p: Tensor) -> Tensor:
    """Entropy over the uniform distribution's, in [0, 1]. Clamped: 0 log 0 is 0."""
    return -(p * p.clamp_min(TINY).log()).sum(-1) / math.log(p.shape[-1])
