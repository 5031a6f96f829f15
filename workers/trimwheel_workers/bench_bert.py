"""The same weights in `transformers`' BERT classes: the opponent of the serving benchmark.

Every layer of our encoder is BERT's, except the mixture; there BERT's own layer is kept and its
dense net replaced by our expert block in eager form (ordinary linear layers). So both compute the
same function, which the benchmark checks before it times anything. Needs `transformers`; serving
never imports this.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from trimwheel_workers.model.blocks import Experts, Layer
from trimwheel_workers.model.config import Signature
from trimwheel_workers.model.encoder import Encoder


class BertTwin:
    """Full depth by `transformers`, padded in arrival order, as its users run it."""

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        """``encoder`` with its trained weights, not yet in its serving form; it is not changed."""
        self.model = _build(encoder).to(dtype).eval()
        for module in self.model.modules():
            if isinstance(module, Experts):
                module.routers.float()

    @torch.inference_mode()
    def probabilities(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Class probabilities [N, C] in fp32."""
        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits.float().softmax(-1)


class _ExpertBlock(nn.Module):
    """Our mixture behind the interface of BERT's `intermediate`: [N, L, D] -> [N, L, D]."""

    def __init__(self, mixture: Experts, signature: Signature) -> None:
        super().__init__()
        self.mixture = mixture
        self.signature = signature

    def forward(self, x: Tensor) -> Tensor:
        """All tokens, padding included: BERT's classes know no better."""
        fed, _ = self.mixture(x.flatten(0, 1), self.signature)
        return cast(Tensor, fed).view_as(x)


def _build(encoder: Encoder) -> BertForSequenceClassification:
    config = encoder.config
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.feed_forward,
            max_position_embeddings=config.max_tokens,
            type_vocab_size=1,
            num_labels=len(config.classes),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    with torch.no_grad():
        embeddings = model.bert.embeddings
        embeddings.token_type_embeddings.weight.zero_()
        _copy(encoder.tokens, embeddings.word_embeddings)
        _copy(encoder.positions, embeddings.position_embeddings)
        _copy(encoder.embedding_norm, embeddings.LayerNorm)
        for ours, theirs in zip(encoder.layers, model.bert.encoder.layer, strict=True):
            _copy_layer(ours, theirs, config.dense_signature)
        _copy(encoder.heads.pooler, model.bert.pooler.dense)
        _copy(encoder.heads.classifier, model.classifier)
    return model


def _copy_layer(ours: Layer, theirs: Any, signature: Signature) -> None:
    attention = theirs.attention
    weights = ours.attention.qkv.weight.chunk(3)
    biases = ours.attention.qkv.bias.chunk(3)
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        part = getattr(attention.self, name)
        part.weight.copy_(weight)
        part.bias.copy_(bias)
    _copy(ours.attention.out, attention.output.dense)
    _copy(ours.attention_norm, attention.output.LayerNorm)
    _copy(ours.feed_norm, theirs.output.LayerNorm)
    if ours.mixture is not None:
        theirs.intermediate = _ExpertBlock(copy.deepcopy(ours.mixture), signature)
        theirs.output.dense = nn.Identity()
        return
    assert ours.feed is not None
    _copy(ours.feed.up, theirs.intermediate.dense)
    _copy(ours.feed.down, theirs.output.dense)


def _copy(ours: nn.Module, theirs: Any) -> None:
    """Same names in both: weight, and bias where there is one."""
    for name, value in ours.named_parameters():
        getattr(theirs, name).copy_(value)
