"""Fit the second router for one expert per token, with everything else frozen.

For each token the frozen mixture gives the trained top-k output, and each expert alone misses it by
some difference d. What that miss does to the answer is, to second order, the squared effect of d on
the log-probability of a class drawn from the model itself (the Fisher metric), so one backward pass
prices every expert for every token. Router B then minimises the expected price under its softmax: a
smooth problem in a few hundred numbers, solved by L-BFGS. A router of nearest experts is no use:
router A's first choice already is the nearest one for nearly every token.

Shapes: T tokens, D model, X experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimwheel_workers.fitting.recipe import Recipe
from trimwheel_workers.model.blocks import Experts
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.packing import PackedBatch, pack

BATCH = 64
PENALTY = 1e-3
"""L2 penalty towards router A, in units of the mean price."""


def fit_second_router(
    encoder: Encoder, tokens: Sequence[Sequence[int]], recipe: Recipe, seed: int
) -> None:
    """Set router B of the mixture layer; ``tokens`` are training texts."""
    encoder.eval().requires_grad_(False)
    mixture = encoder.mixture
    x, prices = _prices(encoder, mixture, tokens[: recipe.second_router_texts], seed)
    first, second = mixture.routers
    start = torch.cat((first.weight, first.bias.unsqueeze(1)), dim=1).detach()
    fitted = _least_price(torch.cat((x, torch.ones(len(x), 1)), dim=1), prices, start)
    second.load_state_dict({"weight": fitted[:, :-1], "bias": fitted[:, -1]})
    encoder.requires_grad_(True)


def _prices(
    encoder: Encoder, mixture: Experts, tokens: Sequence[Sequence[int]], seed: int
) -> tuple[Tensor, Tensor]:
    """Inputs of the mixture [T, D] and the price of each lone expert [T, X], mean 1."""
    generator = torch.Generator().manual_seed(seed)
    probe = _MixtureProbe(mixture)
    inputs: list[Tensor] = []
    prices: list[Tensor] = []
    ordered = sorted(tokens, key=len)
    for start in range(0, len(ordered), BATCH):
        x, output, gradient = probe.run(encoder, pack(ordered[start : start + BATCH]), generator)
        misses = torch.stack([expert(x) - output for expert in mixture.experts], dim=1)
        inputs.append(x)
        prices.append((misses * gradient.unsqueeze(1)).sum(-1).square())
    probe.hook.remove()
    priced = torch.cat(prices)
    return torch.cat(inputs), priced / priced.mean()


class _MixtureProbe:
    """Makes the mixture's output a leaf of the graph, so that its gradient can be asked for."""

    def __init__(self, mixture: Experts) -> None:
        self.hook = mixture.register_forward_hook(self._seize)
        self._seen: tuple[Tensor, Tensor] | None = None

    def _seize(
        self, module: nn.Module, inputs: tuple[Tensor, object], result: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        leaf = result[0].detach().requires_grad_()
        self._seen = (inputs[0].detach(), leaf)
        return leaf, result[1]

    def run(
        self, encoder: Encoder, batch: PackedBatch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input, output and d log p(drawn class) / d output of the mixture, each [T, D]."""
        logs = torch.log_softmax(encoder(batch, encoder.config.dense_signature)[-1], dim=-1)
        drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
        assert self._seen is not None, "the mixture layer ran"
        x, leaf = self._seen
        (gradient,) = torch.autograd.grad(logs.gather(1, drawn).sum(), leaf)
        return x, leaf.detach(), gradient


def _least_price(x: Tensor, prices: Tensor, start: Tensor) -> Tensor:
    """Router [X, D + 1] that minimises the mean expected price, beginning at ``start``."""
    router = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([router], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        expected = (torch.softmax(x @ router.T, dim=-1) * prices).sum(1).mean()
        loss = expected + PENALTY * (router - start).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return router.detach()
