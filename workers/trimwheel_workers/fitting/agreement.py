"""Fit the learned scores: for each exit, the probability that it agrees with full depth.

L2-regularised logistic regression on texts that the weights never saw, in float64 by L-BFGS. No
labels are used: the target is the model's own full-depth answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.packing import pack
from trimwheel_workers.model.scores import FEATURES, features_of

PENALTY = 1.0
"""L2 penalty on standardised weights, in units of one observation."""
BATCH = 64


def fit_agreement(encoder: Encoder, tokens: Sequence[Sequence[int]]) -> None:
    """Set ``encoder.learned`` from full-depth runs over ``tokens`` under the dense signature."""
    logits = _logits(encoder, tokens)
    final = logits[-1].argmax(1)
    earlier = torch.empty(len(final), 0, dtype=torch.int64)
    for index, exit_logits in enumerate(logits[:-1]):
        p = torch.softmax(exit_logits, dim=-1)
        top = p.topk(2, dim=-1).indices
        features = features_of(exit_logits, p, top, earlier)
        weight, bias = _logistic(features, top[:, 0], top[:, 0] == final, p.shape[1])
        encoder.learned.weight[index] = weight
        encoder.learned.class_bias[index] = bias
        earlier = torch.cat((earlier, top[:, :1]), dim=1)


@torch.no_grad()
def _logits(encoder: Encoder, tokens: Sequence[Sequence[int]]) -> list[Tensor]:
    """E + 1 logits [N, C] over all texts, in any one order."""
    encoder.eval()
    ordered = sorted(tokens, key=len)
    parts = [
        encoder(pack(ordered[start : start + BATCH]), encoder.config.dense_signature)
        for start in range(0, len(ordered), BATCH)
    ]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _logistic(
    features: Tensor, prediction: Tensor, agrees: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Weights [4] and class biases [C] of P(agree); features are standardised while fitting."""
    x = features.double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    standard = (x - mean) / scale
    parameters = torch.zeros(FEATURES + classes + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        z = standard @ parameters[:FEATURES] + parameters[FEATURES:-1][prediction] + parameters[-1]
        loss = F.binary_cross_entropy_with_logits(z, agrees.double(), reduction="sum")
        loss = loss + PENALTY * parameters[:-1].square().sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted = parameters.detach()
    weight = fitted[:FEATURES] / scale
    bias = fitted[FEATURES:-1] + fitted[-1] - (weight * mean).sum()
    return weight.float(), bias.float()
