"""Invented tokens: equal exactly where the trace says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads import Replay, replay
from workloads.replay import ChunkTokens
from workloads.traces import TraceError

Encode = Callable[[str], list[int]]
ALPHABET = np.arange(100, 1124, dtype=np.int32)
names = st.integers(-(2**63), 2**63 - 1)


@given(names, names, st.integers(0, 2**64), st.integers(7, 40))
def test_equal_names_equal_tokens(a: int, b: int, seed: int, length: int) -> None:
    tokens, again = ChunkTokens(ALPHABET, seed), ChunkTokens(ALPHABET, seed)
    assert tokens.digits == 7
    first = tokens.chunk(a, length)
    assert first.dtype == np.int32 and len(first) == length and np.isin(first, ALPHABET).all()
    assert np.array_equal(first, again.chunk(a, length))
    assert np.array_equal(first, tokens.chunk(b, length)) == (a == b)


@given(names, st.integers(0, 2**40), st.integers(0, 2**40), st.integers(7, 40))
def test_what_is_nobodys_is_nobodys(name: int, a: int, b: int, length: int) -> None:
    tokens = ChunkTokens(ALPHABET, 3)
    assert not np.array_equal(tokens.chunk(name, length), tokens.unique(a, length))
    assert np.array_equal(tokens.unique(a, length), tokens.unique(b, length)) == (a == b)


def test_neighbouring_names_look_nothing_alike() -> None:
    tokens = ChunkTokens(ALPHABET, 0)
    drawn = np.array([tokens.chunk(i, 16) for i in range(500)])
    # Each place would be equal to its neighbour's 1 time in 1024.
    assert (drawn[1:] == drawn[:-1]).mean() < 0.01


def test_another_seed_gives_other_tokens() -> None:
    one, other = (ChunkTokens(ALPHABET, seed).chunk(5, 16) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_the_same_tokens_in_every_process() -> None:
    script = (
        "import numpy as np\nfrom workloads.replay import ChunkTokens\n"
        "print(ChunkTokens(np.arange(100, 1124, dtype=np.int32), 7).chunk(-5, 12).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=60,
    )
    assert json.loads(done.stdout) == ChunkTokens(ALPHABET, 7).chunk(-5, 12).tolist()


def test_too_short_to_differ_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chunks of 6 tokens can't all differ; .* 7 or more"):
        ChunkTokens(ALPHABET, 0).chunk(1, 6)
    with pytest.raises(ValueError, match="only 10 different tokens"):
        ChunkTokens(ALPHABET[:10], 0)


def write(path: Path, *requests: tuple[int, int, list[int]]) -> Path:
    """(arrival in s, prompt length, chunks of 512 tokens)."""
    lines = [
        {"timestamp": 1000 * t, "input_length": n, "output_length": 80, "hash_ids": ids}
        for t, n, ids in requests
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def common(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def test_prompts_share_what_the_trace_shares(encode: Encode, tmp_path: Path) -> None:
    path = write(
        tmp_path / "t",
        (8, 1200, [1, 2, 3]),
        (4, 1200, [1, 2, 3]),
        (6, 1024, [1, 5]),
        (9, 300, [7]),
    )
    plan = Replay(path, speed_up=4, scale=0.25, seed=1)
    requests = replay(plan, encode, None)
    assert [r.arrival_s for r in requests] == [0.0, 0.5, 1.0, 1.25]
    assert [len(r.token_ids) for r in requests] == [300, 256, 300, 75]
    assert {r.max_tokens for r in requests} == {20}
    assert len({r.id for r in requests}) == 4
    ids = [r.token_ids for r in requests]
    assert common(ids[0], ids[2]) == 256  # both full chunks, but not the partial one at the end
    assert common(ids[0], ids[1]) == 128
    assert common(ids[0], ids[3]) == 0
    for request in requests:
        edges = [0, *(segment.end for segment in request.segments)]
        assert edges[-1] == len(request.token_ids) and not request.token_ids.flags.writeable
    assert all(
        np.array_equal(a.token_ids, b.token_ids)
        for a, b in zip(requests, replay(plan, encode, None), strict=True)
    )


def test_the_first_by_arrival_and_a_bos(encode: Encode, tmp_path: Path) -> None:
    path = write(tmp_path / "t", (8, 1200, [1, 2, 3]), (4, 600, [1, 9]), (6, 600, [1, 9]))
    requests = replay(Replay(path, requests=2), encode, 1)
    assert [(r.arrival_s, len(r.token_ids)) for r in requests] == [(0.0, 601), (2.0, 601)]
    assert all(r.token_ids[0] == 1 and 1 not in r.token_ids[1:] for r in requests)
    assert common(requests[0].token_ids, requests[1].token_ids) == 513


def test_lengths_only_share_nothing(encode: Encode, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01,64,5\n2024-01-01,64,5\n")
    first, second = replay(Replay(path), encode, None)
    assert common(first.token_ids, second.token_ids) == 0


def test_malformed_lines_are_told(encode: Encode, tmp_path: Path) -> None:
    path = write(tmp_path / "t", *[(8, 1200, [1, 2, 3])] * 9)
    path.write_text(path.read_text() + "\n{\n")
    told: list[str] = []
    assert len(replay(Replay(path), encode, None, told.append)) == 9
    assert "1 of 10 lines are malformed" in told[0] and ":10: " in told[0]


def test_bad_plans(encode: Encode, tmp_path: Path) -> None:
    for knobs in ({"speed_up": 0}, {"scale": 0}, {"scale": 2}, {"requests": 0}):
        with pytest.raises(ValueError, match=next(iter(knobs)).replace("_", ".")):
            Replay(tmp_path, **knobs)  # type: ignore[arg-type]
    with pytest.raises(TraceError):
        replay(Replay(tmp_path / "none"), encode, None)
    path = write(tmp_path / "t", (8, 1200, [1, 2, 3]))
    with pytest.raises(ValueError, match="can't all differ"):
        replay(Replay(path, scale=0.001), encode, None)
