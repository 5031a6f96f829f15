"""Which files make a model, and the one digest of their bytes.

Apart from `artifact`, so that the init step, which only copies and compares, needs no torch.
"""

from __future__ import annotations

from hashlib import file_digest, sha256
from pathlib import Path

from trimwheel_api.errors import DigestMismatch, InvalidInput
from trimwheel_api.policy import canonical_json

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
WEIGHTS_FILE = "model.safetensors"
FILES = (CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE)


class ModelDigestMismatch(DigestMismatch):
    """The files are not those that the expected digest names."""


class ModelInvalid(InvalidInput):
    """The folder holds no model that this version can load."""


def digest_of(folder: Path | str) -> str:
    """``sha256:`` and the hex of the canonical manifest {file name: sha256 of its bytes}.

    Reads in pieces, so that weights need not fit into memory. Raises ModelInvalid when a file is
    missing or cannot be read.
    """
    manifest = {name: _hash(Path(folder) / name) for name in FILES}
    return f"sha256:{sha256(canonical_json(manifest)).hexdigest()}"


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> ModelInvalid:
    """The sentence for a file of a model that is not there."""
    rule = f"must be a folder with {', '.join(FILES)} ({error})"
    return ModelInvalid("model.uri", rule, str(path))
