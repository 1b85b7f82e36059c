"""Tokens for chunks that are known by name only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from workloads.generated import GeneratedCorpus
from workloads.request import TokenIds

_PASSAGES = 200
_LEAST_ALPHABET = 64
# One bit more than a name has, so that what is nobody's can't be what a name stands for.
_BITS = 65
_MASK = (1 << _BITS) - 1
_WORD = (1 << 64) - 1
_ODD = 0x1D8AF066F5A0E2B0B  # odd: multiplying by it loses nothing


class ChunkTokens:
    """Equal names, equal tokens; different names, different tokens; the same in every process.

    Tokens are of ``alphabet``, int32 [a], different ids that are ordinary in the model's language.
    A chunk's name, mixed one to one with the seed, is written with them as digits, which takes
    ``digits`` tokens; what follows is a stream of its own. Raises ``ValueError`` for an alphabet
    below 64 tokens.
    """

    def __init__(self, alphabet: npt.NDArray[np.int32], seed: int) -> None:
        if len(alphabet) < _LEAST_ALPHABET:
            raise ValueError(
                f"the tokenizer knows only {len(alphabet)} different tokens in 200 passages of"
                " text; use a model with a larger vocabulary"
            )
        self._alphabet = alphabet
        self._salt = _mixed64(seed & _WORD)
        self.digits = 1
        while len(alphabet) ** self.digits <= _MASK:
            self.digits += 1

    @classmethod
    def from_text(cls, encode: Callable[[str], Sequence[int]], seed: int) -> ChunkTokens:
        """With the tokens that generated English is made of."""
        found: set[int] = set()
        for passage in islice(GeneratedCorpus(0).passages(), _PASSAGES):
            found.update(encode(passage))
        return cls(np.array(sorted(found), np.int32), seed)

    def chunk(self, name: int, length: int) -> TokenIds:
        """A chunk's tokens, int32 [length]. Raises ``ValueError`` if they are too few to tell all
        names apart."""
        if length < self.digits:
            raise ValueError(
                f"scale: chunks of {length} tokens can't all differ; scale so that they have"
                f" {self.digits} or more, or read the trace in longer chunks"
            )
        return self._tokens(name & _WORD, length)

    def segment(self, name: int, length: int) -> TokenIds:
        """Like :meth:`chunk`, of any length: very short ones may be equal by chance."""
        return self._tokens(name & _WORD, length)

    def unique(self, number: int, length: int) -> TokenIds:
        """Tokens of nobody but request ``number`` (0 or more), int32 [length]."""
        return self._tokens((number & _WORD) | 1 << 64, length)

    def _tokens(self, value: int, length: int) -> TokenIds:
        mixed = ((value ^ self._salt) * _ODD) & _MASK
        mixed ^= mixed >> 33
        mixed = (mixed * _ODD) & _MASK
        digits = []
        rest = mixed
        for _ in range(min(self.digits, length)):
            rest, digit = divmod(rest, len(self._alphabet))
            digits.append(digit)
        places = np.empty(length, np.int64)
        places[: len(digits)] = digits
        if length > len(digits):
            counter = np.arange(length - len(digits), dtype=np.uint64)
            start = np.uint64(_mixed64(mixed & _WORD) ^ mixed >> 64)
            stream = _splitmix(start + counter * np.uint64(0x9E3779B97F4A7C15))
            places[len(digits) :] = stream % np.uint64(len(self._alphabet))
        return self._alphabet[places]


def _mixed64(value: int) -> int:
    return int(_splitmix(np.array([value], np.uint64))[0])


def _splitmix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finisher: the same numbers in every version of numpy, unlike its generators."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return result
