"""A corpus as tokens, handed out in pieces of exact length, and questions that quote from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from workloads.draw import Draw
from workloads.generated import phrases
from workloads.request import Part, TokenIds
from workloads.text import Corpus, CorpusError

Encode: TypeAlias = Callable[[str], Sequence[int]]
"""A function from text to token ids, without special tokens."""

PASSAGE_GAP = "\n\n"


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
        """Returns the tokens of any text, int32, shape [n]."""
        return np.array(self._encode(text), np.int32)

    def read(self, count: int, label: str = "", *, first: bool = False) -> TokenIds:
        """Returns exactly ``count`` tokens: the label, then the next passages, cut. ``first``: what
        the prompt starts with, so that BOS, if there is one, is among them.

        Raises ``CorpusError`` if the corpus ends before that.
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
            before = PASSAGE_GAP
        self._handed_out += count
        return np.array(ids[:count], np.int32)


_SYSTEMS = phrases("systems")


def system_prompt(name: str, count: int, reader: TokenReader) -> Part:
    """Makes a system prompt of exactly ``count`` tokens, BOS included: the text of this name in
    ``workloads/data/systems.txt``, cut, or followed by notes from the corpus where it is too
    short."""
    return Part(
        "system", reader.read(count, _SYSTEMS[name] + PASSAGE_GAP + "Background:\n\n", first=True)
    )


QUOTE_ENDINGS = {kind: tuple(text.split("\n\n")) for kind, text in phrases("endings").items()}
"""What may follow a quotation, by the kind of what is asked."""


class Quoter:
    """Writes an opening, a quotation and one of several endings, exactly as long as asked."""

    def __init__(self, endings: Sequence[str], reader: TokenReader, draw: Draw) -> None:
        self._endings = sorted((reader.encode(text) for text in endings), key=len)
        self._reader = reader
        self._draw = draw
        self._openings: dict[str, TokenIds] = {}

    def write(self, opening: str, about: TokenIds, count: int) -> TokenIds:
        """Writes ``count`` tokens: the opening, tokens from a drawn place in ``about`` (not empty;
        begun again where it ends), and an ending that leaves space for a quotation. Where none
        does, the shortest is used and cut."""
        if opening not in self._openings:
            self._openings[opening] = self._reader.encode(opening)
        head = self._openings[opening]
        room = count - len(head)
        fitting = [ending for ending in self._endings if len(ending) < room]
        ending = self._draw.pick(fitting or self._endings[:1])
        quoted = max(0, room - len(ending))
        start = self._draw.below(len(about))
        quotation = np.take(about, np.arange(start, start + quoted), mode="wrap")
        whole: TokenIds = np.concatenate([head, quotation, ending])
        return whole[:count]
