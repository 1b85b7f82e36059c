"""A tokenizer and a corpus that tests can count with."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import pytest

Encode = Callable[[str], list[int]]


@pytest.fixture(scope="session")
def encode() -> Encode:
    """Words, marks and blank lines to ids that are the same in every process."""
    return lambda text: [
        zlib.crc32(word.encode()) & 0x7FFFFFFF for word in re.findall(r"\n\n|\w+|[^\w\s]", text)
    ]


@dataclass(frozen=True)
class NumberedCorpus:
    """Passage i is ``words`` times "i.j": no token twice. Ends after ``size`` passages."""

    words: int = 50
    size: int | None = None
    name: str = "numbered"

    def passages(self) -> Iterator[str]:
        for i in range(self.size) if self.size is not None else count():
            yield " ".join(f"p{i}w{j}" for j in range(self.words))


@pytest.fixture(scope="session")
def numbered() -> Callable[..., NumberedCorpus]:
    return NumberedCorpus


def _listening(encode: Encode, heard: list[str]) -> Callable[[str], Sequence[int]]:
    def listen(text: str) -> Sequence[int]:
        heard.append(text)
        return encode(text)

    return listen


@pytest.fixture
def listening(encode: Encode) -> tuple[Callable[[str], Sequence[int]], list[str]]:
    """The tokenizer, and the list of all that it was given."""
    heard: list[str] = []
    return _listening(encode, heard), heard
