"""One transformer layer: attention, then a feed-forward net or a mixture of experts (post-norm, as
BERT).

Every layer can run in two ways that agree to rounding: ``forward`` on all tokens, and ``peek`` on
each row's first token alone. The exit heads read only that token, so an exit is decided by a peek,
and only the rows that go on pay for the layer.

Shapes: T tokens, N rows, D model, H heads, K = D / H, F inner width, X experts, k chosen experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimwheel_workers.model import measured
from trimwheel_workers.model.config import EncoderConfig, Signature
from trimwheel_workers.model.kernels import Linear, Modules, first_token_attention, packed_attention
from trimwheel_workers.model.packing import Layout

NORM_EPSILON = 1e-12  # BERT's
SIDE_BY_SIDE_TOKENS = (16, 32, 64, 128, 256)
"""Token counts that are tried for the one up to which running all experts costs less than sorting
tokens by expert."""


class Attention(nn.Module):
    """Multi-head self-attention within each packed row."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.out = Linear(config.dim, config.dim)
        self._peek: _ByHead | None = None

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.out(packed_attention(self.qkv(x), layout, self.heads))  # type: ignore[no-any-return]

    def serving(self) -> None:
        """Keep the peek's weights in fp32: small products in bf16 cost the CPU three times more."""
        if self.qkv.weight.device.type == "cpu":
            exact = self.qkv.weight.detach().float(), self.qkv.bias.detach().float()
            self._peek = _by_head(*exact, self.heads)

    def peek(self, x: Tensor, first: Tensor, layout: Layout) -> Tensor:
        """Output for each row's first token only: [T, D] and [N, D] -> [N, D].

        q.k = (q W_k).x, and the mean of values is the value of the mean, so keys and values of the
        other tokens are not needed; a key bias shifts all scores of a row alike and drops out.
        """
        dtype = first.dtype
        if self._peek is not None:
            x, first = x.float(), first.float()
        w = self._peek or _by_head(self.qkv.weight, self.qkv.bias, self.heads)
        q = torch.baddbmm(w.query_bias, first.expand(self.heads, -1, -1), w.query)  # [H, N, K]
        query = torch.bmm(q, w.key).transpose(0, 1)  # [N, H, D]
        mixed = first_token_attention(query, x, layout, scale=q.shape[2] ** -0.5)
        values = torch.baddbmm(w.value_bias, mixed.transpose(0, 1), w.value)  # [H, N, K]
        return self.out(values.transpose(0, 1).reshape(first.shape).to(dtype))  # type: ignore[no-any-return]


class _ByHead(NamedTuple):
    """Views of an attention's input projection, head by head."""

    query: Tensor  # [H, D, K]
    query_bias: Tensor  # [H, 1, K]
    key: Tensor  # [H, K, D]
    value: Tensor  # [H, D, K]
    value_bias: Tensor  # [H, 1, K]


def _by_head(weight: Tensor, bias: Tensor, heads: int) -> _ByHead:
    q, k, v = weight.view(3, heads, -1, weight.shape[1])  # each [H, K, D]
    q_bias, _, v_bias = bias.view(3, heads, 1, -1)
    return _ByHead(q.transpose(1, 2), q_bias, k, v.transpose(1, 2), v_bias)


