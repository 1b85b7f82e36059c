"""From parts to a request."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads import Request, Segment
from workloads.request import SEGMENT_KINDS, Part, Prompt


def part(kind: str, *ids: int) -> Part:
    return Part(kind, np.array(ids, np.int32))


def test_parts_become_segments() -> None:
    parts = (part("system", 1, 2), part("document"), part("history", 3), part("question", 4, 5))
    request = Prompt("r", "s", parts).request(1.5, 7)
    assert request.token_ids.tolist() == [1, 2, 3, 4, 5]
    assert request.token_ids.dtype == np.int32
    assert request.segments == (
        Segment(0, 2, "system"),
        Segment(2, 3, "history"),
        Segment(3, 5, "question"),
    )
    assert (request.id, request.session) == ("r", "s")
    assert (request.arrival_s, request.max_tokens) == (1.5, 7)


def test_a_request_can_not_be_changed_and_owns_its_tokens() -> None:
    mine = part("document", 1, 2, 3)
    request = Prompt("r", "s", (mine,)).request(0.0, 1)
    with pytest.raises(ValueError, match="read-only"):
        request.token_ids[0] = 9
    mine.ids[0] = 9
    assert request.token_ids.tolist() == [1, 2, 3]


@given(st.lists(st.tuples(st.sampled_from(SEGMENT_KINDS), st.lists(st.integers(0, 9), max_size=4))))
def test_segments_tile_and_hold_what_the_parts_held(parts: list[tuple[str, list[int]]]) -> None:
    parts = [*parts, ("question", [1])]
    request: Request = Prompt("r", "s", tuple(part(k, *ids) for k, ids in parts)).request(0.0, 1)
    cut = [(s.kind, request.token_ids[s.start : s.end].tolist()) for s in request.segments]
    assert cut == [(kind, ids) for kind, ids in parts if ids]
    ends = [0, *(segment.end for segment in request.segments)]
    assert [segment.start for segment in request.segments] == ends[:-1]
    assert ends[-1] == len(request.token_ids)
