"""The encoder again, slow and plain: padded batch, explicit attention, a loop over experts.

Only tests and benchmarks call it: every fast path of the model must agree with it. It shares the
weights of an ``Encoder`` but none of its forward code: no packing, no peeking, no prepacked
weights, no compaction.

Shapes: N rows, L longest row, D model, H heads, K = D / H, C classes, E exits, X experts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trimwheel_workers.model.blocks import Attention, Experts, Layer
from trimwheel_workers.model.config import Signature
from trimwheel_workers.model.encoder import Encoder


@torch.no_grad()
def reference_logits(
    encoder: Encoder, texts: Sequence[Sequence[int]], signature: Signature
) -> list[Tensor]:
    """E + 1 logits [N, C] in the order of ``texts``: every exit's, then full depth's."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    real = torch.tensor([[place < len(text) for place in range(longest)] for text in texts])
    x = encoder.tokens.weight[ids] + encoder.positions.weight[:longest]
    x = encoder.embedding_norm(x)
    heads = encoder.heads
    logits = []
    for number, layer in enumerate(encoder.layers, start=1):
        x = _layer(layer, x, real, signature)
        if number in encoder.config.exits:
            head = heads.exits[encoder.config.exits.index(number)]
            logits.append(F.linear(x[:, 0].float(), head.weight, head.bias))
    pooled = torch.tanh(F.linear(x[:, 0].float(), heads.pooler.weight, heads.pooler.bias))
    return [*logits, F.linear(pooled, heads.classifier.weight, heads.classifier.bias)]


def _layer(layer: Layer, x: Tensor, real: Tensor, signature: Signature) -> Tensor:
    x = layer.attention_norm(x + _attention(layer.attention, x, real))
    if layer.mixture is not None:
        fed = _experts(layer.mixture, x, signature)
    else:
        assert layer.feed is not None
        up, down = layer.feed.up, layer.feed.down
        fed = F.linear(F.gelu(F.linear(x, up.weight, up.bias)), down.weight, down.bias)
    return layer.feed_norm(x + fed)  # type: ignore[no-any-return]


def _attention(attention: Attention, x: Tensor, real: Tensor) -> Tensor:
    rows, length, width = x.shape
    split = (rows, length, attention.heads, width // attention.heads)
    parts = F.linear(x, attention.qkv.weight, attention.qkv.bias).chunk(3, dim=-1)
    q, k, v = (part.view(split).transpose(1, 2) for part in parts)
    weights = q @ k.transpose(2, 3) / math.sqrt(split[-1])
    weights = weights.masked_fill(~real[:, None, None, :], -math.inf).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).reshape(rows, length, width)
    return F.linear(mixed, attention.out.weight, attention.out.bias)


def _experts(mixture: Experts, x: Tensor, signature: Signature) -> Tensor:
    """Every expert on every token, weighted; gates of experts not chosen are zero."""
    blend = signature.router_blend
    a, b = (F.linear(x.float(), r.weight, r.bias) for r in list(mixture.routers)[:2])
    logits = (1 - blend) * a + blend * b
    limit = logits.topk(signature.top_k, dim=-1).values[..., -1:]
    gates = logits.masked_fill(logits < limit, -math.inf).softmax(-1).to(x.dtype)
    out = torch.zeros_like(x)
    for index, expert in enumerate(mixture.experts):
        inner = F.gelu(F.linear(x, expert.up.weight, expert.up.bias))
        out += gates[..., index, None] * F.linear(inner, expert.down.weight, expert.down.bias)
    return out