class FeedForward(nn.Module):
    """Two matrix products with a GELU between."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.up = Linear(dim, inner, gelu=True)
        self.down = Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down(self.up(x))  # type: ignore[no-any-return]


class Experts(nn.Module):
    """Mixture of experts: each token visits the k experts its router likes best; none is dropped.

    Gate weights are the softmax over the *chosen* experts' logits (they sum to one), in training
    and at every k, so k = 1 gives its expert the weight 1. Router logits blend router A (trained
    with the model) and router B (fitted afterwards for k = 1).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.routers: Modules[nn.Linear] = Modules(
            nn.Linear(config.dim, config.experts) for _ in range(config.routers)
        )
        self.experts: Modules[FeedForward] = Modules(
            FeedForward(config.dim, config.expert_feed_forward) for _ in range(config.experts)
        )
        self._top_k = config.default_top_k
        self._side_by_side: _SideBySide | None = None
        self.side_by_side_tokens: dict[int, int] = {}
        """By experts a token: tokens up to which all run side by side; measured when it begins to
        serve, for one expert (a knob's other end) and for as many as in training."""

    def logits(self, x: Tensor, blend: float) -> Tensor:
        """Blended router logits [T, X]; always fp32, so that routing does not flip by precision."""
        a, b = self.routers[0], self.routers[1]
        weight = torch.lerp(a.weight, b.weight, blend) if blend else a.weight
        bias = torch.lerp(a.bias, b.bias, blend) if blend else a.bias
        return F.linear(x.float(), weight.float(), bias.float())

    def serving(self) -> None:
        """Lay all experts' weights side by side as well, for batches of few tokens, if that is the
        faster way here."""
        side_by_side = _SideBySide(list(self.experts))
        self.side_by_side_tokens = {
            top_k: measured.once(
                ("side by side", top_k, *self._sizes()),
                partial(self._crossover, side_by_side, top_k),
            )
            for top_k in {1, self._top_k}
        }
        self._side_by_side = side_by_side if any(self.side_by_side_tokens.values()) else None

    def _sizes(self) -> tuple[object, ...]:
        """What the time of a mixture depends on."""
        weight = self.experts[0].up.weight
        return (*weight.shape, str(weight.dtype), len(self.experts))

    @torch.inference_mode()
    def _crossover(self, side_by_side: _SideBySide, top_k: int) -> int:
        width, dtype = self.experts[0].up.weight.shape[1], self.experts[0].up.weight.dtype

        def ways(tokens: int) -> tuple[measured.Way, measured.Way]:
            x = measured.numbers(tokens, width, dtype)
            top, chosen = self.logits(x, 0.0).topk(top_k, dim=-1)
            gates = torch.softmax(top, dim=-1).to(dtype)
            return lambda: side_by_side(x, gates, chosen), lambda: self._routed(x, gates, chosen)

        return (0, *SIDE_BY_SIDE_TOKENS)[measured.crossover(SIDE_BY_SIDE_TOKENS, ways)]

    def forward(self, x: Tensor, signature: Signature) -> tuple[Tensor, Tensor]:
        """[T, D] -> output [T, D] and the chosen experts [T, k]."""
        top, chosen = self.logits(x, signature.router_blend).topk(signature.top_k, dim=-1)
        gates = torch.softmax(top, dim=-1).to(x.dtype)
        if self._side_by_side is not None and len(x) <= self._limit(signature.top_k):
            return self._side_by_side(x, gates, chosen), chosen
        return self._routed(x, gates, chosen), chosen

    def _limit(self, top_k: int) -> int:
        """Tokens up to which all experts run side by side; the more experts, the more of them."""
        return self.side_by_side_tokens.get(top_k, self.side_by_side_tokens[self._top_k])

    def _routed(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """Each expert on its own tokens; gates and choices are [T, k]."""
        top_k = chosen.shape[1]
        slots = chosen.flatten().argsort(stable=True)  # token-expert pairs, expert by expert
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()
        routed = torch.split(x.index_select(0, slots // top_k), counts)
        done = torch.cat(
            [expert(part) for expert, part in zip(self.experts, routed, strict=True) if len(part)]
        )
        back = torch.empty_like(slots)
        back[slots] = torch.arange(len(slots), device=slots.device)
        pairs = done.index_select(0, back).view(len(x), top_k, -1)
        return (pairs * gates.unsqueeze(-1)).sum(1)


class _SideBySide:
    """All experts as one wide feed-forward net, where a gate of zero mutes what was not chosen.

    With two experts of four twice the arithmetic in a third of the calls, so it wins while calls
    are what a batch costs. Not a module: its weights are copies, and belong to no artifact.
    """

    def __init__(self, experts: Sequence[FeedForward]) -> None:
        up, down = [expert.up for expert in experts], [expert.down for expert in experts]
        self.biases = torch.stack([layer.bias for layer in down])  # [X, D]
        self.up = Linear.frozen(
            torch.cat([layer.weight for layer in up]),
            torch.cat([layer.bias for layer in up]),
            gelu=True,
        )
        self.down = Linear.frozen(
            torch.cat([layer.weight for layer in down], dim=1), torch.zeros_like(down[0].bias)
        )

    def __call__(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """[T, D], gates and chosen experts [T, k] -> [T, D]."""
        spread = x.new_zeros(len(x), len(self.biases)).scatter_(1, chosen, gates)  # [T, X]
        inner = self.up(x).view(*spread.shape, -1).mul_(spread.unsqueeze(2))
        return torch.addmm(self.down(inner.flatten(1)), spread, self.biases)


class Layer(nn.Module):
    """Attention and feed-forward with residuals, each followed by a layer norm."""

    def __init__(self, config: EncoderConfig, *, mixture: bool) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.dim, eps=NORM_EPSILON)
        self.mixture = Experts(config) if mixture else None
        self.feed = None if mixture else FeedForward(config.dim, config.feed_forward)
        self.feed_norm = nn.LayerNorm(config.dim, eps=NORM_EPSILON)

    def serving(self) -> None:
        """Lay weights out for inference; they may not change afterwards."""
        self.attention.serving()
        if self.mixture is not None:
            self.mixture.serving()

    def forward(
        self, x: Tensor, layout: Layout, signature: Signature
    ) -> tuple[Tensor, Tensor | None]:
        """[T, D] -> [T, D], and the chosen experts [T, k] of a mixture layer."""
        return self._feed(self.attention_norm(x + self.attention(x, layout)), signature)

    def peek(
        self, x: Tensor, first: Tensor, layout: Layout, signature: Signature
    ) -> tuple[Tensor, Tensor | None]:
        """The same for first tokens only: [T, D], [N, D] -> [N, D] and chosen experts [N, k]."""
        return self._feed(
            self.attention_norm(first + self.attention.peek(x, first, layout)), signature
        )

    def _feed(self, x: Tensor, signature: Signature) -> tuple[Tensor, Tensor | None]:
        if self.mixture is not None:
            fed, chosen = self.mixture(x, signature)
            return self.feed_norm(x + fed), chosen
        assert self.feed is not None
        return self.feed_norm(x + self.feed(x)), None
