"""Fit the second router for one expert per token, with everything else frozen.

For each token the frozen mixture says what the trained top-k output is and how far each expert alone
is from it. Router B learns to put its weight on the nearest expert: it minimises the expected squared
distance under its softmax, a smooth problem in a few hundred numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimwheel_workers.fitting.recipe import Recipe
from trimwheel_workers.model.blocks import Experts
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.packing import pack

BATCH = 64
TOKENS = 4096
LEARNING_RATE = 0.02


def fit_second_router(
    encoder: Encoder, tokens: Sequence[Sequence[int]], recipe: Recipe, seed: int
) -> None:
    """Set router B of the mixture layer; ``tokens`` are training texts."""
    mixture = encoder.layers[encoder.config.moe_layer - 1].mixture
    inputs = _mixture_inputs(encoder, mixture, tokens[: recipe.second_router_texts])
    distances = _distances(mixture, inputs, encoder)
    router = mixture.routers[1]
    router.load_state_dict(mixture.routers[0].state_dict())
    optimizer = torch.optim.Adam(router.parameters(), lr=LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    for step in range(recipe.second_router_steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / recipe.second_router_steps)
        pick = torch.randint(len(inputs), (TOKENS,), generator=generator)
        chances = torch.softmax(router(inputs[pick]), dim=-1)
        loss = (chances * distances[pick]).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _mixture_inputs(
    encoder: Encoder, mixture: Experts, tokens: Sequence[Sequence[int]]
) -> Tensor:
    """What the mixture sees: [T, D] over all texts."""
    encoder.eval()
    seen: list[Tensor] = []
    hook = mixture.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ordered = sorted(tokens, key=len)
    for start in range(0, len(ordered), BATCH):
        encoder(pack(ordered[start : start + BATCH]), encoder.config.dense_signature)
    hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def _distances(mixture: Experts, x: Tensor, encoder: Encoder) -> Tensor:
    """Squared distance of each expert's output from the trained mixture's: [T, X], mean 1."""
    target, _ = mixture(x, encoder.config.dense_signature)
    columns = [(expert(x) - target).square().sum(1) for expert in mixture.experts]
    distances = torch.stack(columns, dim=1)
    return distances / distances.mean()
