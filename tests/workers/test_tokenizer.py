"""A text is tokenised from its front, and gets the ids that its whole tokenisation begins with."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from trimwheel_workers.model.tokenizer import Tokenizer

MAX_TOKENS = 16


def _texts() -> list[str]:
    choose = random.Random(0)
    words = ["".join(choose.choices("ab", k=choose.randint(1, 12))) for _ in range(300)]
    words += [
        "naïve",
        "\U0001f600\U0001f600",
        "é" * 9,
        "====" * 9,
        "def f(x): return x",
        "    " * 5,
    ]
    return [" ".join(choose.choices(words, k=30)) for _ in range(200)]


def _ours() -> Library:
    return Library.from_str(Tokenizer.train(_texts(), 600, MAX_TOKENS).to_json())


def _one_word() -> Library:
    """Byte-level BPE without a split into words: the whole text is one, so merges reach far."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    library.train_from_iterator(_texts(), trainer)
    return library


def _word_pieces() -> Library:
    """As BERT has it, with a normaliser and a token at the end."""
    library = Library(models.WordPiece(unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    library.train_from_iterator(
        _texts(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    )
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, library.token_to_id(name)) for name in special[1:]],
    )
    return library


MADE: dict[str, Callable[[], Library]] = {
    "ours": _ours, "one word": _one_word, "word pieces": _word_pieces,
}  # fmt: skip
PARTS = st.sampled_from(
    ["a", "b", "ab", "aab", "abab", " ", "\n", "=", "====", "é", "\u0301", "\U0001f600", "x", "def",
     "\r\n", "\u200d", "    "]
)  # fmt: skip
TEXTS = st.lists(st.tuples(PARTS, st.integers(1, 700)), max_size=12).map(
    lambda parts: "".join(part * times for part, times in parts)
) | st.lists(PARTS, max_size=2000).map("".join)


@pytest.mark.parametrize("name", MADE)
def test_the_front_of_a_text_gets_the_ids_of_the_whole(name: str) -> None:
    library = MADE[name]()
    tokenizer = Tokenizer(Library.from_str(library.to_str()), MAX_TOKENS)
    library.enable_truncation(MAX_TOKENS)

    @settings(deadline=None, max_examples=150)
    @given(st.lists(TEXTS, min_size=1, max_size=3))
    def check(texts: list[str]) -> None:
        whole = [
            one.ids for one in library.encode_batch([t[: tokenizer.max_characters] for t in texts])
        ]
        assert tokenizer.encode(texts) == whole
        if name != "word pieces":  # there, a word of any length is one unknown token
            assert whole == [one.ids for one in library.encode_batch(texts)]

    check()


HOSTILE = {
    "one word": lambda: "".join(random.choices(string.ascii_lowercase, k=65_536)),
    "one letter": lambda: "a" * 65_536,
    "spaces": lambda: " " * 65_536,
    "emoji": lambda: "\U0001f600" * 65_536,
    "combining marks": lambda: "e" + "\u0301" * 65_535,
    "the longest token": lambda: "=" * 65_536,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_long_text_costs_what_the_model_reads_of_it(make: Callable[[], str]) -> None:
    """Fifteen of them took 4.4 s on a slow core when they were tokenised whole."""
    tokenizer = Tokenizer.train(_texts(), 600, 64)
    texts = [make()] * 15

    def spent() -> float:
        started = time.process_time()
        tokenizer.encode(texts)
        return time.process_time() - started

    assert min(spent() for _ in range(3)) < 0.1
