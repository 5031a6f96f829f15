"""Sizes of the encoder and the knobs that change its hidden states.

Every module of the model reads this one; it imports no torch.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from trimwheel_api.errors import quote

RANGES = {
    "vocabulary": (1, 10_000_000),
    "dim": (1, 65_536),
    "layers": (2, 512),
    "heads": (1, 1024),
    "feed_forward": (1, 1_000_000),
    "max_tokens": (2, 1_000_000),
    "moe_layer": (1, 512),
    "experts": (1, 1024),
    "expert_feed_forward": (1, 1_000_000),
    "default_top_k": (1, 1024),
    "routers": (2, 16),
}
"""Sizes that a model may have; beyond them, a config is a mistake or an attack."""
MOST_CLASSES = 10_000
LONGEST_CLASS = 256


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
        """Raise ValueError where a size is none, or sizes do not fit together."""
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                rule = f"must be a whole number from {least} to {most}"
                raise ValueError(f"encoder config: {name} {rule}, but is {quote(value)}")
        _check_classes(self.classes)
        exits = self.exits
        whole = isinstance(exits, tuple) and all(type(layer) is int for layer in exits)
        rules = {
            f"dim {self.dim} must be a multiple of heads {self.heads}": self.dim % self.heads == 0,
            f"exits {quote(exits)} must be layers that rise strictly within 1..{self.layers - 1}, "
            "at least one": whole
            and len(exits) > 0
            and list(exits) == sorted(set(exits))
            and all(0 < layer < self.layers for layer in exits),
            f"moe_layer {self.moe_layer} must lie in 1..{self.layers}": (
                self.moe_layer <= self.layers
            ),
            f"default_top_k {self.default_top_k} must lie in 1..{self.experts}": (
                self.default_top_k <= self.experts
            ),
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
    def from_dict(cls, values: Any) -> EncoderConfig:
        """Inverse of ``as_dict``. Raises ValueError for anything else."""
        if not isinstance(values, dict):
            raise ValueError(f"encoder config: must be an object, but is {quote(values)}")
        known = {field.name: field.default is MISSING for field in fields(cls)}
        unknown = sorted(set(map(str, values)) - set(known))
        if unknown:
            raise ValueError(f"encoder config: has no field {quote(unknown[0])}")
        missing = [name for name, needed in known.items() if needed and name not in values]
        if missing:
            raise ValueError(f"encoder config: {missing[0]} must be given")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


def _check_classes(classes: Any) -> None:
    if (
        not isinstance(classes, tuple)
        or not 2 <= len(classes) <= MOST_CLASSES
        or not all(isinstance(name, str) and 0 < len(name) <= LONGEST_CLASS for name in classes)
        or len(set(classes)) < len(classes)
    ):
        rule = f"must be 2 to {MOST_CLASSES} different names of at most {LONGEST_CLASS} characters"
        raise ValueError(f"encoder config: classes {rule}, but is {quote(classes)}")
