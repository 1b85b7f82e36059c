"""Pieces of exact length."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads import Corpus, CorpusError, GeneratedCorpus
from workloads.tokens import PASSAGE_GAP, TokenReader

Encode = Callable[[str], list[int]]
Numbered = Callable[..., Corpus]


@given(
    counts=st.lists(st.integers(1, 400), min_size=1, max_size=8),
    label=st.sampled_from(["", "\n\n", "A label of several words: "]),
    bos=st.sampled_from([None, 7]),
)
def test_pieces_are_exact_and_share_nothing(
    counts: list[int], label: str, bos: int | None, encode: Encode, numbered: Numbered
) -> None:
    reader = TokenReader(numbered(words=50), encode, bos)
    pieces = [reader.read(count, label, first=i % 2 == 0) for i, count in enumerate(counts)]
    assert [len(piece) for piece in pieces] == counts
    common = set(encode(label)) | set(encode(PASSAGE_GAP)) | {7}
    text = [token for piece in pieces for token in piece.tolist() if token not in common]
    assert len(text) == len(set(text)), "no word of the corpus is handed out twice"
    for i, piece in enumerate(pieces):
        starts = ([bos] if bos is not None and i % 2 == 0 else []) + encode(label)
        assert piece.tolist()[: len(starts)] == starts[: counts[i]]


def test_a_piece_is_passages_with_blank_lines_between(encode: Encode, numbered: Numbered) -> None:
    corpus = numbered(words=3)
    a, b, c = (text for text, _ in zip(corpus.passages(), range(3), strict=False))
    reader = TokenReader(corpus, encode, None)
    assert reader.read(8, "So: ").tolist() == encode(f"So: {a}\n\n{b}")[:8]
    assert reader.read(2).tolist() == encode(c)[:2], "what was cut off is not used again"


def test_each_passage_is_tokenised_once(
    listening: tuple[Encode, list[str]], numbered: Numbered
) -> None:
    encode, heard = listening
    reader = TokenReader(numbered(words=20), encode, 1)
    for count in (100, 7, 55):
        reader.read(count)
    # A passage has 20 tokens, and one more for the blank line where another stands before it.
    assert len(heard) == 5 + 1 + 3
    words = " ".join(heard).split()
    assert len(words) == len(set(words)) == 9 * 20


def test_a_corpus_that_ends_says_so(encode: Encode, numbered: Numbered) -> None:
    reader = TokenReader(numbered(words=50, size=30), encode, None)
    reader.read(1200)
    with pytest.raises(CorpusError) as caught:
        reader.read(400)
    assert str(caught.value).startswith("numbered: no text left after 1,200 tokens")
    assert "\n" not in str(caught.value)


def test_generated_text_never_ends(encode: Encode) -> None:
    assert len(TokenReader(GeneratedCorpus(1), encode, None).read(200_000)) == 200_000
