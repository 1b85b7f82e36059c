"""Warming requests show every shared part once, in another order."""

from __future__ import annotations

import numpy as np

from workloads import GeneratedCorpus, Request, Settings, generate, warming


def parts(request: Request) -> list[bytes]:
    return [request.token_ids[s.start : s.end].tobytes() for s in request.segments]


def test_every_passage_is_shown_once_and_not_in_the_order_of_the_requests() -> None:
    settings = Settings(requests=6, corpus_passages=7, passages=3, passage_tokens=40)
    encode = lambda text: list(text.encode())  # noqa: E731
    requests = generate("rag", settings, GeneratedCorpus(0), encode)
    warm = warming(requests)
    shown = [part for request in warm for part in parts(request)[1:-1]]
    used = [part for request in requests for part in parts(request)[1:-1]]
    assert len(shown) == len(set(shown)) and set(shown) == set(used)
    assert shown == list(reversed(dict.fromkeys(used)))
    for request in warm:
        assert parts(request)[0] == parts(requests[0])[0]
        assert request.max_tokens == 1 and len(request.segments) <= 5
        assert np.all(request.token_ids >= 0)


def test_requests_without_parts_between_give_none() -> None:
    encode = lambda text: list(text.encode())  # noqa: E731
    assert warming(generate("random", Settings(requests=2), GeneratedCorpus(0), encode)) == []
