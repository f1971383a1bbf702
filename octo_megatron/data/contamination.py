"""Which training documents hold evaluation items: the rules, without files and processes.

Exact: the normalised texts are equal. Overlap: some n words in a row (13 by default, as in GPT-3's appendix C) stand
in both. Evaluation items are kept as 64-bit hashes: of the whole text, and of every run of n words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_NOT_WORD = re.compile(r"[^a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits; text without Latin letters or digits is cut at white space."""
    found = _NOT_WORD.sub(" ", text.lower()).split()
    return found or text.lower().split()


def normalised(text: str) -> str:
    """Letters and digits in lower case, all else dropped: what two copies of one problem have in common."""
    return "".join(words(text))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def ngram_hashes(found: list[str], n: int) -> np.ndarray:
    """uint64 [words - n + 1]: a polynomial hash of every n words in a row; empty where there are fewer."""
    if len(found) < n:
        return np.empty(0, np.uint64)
    one = np.fromiter((_word_hash(word) for word in found), np.uint64, len(found))
    out = np.zeros(len(found) - n + 1, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(n):
            out = out * np.uint64(0x9E3779B97F4A7C15) + one[offset : offset + len(out)]
            out ^= out >> np.uint64(29)
    return out


_known_words: dict[str, int] = {}


def _word_hash(word: str) -> int:
    found = _known_words.get(word)
    if found is None:
        if len(_known_words) > 1_000_000:
            _known_words.clear()
        found = _known_words[word] = _hash(word)
    return found


class Table:
    """Hashes of evaluation items, sorted, with the item of each; asked by binary search."""

    def __init__(self, hashes: np.ndarray, items: np.ndarray):
        """uint64 [entries], int32 [entries], in any order."""
        order = np.lexsort((items, hashes))
        self.hashes, self.items = hashes[order], items[order]

    def find(self, hashes: np.ndarray) -> list[int]:
        """Items that have one of these hashes, each once, rising."""
        first = np.searchsorted(self.hashes, hashes, "left")
        last = np.searchsorted(self.hashes, hashes, "right")
        hit = np.flatnonzero(last > first)
        found = [self.items[a:b] for a, b in zip(first[hit], last[hit], strict=True)]
        return np.unique(np.concatenate(found)).tolist() if found else []


@dataclass(frozen=True)
class Index:
    """All evaluation items, ready to be asked about a document."""

    n: int
    """Words of an n-gram; 0: only exact matches."""
    exact: Table
    grams: Table
    reference: Table
    """Normalised texts of training sets whose own items are no contamination."""

    @classmethod
    def of(cls, items: Iterable[str], n: int, reference: Iterable[str] = ()) -> Index:
        """Index items numbered in their order."""
        exact: list[int] = []
        grams: list[np.ndarray] = []
        for text in items:
            exact.append(_hash(normalised(text)))
            grams.append(np.unique(ngram_hashes(words(text), n)) if n else np.empty(0, np.uint64))
        owners = np.repeat(np.arange(len(grams), dtype=np.int32), [len(one) for one in grams])
        known = np.array([_hash(normalised(text)) for text in reference], np.uint64)
        return cls(
            n,
            Table(np.array(exact, np.uint64), np.arange(len(exact), dtype=np.int32)),
            Table(np.concatenate([np.empty(0, np.uint64), *grams]), owners),
            Table(known, np.zeros(len(known), np.int32)),
        )

    def save(self, path: Path) -> None:
        """Write it for the workers."""
        tables = (self.exact, self.grams, self.reference)
        arrays = {
            f"{kind}{i}": a for i, t in enumerate(tables) for kind, a in (("h", t.hashes), ("i", t.items))
        }
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, n=np.array(self.n), **arrays)

    @classmethod
    def load(cls, path: Path) -> Index:
        """What `save` wrote."""
        with np.load(path, allow_pickle=False) as saved:
            tables = [Table(saved[f"h{i}"], saved[f"i{i}"]) for i in range(3)]
            return cls(int(saved["n"]), *tables)

    def exact_items(self, text: str) -> list[int]:
        """Items whose normalised text is that of `text`."""
        return self.exact.find(np.array([_hash(normalised(text))], np.uint64))

    def overlapping_items(self, text: str) -> list[int]:
        """Items that share n words in a row with `text`, each once."""
        return self.grams.find(ngram_hashes(words(text), self.n)) if self.n else []

    def in_reference(self, text: str) -> bool:
        """Whether the normalised text stands in a reference set."""
        return bool(self.reference.find(np.array([_hash(normalised(text))], np.uint64)))
