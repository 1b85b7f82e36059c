"""A corpus as tokens, handed out in pieces of exact length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from workloads.request import TokenIds
from workloads.text import Corpus, CorpusError

Encode: TypeAlias = Callable[[str], Sequence[int]]
"""Text to token ids, without special tokens."""

GAP = "\n\n"


class TokenReader:
    """Reads a corpus once, from its start, tokenising each passage once.

    Every piece starts at the start of a passage that no earlier piece has touched: pieces share no
    text, and none starts amid a sentence. A piece may break off amid one.
    """

    def __init__(self, corpus: Corpus, encode: Encode, bos: int | None) -> None:
        self._corpus = corpus
        self._passages: Iterator[str] = corpus.passages()
        self._encode = encode
        self._bos = [] if bos is None else [bos]
        self._handed_out = 0

    def encode(self, text: str) -> TokenIds:
        """Tokens of any text, int32, shape [n]."""
        return np.array(self._encode(text), np.int32)

    def read(self, count: int, label: str = "", *, first: bool = False) -> TokenIds:
        """Exactly ``count`` tokens: the label, then the next passages, cut. ``first``: what the
        prompt starts with, so that BOS, if there is one, is among them.

        Raises ``CorpusError`` if the corpus ends before.
        """
        ids = list(self._bos) if first else []
        before = label
        while len(ids) < count:
            passage = next(self._passages, None)
            if passage is None:
                raise CorpusError(
                    f"{self._corpus.name}: no text left after {self._handed_out:,} tokens, and"
                    " this workload needs more; add text, or ask for fewer or shorter requests"
                )
            ids += self._encode(before + passage)
            before = GAP
        self._handed_out += count
        return np.array(ids[:count], np.int32)
