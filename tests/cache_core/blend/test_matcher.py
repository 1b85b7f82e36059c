"""Chunks are found wherever they stand, and nothing else is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache_core.blend.matcher import Matcher, Piece, RollingIndex, window_hashes
from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout

SIZE = 4
HASHER = ChunkHasher(Namespace(KVLayout(1, 1, 1, "int8", SIZE), "m"))
# Few different tokens, so that windows repeat and overlap.
TOKENS = st.lists(st.integers(0, 2), max_size=60).map(lambda ids: np.array(ids, dtype=np.int32))


def key(tokens: np.ndarray) -> bytes:
    [found] = HASHER.keys(tokens, content=True).content
    return found


def slow(tokens: np.ndarray, stored: set[bytes]) -> list[tuple[int, int]]:
    """Greedy search, window by window."""
    found, i = [], 0
    while i + SIZE <= len(tokens):
        if key(tokens[i : i + SIZE]) in stored:
            found.append((i, i + SIZE))
            i += SIZE
        else:
            i += 1
    return found


@given(TOKENS, TOKENS)
def test_stored_chunks_are_found_as_by_a_slow_search(
    stored: np.ndarray, prompt: np.ndarray
) -> None:
    matcher = Matcher(HASHER)
    kept = matcher.pieces(stored)
    matcher.stored(stored, kept)
    keys = {piece.key for piece in kept}
    pieces = matcher.pieces(prompt)
    assert [(p.start, p.stop) for p in pieces if p.key in keys] == slow(prompt, keys)
    check(prompt, pieces)


def check(prompt: np.ndarray, pieces: list[Piece]) -> None:
    end = 0
    for piece in pieces:
        assert piece.start >= end and piece.stop - piece.start == SIZE
        assert piece.key == key(prompt[piece.start : piece.stop])
        end = piece.stop
    assert end <= len(prompt)


@given(st.lists(TOKENS, min_size=1, max_size=6), st.randoms())
def test_a_segment_gives_the_same_chunks_wherever_it_stands(
    segments: list[np.ndarray], random: object
) -> None:
    def keys_of(order: list[np.ndarray]) -> list[bytes]:
        ends = np.cumsum([len(s) for s in order]).tolist()
        bounds = [(end - len(s), end) for s, end in zip(order, ends, strict=True)]
        prompt = np.concatenate(order)
        pieces = Matcher(HASHER).pieces(prompt, bounds)
        check(prompt, pieces)
        assert len(pieces) == sum(len(s) // SIZE for s in order)
        return sorted(piece.key for piece in pieces)

    shuffled = list(segments)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert keys_of(segments) == keys_of(shuffled)


@given(TOKENS, st.integers(0, 20), st.integers(0, 60))
def test_chunks_keep_within_what_is_asked_for(prompt: np.ndarray, first: int, last: int) -> None:
    first, last = min(first, len(prompt)), min(last, len(prompt))
    for bounds in (None, [(0, len(prompt) // 2), (len(prompt) // 2, len(prompt))]):
        for piece in Matcher(HASHER).pieces(prompt, bounds, first, last):
            assert first <= piece.start and piece.stop <= last


def test_an_equal_hash_is_not_yet_a_match() -> None:
    prompt = np.arange(20, dtype=np.int32)
    matcher = Matcher(HASHER)
    matcher.index.add(prompt[5:9], b"another key".ljust(32))
    assert all(piece.start % SIZE == 0 for piece in matcher.pieces(prompt))


@given(TOKENS)
def test_windows_hash_alike_if_and_only_if_their_tokens_are_equal(tokens: np.ndarray) -> None:
    windows = [tuple(tokens[i : i + SIZE]) for i in range(len(tokens) - SIZE + 1)]
    assert len(set(window_hashes(tokens, SIZE).tolist())) == len(set(windows))


def test_the_index_forgets_its_oldest() -> None:
    index = RollingIndex(SIZE, most=2)
    chunks = np.arange(12, dtype=np.int32).reshape(3, SIZE)
    for chunk in chunks:
        index.add(chunk, key(chunk))
    starts, hashes = index.candidates(chunks.ravel())
    assert starts.tolist() == [4, 8] and len(index) == 2
    index.discard(hashes.tolist()[:1])
    assert index.candidates(chunks.ravel())[0].tolist() == [8]
