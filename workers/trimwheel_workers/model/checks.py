"""What must hold of an artifact's bytes before it is served: one sentence where it does not.

`artifact` calls these while it loads; what only running the model can show is `engine.warm_up`'s.
Sizes are compared before anything is allocated, so that a config of huge numbers costs nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.digest import ModelInvalid
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.tokenizer import Tokenizer

_SENTENCE_CHARACTERS = 300


def unloadable(path: Path, error: Exception) -> ModelInvalid:
    """The sentence for what a library raised over an artifact."""
    said = " ".join(str(error).split()) or type(error).__name__
    if len(said) > _SENTENCE_CHARACTERS:
        said = said[:_SENTENCE_CHARACTERS] + "..."
    return ModelInvalid("model.uri", f"must hold a loadable model ({said})", str(path))


def weights_fit(file: Path, config: EncoderConfig) -> None:
    """Raises ValueError when the file holds other tensors than the config describes."""
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in Encoder(config).state_dict().items()}
    with safe_open(file, framework="pt") as stored:
        shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}
        kinds = {name: stored.get_slice(name).get_dtype() for name in shapes}
    for name, shape in wanted.items():
        if name not in shapes:
            raise ValueError(f"{file.name} lacks {name}")
        if shapes[name] != shape:
            raise ValueError(
                f"size mismatch: {file.name} has {name} {list(shapes[name])}, "
                f"its config describes {list(shape)}"
            )
        if not kinds[name].startswith(("F", "BF")):
            raise ValueError(f"{file.name} has {name} as {kinds[name]}, which are no floats")
    unknown = sorted(shapes.keys() - wanted.keys())
    if unknown:
        raise ValueError(
            f"{file.name} has {unknown[0][:100]!r}, which its config does not describe"
        )


def weights_are_numbers(encoder: Encoder) -> None:
    """Raises ValueError when a weight is NaN or Inf."""
    for name, value in encoder.state_dict().items():
        bad = value.numel() - int(torch.isfinite(value).sum())
        if bad:
            raise ValueError(f"{name} has {bad} of {value.numel()} weights that are NaN or Inf")


def tokenizer_fits(tokenizer: Tokenizer, config: EncoderConfig) -> None:
    """Raises ValueError when texts would get ids that the model has no embedding for, or none."""
    if tokenizer.largest_id >= config.vocabulary:
        raise ValueError(
            f"the tokenizer has ids up to {tokenizer.largest_id}, "
            f"the embedding {config.vocabulary} rows: ids must stay below that"
        )
    if not tokenizer.encode([""])[0]:
        raise ValueError("the tokenizer gives the empty text no id; it must begin with [CLS] or so")
