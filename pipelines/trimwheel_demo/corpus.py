"""Two-line snippets of Python's own standard library: the demo's training data and its traffic.

The task is "which package does this snippet come from?". Nothing is downloaded: the source is found
through ``sysconfig`` and is the same on a bare Debian 12 and on a build from source (packages that
a distribution splits off are used when they are there).

Files are cut into short sections, and pools never share a section:

* ``train``     overlapping snippets for the weights;
* ``score``     for the learned agreement scores;
* ``heldout``   base traffic: other sections of the packages that were trained on;
* ``comments``  drifted traffic: comments from modules that no class was trained on. It has no
  labels, and needs none: quality is agreement with the full model.

Base traffic is code without comment lines. Measured on this task, that and the short sections are
what gives a policy something to lose: with whole files and comments in training, a policy certified
at 1.5 % disagreed 2.2 % after the drift, since its confidence fell with its quality; with code in
short sections 3.8 %.

The training recipe and the load generator call this module. It knows no tokens and no model.
"""

from __future__ import annotations

import io
import random
import re
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import chain
from pathlib import Path

CLASSES = (
    "asyncio",
    "collections",
    "concurrent",
    "ctypes",
    "distutils",
    "email",
    "encodings",
    "html",
    "http",
    "importlib",
    "json",
    "lib2to3",
    "logging",
    "multiprocessing",
    "tomllib",
    "unittest",
    "urllib",
    "wsgiref",
    "xml",
    "xmlrpc",
    "zoneinfo",
)
"""Packages that are classes, where present with enough source: about twenty everywhere."""

DRIFT_PACKAGES = ("turtledemo", "re", "curses")
"""Packages kept out of training, whose comments (with those of top-level modules) are the drift."""

POOL_SHARES = {"heldout": 0.25, "score": 0.12}
"""Share of each package's snippets that leaves training, by pool."""

MINIMUM_SNIPPETS = 120
CLASS_CAP = {"train": 2600, "score": 300, "heldout": 700}
"""Most snippets of one class in a pool, so that no package dominates the traffic."""

SECTION_LINES = 24
"""Lines of a section, comments not counted: about a function."""

SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "__pycache__"})
_WORD = re.compile(r"[A-Za-z]{2,}")


@dataclass(frozen=True, slots=True)
class Snippet:
    """Two lines of source; ``label`` is the package, or None where no class applies."""

    text: str
    label: str | None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Immutable pools by name, and the classes that the labels are taken from."""

    classes: tuple[str, ...]
    pools: Mapping[str, tuple[Snippet, ...]]

    def draw(self, mix: Mapping[str, float], seed: int) -> Iterator[Snippet]:
        """Endless independent draws (with replacement): a pool by ``mix`` weights, then a snippet.

        ``mix`` maps pool names to weights above zero; unknown pools raise ValueError.
        """
        unknown = sorted(set(mix) - set(self.pools))
        if unknown or not mix or min(mix.values()) < 0 or sum(mix.values()) <= 0:
            raise ValueError(
                f"mix must give weights of known pools {sorted(self.pools)}, one above 0; "
                f"got {mix!r}"
            )
        rng = random.Random(seed)
        names, weights = list(mix), list(mix.values())
        while True:
            pool = self.pools[rng.choices(names, weights)[0]]
            yield pool[rng.randrange(len(pool))]

    def labelled(self, pool: str) -> tuple[tuple[str, str], ...]:
        """(text, label) of a pool's snippets that have a label."""
        return tuple((s.text, s.label) for s in self.pools[pool] if s.label is not None)

    def digest(self) -> str:
        """Hex digest of classes, pools and texts: equal corpora train equal models."""
        whole = sha256("\0".join(self.classes).encode())
        for name in sorted(self.pools):
            for snippet in self.pools[name]:
                whole.update(f"{name}\0{snippet.label}\0{snippet.text}\0".encode())
        return whole.hexdigest()

    def majority_share(self, pool: str) -> float:
        """Share of the commonest label in ``pool``: the accuracy of always answering it."""
        counts: dict[str | None, int] = {}
        for snippet in self.pools[pool]:
            counts[snippet.label] = counts.get(snippet.label, 0) + 1
        return max(counts.values()) / len(self.pools[pool])


