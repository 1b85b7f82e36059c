"""Questions of exact length that quote what they ask about."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workloads import GeneratedCorpus
from workloads.draw import Draw
from workloads.tokens import QUOTE_ENDINGS, Quoter, TokenReader

Encode = Callable[[str], list[int]]
ENDINGS = (": why?", ": who was it, and when?")


def quoter(encode: Encode, seed: int = 0) -> Quoter:
    return Quoter(ENDINGS, TokenReader(GeneratedCorpus(), encode, None), Draw(seed))


@given(count=st.integers(1, 80), size=st.integers(1, 40), seed=st.integers())
def test_length_is_exact_whatever_there_is_to_quote(
    count: int, size: int, seed: int, encode: Encode
) -> None:
    about = np.arange(1000, 1000 + size, dtype=np.int32)
    found = quoter(encode, seed).write("Q 1: ", about, count)
    assert len(found) == count
    assert found.dtype == np.int32
    head = encode("Q 1: ")
    assert found.tolist()[: len(head)] == head[:count]


@given(count=st.integers(13, 80), seed=st.integers())
def test_a_quotation_runs_on_between_opening_and_ending(
    count: int, seed: int, encode: Encode
) -> None:
    about = np.arange(1000, 1030, dtype=np.int32)
    found = quoter(encode, seed).write("Q 1: ", about, count).tolist()
    ending = next(e for e in map(encode, ENDINGS) if found[-len(e) :] == e)
    quoted = found[len(encode("Q 1: ")) : -len(ending)]
    assert quoted
    assert all(1000 <= token < 1030 for token in quoted)
    assert all((b - a) % 30 == 1 for a, b in pairwise(quoted))


def test_short_questions_get_short_endings_and_long_ones_any(encode: Encode) -> None:
    about = np.arange(1000, 1030, dtype=np.int32)
    short, long = map(encode, ENDINGS)
    write = quoter(encode).write
    tight = len(encode("Q 1: ")) + len(short) + 1
    for _ in range(20):
        assert write("Q 1: ", about, tight).tolist()[-len(short) :] == short
    ends = {tuple(write("Q 1: ", about, 40).tolist()[-len(short) :]) for _ in range(40)}
    assert ends == {tuple(short), tuple(long[-len(short) :])}


def test_an_ending_that_would_leave_no_quotation_does_not_fit(encode: Encode) -> None:
    about = np.arange(1000, 1030, dtype=np.int32)
    short, long = map(encode, ENDINGS)
    write = quoter(encode).write
    for _ in range(20):
        found = write("Q 1: ", about, len(encode("Q 1: ")) + len(long)).tolist()
        assert found[-len(short) :] == short
        assert found[-len(long)] in about


def test_quotations_come_from_all_over(encode: Encode) -> None:
    about = np.arange(1000, 1010, dtype=np.int32)
    write = quoter(encode).write
    opening = len(encode("Q 1: "))
    assert {int(write("Q 1: ", about, 30)[opening]) for _ in range(200)} == set(about.tolist())


def test_openings_and_endings_are_tokenised_once(listening: tuple[Encode, list[str]]) -> None:
    encode, heard = listening
    write = quoter(encode).write
    about = np.arange(9, dtype=np.int32)
    for _ in range(5):
        write("User: ", about, 30)
    assert sorted(heard) == sorted([*ENDINGS, "User: "])


def test_endings_close_the_quotation() -> None:
    for ending in (*QUOTE_ENDINGS["about a text"], *QUOTE_ENDINGS["in a chat"]):
        assert ending.startswith("…”")
        assert ending[-1] in "?.:"
