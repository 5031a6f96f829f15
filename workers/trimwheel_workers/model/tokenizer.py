"""Text to token ids: byte-level BPE by the `tokenizers` library, trained on the task's own texts.

Every text begins with ``[CLS]``, whose final state the exit heads read. Byte-level pieces mean that
no input is unknown. The file `tokenizer.json` is the library's own format.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

# One thread: the library's pool would fight the engine for its core. Read at the first encoding.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

CLS = "[CLS]"


class Tokenizer:
    """Encodes batches of texts, at most ``max_tokens`` ids each, ``[CLS]`` included."""

    def __init__(self, library: Library, max_tokens: int) -> None:
        self._library = library
        self._library.enable_truncation(max_length=max_tokens)
        self._library.no_padding()

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int, max_tokens: int) -> Tokenizer:
        """Learn at most ``vocabulary`` pieces from ``texts``."""
        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[CLS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        library.post_processor = processors.TemplateProcessing(
            single=f"{CLS} $A", special_tokens=[(CLS, library.token_to_id(CLS))]
        )
        return cls(library, max_tokens)

    @classmethod
    def from_json(cls, text: str, max_tokens: int) -> Tokenizer:
        """Read the library's JSON; raises ValueError where it is not that."""
        try:
            library = Library.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"tokenizer: {error}") from error
        return cls(library, max_tokens)

    def to_json(self) -> str:
        """The library's JSON; equal tokenizers give equal bytes."""
        return str(self._library.to_str(pretty=False))

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return int(self._library.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at least one (``[CLS]``)."""
        return [e.ids for e in self._library.encode_batch_fast(list(texts))]