def build(seed: int = 0, stdlib: Path | None = None) -> Corpus:
    """Read the standard library at ``stdlib`` (default: this Python's) and split it by ``seed``.

    Deterministic for one source tree and seed. Raises FileNotFoundError without Python source.
    """
    root = stdlib or Path(sysconfig.get_path("stdlib"))
    pools: dict[str, list[Snippet]] = {"train": [], "score": [], "heldout": []}
    classes: list[str] = []
    seen: set[str] = set()
    for name in CLASSES:
        split = _split_package(root / name, random.Random(f"{seed}/{name}"), seen)
        if min(len(split[pool]) for pool in pools) < MINIMUM_SNIPPETS // 4:
            continue
        classes.append(name)
        for pool, texts in split.items():
            pools[pool].extend(Snippet(text, name) for text in texts)
    if len(classes) < 2:
        raise FileNotFoundError(
            f"standard library source: found {len(classes)} usable packages under {root}, need 2; "
            "install the python3 source files (Debian: libpython3-stdlib)"
        )
    pools["comments"] = [
        Snippet(text, None) for text in _comment_snippets(root) if text not in seen
    ]
    for name, snippets in pools.items():
        random.Random(f"{seed}/{name}").shuffle(snippets)
    return Corpus(tuple(classes), {name: tuple(snippets) for name, snippets in pools.items()})


def _split_package(folder: Path, rng: random.Random, seen: set[str]) -> dict[str, list[str]]:
    """Snippets of one package by pool; sections stay whole."""
    units = _sections(folder)
    rng.shuffle(units)
    total = sum(len(unit) for unit in units)
    split: dict[str, list[str]] = {"train": [], "score": [], "heldout": []}
    filled = dict.fromkeys(POOL_SHARES, 0)
    for unit in units:
        pool = next(
            (
                name
                for name, share in POOL_SHARES.items()
                if filled[name] + len(unit) / 2 <= share * total
            ),
            "train",
        )
        if pool != "train":
            filled[pool] += len(unit)
        step = 1 if pool == "train" else 2
        split[pool].extend(_pairs(unit, step))
    result: dict[str, list[str]] = {}
    for pool in ("train", "score", "heldout"):
        fresh = [text for text in dict.fromkeys(split[pool]) if text not in seen]
        seen.update(fresh)
        rng.shuffle(fresh)
        result[pool] = fresh[: CLASS_CAP[pool]]
    return result


def _sections(folder: Path) -> list[list[str]]:
    """Consecutive sections of each file of a package."""
    files = [_code_lines(path) for path in _python_files(folder)]
    return [
        lines[start : start + SECTION_LINES]
        for lines in files
        for start in range(0, len(lines), SECTION_LINES)
    ]


def _python_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts)
    )


def _code_lines(path: Path) -> list[str]:
    """Stripped lines that hold at least one word and are not comments."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if _WORD.search(line) and not line.startswith("#")]


def _pairs(lines: list[str], step: int) -> list[str]:
    return [f"{lines[i]}\n{lines[i + 1]}" for i in range(0, len(lines) - 1, step)]


@lru_cache(maxsize=2)  # tokenising 130,000 lines is most of `build`, and the seed changes nothing
def _comment_snippets(root: Path) -> tuple[str, ...]:
    """Pairs of consecutive comments from the modules that no class covers."""
    paths = sorted(root.glob("*.py"))
    for package in DRIFT_PACKAGES:
        paths.extend(_python_files(root / package))
    pairs = (_pairs([c for c in _comments(path) if _WORD.search(c)], 2) for path in paths)
    return tuple(dict.fromkeys(chain.from_iterable(pairs)))


def _comments(path: Path) -> list[str]:
    """Comments of one module in order; a module that does not tokenise has none."""
    source = path.read_text(encoding="utf-8", errors="replace")
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return []
    return [token.string.strip() for token in tokens if token.type == tokenize.COMMENT]
