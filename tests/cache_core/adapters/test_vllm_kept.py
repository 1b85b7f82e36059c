"""Which chunks of windows and recurrent states are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from cache_core.adapters.vllm.scheduler.kept import Kept
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.layout import Group
from tests.cache_core.memory_engine import key

SIZE = 16
KEYS = [key(n) for n in range(6)]
STATES = Group(1, ("layer",), SIZE, 64, "state")


def request(name: str, prompt_chunks: int) -> RequestState:
    asked = SimpleNamespace(request_id=name, num_prompt_tokens=prompt_chunks * SIZE)
    return RequestState(asked, cast(Any, SimpleNamespace(chunk_tokens=SIZE)), keys=list(KEYS))


def forgotten(kept: Kept, state: RequestState, chunks: range, known: set[int]) -> list[int]:
    """What is forgotten while the request's answer gets to the end of each of the chunks."""
    found = []
    for chunk in chunks:
        gone = kept.passed(state, STATES, chunk, chunk in known)
        found += [old for old in gone if not kept.theirs(state, STATES.name(KEYS[old]))]
    return found


def test_of_an_answer_only_the_end_is_kept() -> None:
    kept, answered = Kept(SIZE, whole=True), request("a", 2)
    assert forgotten(kept, answered, range(2, 5), set()) == [2, 3]
    kept.ended(answered, [STATES])
    # Another answer that goes on from there leaves that end alone.
    assert forgotten(kept, request("b", 2), range(2, 6), {4}) == [2, 3]


def test_what_was_there_before_an_answer_passes_it_stays() -> None:
    kept = Kept(SIZE, whole=True)
    assert forgotten(kept, request("a", 2), range(2, 6), {3}) == [2, 4]


def test_what_two_answers_pass_together_stays() -> None:
    kept, one, two = Kept(SIZE, whole=True), request("a", 2), request("b", 2)
    assert forgotten(kept, one, range(2, 3), set()) == []
    assert forgotten(kept, two, range(2, 3), {2}) == []
    assert forgotten(kept, one, range(3, 5), set()) == [3]
    assert forgotten(kept, two, range(3, 5), {3, 4}) == []
