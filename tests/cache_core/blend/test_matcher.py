"""Chunks are found wherever they stand, and nothing else is."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache_core.blend.matcher import (
    Matcher,
    Piece,
    RollingIndex,
    segment_keys,
    window_hashes,
)
from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout

SIZE = 4
HASHER = ChunkHasher(Namespace(KVLayout(1, 1, 1, "int8", SIZE), "m"))
# Few different tokens, so that windows repeat and overlap.
TOKENS = st.lists(st.integers(0, 2), max_size=60).map(lambda ids: np.array(ids, dtype=np.int32))


def chained(tokens: np.ndarray) -> list[tuple[int, int, bytes]]:
    """A segment's chunks, slowly: each key is of all tokens up to its end, and of that end."""
    found: list[tuple[int, int, bytes]] = []
    for start in range(0, len(tokens), SIZE):
        stop = min(start + SIZE, len(tokens))
        found.append((start, stop, segment_keys(tokens[:stop], HASHER)[-1]))
    return found


def slow(tokens: np.ndarray, firsts: set[bytes], stored: set[bytes]) -> list[tuple[int, int]]:
    """Greedy search, window by window: a segment goes on as far as it is stored."""
    found, i = [], 0
    while i + SIZE <= len(tokens):
        if segment_keys(tokens[i : i + SIZE], HASHER)[0] in firsts:
            begin = i
            for start, stop, key in chained(tokens[begin:]):
                if key not in stored:
                    break
                found.append((begin + start, begin + stop))
                i = begin + stop
        else:
            i += 1
    return found


@given(TOKENS, TOKENS)
def test_stored_segments_are_found_as_by_a_slow_search(
    stored: np.ndarray, prompt: np.ndarray
) -> None:
    matcher = Matcher(HASHER)
    kept = matcher.pieces(stored)
    matcher.stored(stored, kept)
    keys = {piece.key for piece in kept}
    firsts = {p.key for p in kept if p.start == 0 and p.stop == SIZE}
    pieces = matcher.pieces(prompt)
    found = [(p.start, p.stop) for p in pieces if p.key in keys]
    expected = slow(prompt, firsts, keys)
    # What lies between may happen to be what is stored, too.
    assert set(expected) <= set(found)
    check(prompt, pieces)


def check(prompt: np.ndarray, pieces: list[Piece]) -> None:
    end = 0
    for piece in pieces:
        assert piece.start >= end and 0 < piece.stop - piece.start <= SIZE
        assert (piece.start - piece.segment) % SIZE == 0
        assert piece.key == segment_keys(prompt[piece.segment : piece.stop], HASHER)[-1]
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
        assert sum(piece.stop - piece.start for piece in pieces) == len(prompt)
        return sorted(piece.key for piece in pieces)

    shuffled = list(segments)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert keys_of(segments) == keys_of(shuffled)


@given(TOKENS, TOKENS)
def test_a_chunks_key_names_its_segment_up_to_its_end_and_no_more(
    one: np.ndarray, other: np.ndarray
) -> None:
    ours, theirs = segment_keys(one, HASHER), segment_keys(other, HASHER)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        ends = (number + 1) * SIZE
        assert (a == b) is (one[:ends].tolist() == other[:ends].tolist())


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
    assert {piece.segment for piece in matcher.pieces(prompt)} == {0}
    # Of a segment that was stored once and is forgotten, nothing is known any more.
    matcher.index.add(prompt[5:9], segment_keys(prompt[5:9], HASHER)[0])
    assert {piece.segment for piece in matcher.pieces(prompt)} == {0}


def test_what_is_known_to_be_stored_is_bounded() -> None:
    matcher = Matcher(HASHER, most=2)
    prompt = np.arange(30, dtype=np.int32)
    matcher.stored(prompt, matcher.pieces(prompt))
    assert len(matcher._stored) == 2


@given(TOKENS)
def test_windows_hash_alike_if_and_only_if_their_tokens_are_equal(tokens: np.ndarray) -> None:
    windows = [tuple(tokens[i : i + SIZE]) for i in range(len(tokens) - SIZE + 1)]
    assert len(set(window_hashes(tokens, SIZE).tolist())) == len(set(windows))


def test_the_index_forgets_its_oldest() -> None:
    index = RollingIndex(SIZE, most=2)
    chunks = np.arange(12, dtype=np.int32).reshape(3, SIZE)
    for chunk in chunks:
        index.add(chunk, bytes(chunk))
    starts, _ = index.candidates(chunks.ravel())
    assert starts.tolist() == [4, 8] and len(index) == 2
