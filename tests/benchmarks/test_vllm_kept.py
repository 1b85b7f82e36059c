"""What is kept of windows and states, on requests of public traces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.vllm_kept import served, traces
from cache_core.layout import Group

TRACES = os.environ.get("LMCACHE_TRACES")


@pytest.mark.skipif(not TRACES, reason="LMCACHE_TRACES names no folder of public traces")
@pytest.mark.parametrize("keeps", ["window", "state"])
def test_a_fraction_of_the_chunks_gives_almost_all_hits(keeps: str) -> None:
    for title, requests in traces(Path(str(TRACES)), 1500, ["chat"]):
        block = requests[0].chunk_tokens
        span = 1024 if keeps == "window" else None
        rest = Group(1, ("b",), block, 1, "window" if span else "state", span)
        groups = (Group(0, ("a",), block, 1), rest)
        (_, hit, _, parts), (_, most, _, all_parts) = (
            served(requests, groups, everything) for everything in (False, True)
        )
        assert hit > 0.9 * most > 0, title
        assert parts / hit < 0.2 * all_parts / most, title
