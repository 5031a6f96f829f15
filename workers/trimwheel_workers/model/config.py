"""Sizes of the encoder and the knobs that change its hidden states.

Every module of the model reads this one; it imports nothing of ours and no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Signature:
    """Batch knobs: what has to be equal for two requests to share a forward pass.

    ``top_k`` experts per token; router logits are ``(1 - router_blend) A + router_blend B``.
    """

    top_k: int
    router_blend: float


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Shape of one encoder. Layers count from 1; ``exits`` are layer numbers below ``layers``."""

    vocabulary: int
    classes: tuple[str, ...]
    dim: int = 192
    layers: int = 6
    heads: int = 4
    feed_forward: int = 512
    max_tokens: int = 64
    exits: tuple[int, ...] = (1, 2, 3, 4, 5)
    moe_layer: int = 2
    experts: int = 4
    expert_feed_forward: int = 256
    default_top_k: int = 2
    routers: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError where sizes do not fit together."""
        rules = {
            f"dim {self.dim} must be a multiple of heads {self.heads}": self.dim % self.heads == 0,
            f"exits {self.exits} must rise strictly within 1..{self.layers - 1}": (
                list(self.exits) == sorted(set(self.exits))
                and all(0 < layer < self.layers for layer in self.exits)
            ),
            f"moe_layer {self.moe_layer} must lie in 1..{self.layers}": (
                1 <= self.moe_layer <= self.layers
            ),
            f"default_top_k {self.default_top_k} must lie in 1..{self.experts}": (
                1 <= self.default_top_k <= self.experts
            ),
            f"classes must be at least 2, got {len(self.classes)}": len(self.classes) >= 2,
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(f"encoder config: {rule}")

    @property
    def dense_signature(self) -> Signature:
        """The signature of training: what "the full model" means."""
        return Signature(self.default_top_k, 0.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """Inverse of ``as_dict``; unknown keys raise TypeError."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)
