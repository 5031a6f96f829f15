"""A model on disk: three files, no pickle, one digest.

    config.json        sizes, classes, free metadata
    tokenizer.json     the `tokenizers` library's format
    model.safetensors  weights, both routers, exit heads and learned scores

The digest names the bytes of all three, so that a policy certified for one model cannot be served
on another. The training recipe saves; the engine and the offline evaluation load.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trimwheel_api.policy import canonical_json
from trimwheel_workers.model import checks
from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.digest import (
    CONFIG_FILE,
    FILES,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    ModelDigestMismatch,
    ModelInvalid,
    digest_of,
    unreadable,
)
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.measured import AskedDtype, Dtype, chosen
from trimwheel_workers.model.tokenizer import Tokenizer

__all__ = [
    "CONFIG_FILE",
    "FILES",
    "TOKENIZER_FILE",
    "WEIGHTS_FILE",
    "AskedDtype",
    "Dtype",
    "LoadedModel",
    "ModelDigestMismatch",
    "ModelInvalid",
    "digest_of",
    "load",
    "save",
    "weights",
]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to serve. ``score_digest`` names the learned scores alone.

    No digest depends on ``dtype``: a certificate names the same model in either type.
    """

    encoder: Encoder
    tokenizer: Tokenizer
    config: EncoderConfig
    digest: str
    score_digest: str
    metadata: Mapping[str, Any]
    dtype: Dtype


def save(
    folder: Path | str, encoder: Encoder, tokenizer: Tokenizer, metadata: Mapping[str, Any]
) -> str:
    """Write the three files into ``folder`` (made if missing) and return their digest.

    ``metadata`` holds JSON values. The encoder must not be in its serving form.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    config = {"encoder": encoder.config.as_dict(), "metadata": dict(metadata)}
    (path / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    (path / TOKENIZER_FILE).write_text(tokenizer.to_json(), "utf-8")
    weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
    save_file(weights, path / WEIGHTS_FILE)
    return digest_of(path)


def load(
    folder: Path | str, expected_digest: str | None = None, dtype: AskedDtype = "float32"
) -> LoadedModel:
    """Read a model and make it ready to serve in ``dtype``; ``auto`` takes the faster one here.

    Raises ModelDigestMismatch when ``expected_digest`` names other bytes (checked before anything
    is parsed), ModelInvalid when a file is missing or does not fit, and InvalidInput when this
    processor cannot compute in the type.
    """
    path = Path(folder)
    digest = digest_of(path)
    if expected_digest is not None and digest != expected_digest:
        raise ModelDigestMismatch(
            "model.digest",
            f"must be the digest of the files, {digest}",
            expected_digest,
            "Point the model's uri and digest at the same version.",
        )
    try:
        encoder, metadata = _stored(path)
        config = encoder.config
        text = (path / TOKENIZER_FILE).read_text("utf-8")
        tokenizer = Tokenizer.from_json(text, config.max_tokens)
        checks.tokenizer_fits(tokenizer, config)
    except Exception as error:
        # Whatever the libraries raise over these bytes, another try will raise it again.
        raise checks.unloadable(path, error) from error
    computed = chosen(dtype)
    return LoadedModel(
        encoder.serving(getattr(torch, computed)),
        tokenizer,
        config,
        digest,
        _score_digest(encoder),
        metadata,
        computed,
    )


def weights(folder: Path | str) -> Encoder:
    """The encoder as it was saved, not in its serving form: for benchmarks and further fitting."""
    return _stored(Path(folder))[0]


def _stored(path: Path) -> tuple[Encoder, dict[str, Any]]:
    """Encoder and metadata; raises whatever the bytes make the libraries raise."""
    stored = json.loads(_read(path / CONFIG_FILE))
    if not isinstance(stored, dict) or not isinstance(stored.get("metadata", {}), dict):
        raise ValueError(f"{CONFIG_FILE} must be an object of encoder and metadata")
    config = EncoderConfig.from_dict(stored.get("encoder"))
    checks.weights_fit(path / WEIGHTS_FILE, config)
    encoder = Encoder(config)
    encoder.load_state_dict(load_file(path / WEIGHTS_FILE))
    checks.weights_are_numbers(encoder)
    return encoder, stored.get("metadata", {})


def _score_digest(encoder: Encoder) -> str:
    """Digest of the learned scores' numbers: a certificate is void when they change."""
    buffers = sorted(encoder.learned.state_dict().items())
    values = {name: sha256(value.numpy().tobytes()).hexdigest() for name, value in buffers}
    return f"sha256:{sha256(canonical_json(values)).hexdigest()}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
