"""Text to token ids: byte-level BPE by the `tokenizers` library, trained on the task's own texts.

Every text begins with ``[CLS]``, whose final state the exit heads read. Byte-level pieces mean that
no input is unknown. The file `tokenizer.json` is the library's own format.

A model reads `max_tokens` ids, so a text is tokenised from its front, as far as that takes: the
library would take 0.3 s for a word of 65,536 letters of which 63 ids are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

# One thread: the library's pool would fight the engine for its core. Read at the first encoding.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Encoding, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

CLS = "[CLS]"
FIRST_CHARACTERS = 16
"""For each id, how much of a text is tokenised at first; doubled until enough ids follow."""
SPARE_TOKENS = 32
"""Ids behind those kept that show that the cut is too far away to change them: a merge at the cut
moves the boundaries of a few tokens before it."""
LONGEST_TOKEN = 64
"""Characters that one id is taken to cover at least; more where the vocabulary has longer ones."""


class Tokenizer:
    """Encodes batches of texts, at most ``max_tokens`` ids each, ``[CLS]`` included."""

    def __init__(self, library: Library, max_tokens: int) -> None:
        self._library = library
        self._max_tokens = max_tokens
        self._library.enable_truncation(max_length=max_tokens)
        self._library.no_padding()
        longest = max((len(token) for token in library.get_vocab()), default=0)
        self.max_characters = (max_tokens + SPARE_TOKENS) * max(longest, LONGEST_TOKEN)
        """Characters that are read of a text; `max_tokens` ids never cover more."""

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
        with _named():
            return cls(Library.from_str(text), max_tokens)

    def to_json(self) -> str:
        """The library's JSON; equal tokenizers give equal bytes."""
        return str(self._library.to_str(pretty=False))

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return int(self._library.get_vocab_size())

    @property
    def largest_id(self) -> int:
        """The largest id that a text can get."""
        return max(self._library.get_vocab().values(), default=-1)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at least one (``[CLS]``): the first of its whole tokenisation."""
        done: list[list[int]] = [[]] * len(texts)
        places = list(range(len(texts)))
        size = FIRST_CHARACTERS * self._max_tokens
        while places:
            size = min(size, self.max_characters)
            with _named():
                parts = self._library.encode_batch_fast([texts[place][:size] for place in places])
            again = []
            for place, part in zip(places, parts, strict=True):
                done[place] = part.ids
                whole = len(texts[place]) <= size or size == self.max_characters
                if not whole and _spare(part) < SPARE_TOKENS:
                    again.append(place)
            places, size = again, 2 * size
        return done


@contextmanager
def _named() -> Iterator[None]:
    """Whatever the library raises as ValueError; where its Rust panics, that is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"tokenizer: {error}") from error


def _spare(encoding: Encoding) -> int:
    """How many ids were found beyond those kept, as far as that matters."""
    return sum(len(part) for part in encoding.overflowing[:2])
