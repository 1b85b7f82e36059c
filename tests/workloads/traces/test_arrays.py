"""Traces as arrays, against the plain way to say the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.traces import (
    ReadOptions,
    TraceArrays,
    TraceError,
    TraceRequest,
    load_arrays,
    open_trace,
)
from workloads.traces.summary import ceiling, first_hits, summary
from workloads.traces.synthetic import like
from workloads.traces.writing import write_trace

TRACES = os.environ.get("LMCACHE_TRACES")
real = pytest.mark.skipif(not TRACES, reason="LMCACHE_TRACES names no folder of public traces")
CHUNK = 4

paths = st.lists(st.integers(0, 3), max_size=6)
drawn = st.lists(
    st.tuples(paths, st.integers(0, 3), st.integers(0, 50), st.sampled_from([None, "a", "b"])),
    min_size=1,
    max_size=20,
)


def named(path: list[int]) -> list[int]:
    """Names of chunks by all that is before them."""
    return [hash(tuple(path[: i + 1])) for i in range(len(path))]


def request(
    number: int, path: list[int], rest: int, time: int, session: str | None
) -> TraceRequest:
    return TraceRequest(
        id=str(number),
        arrival_s=float(time),
        input_tokens=CHUNK * len(path) + rest,
        output_tokens=number,
        chunk_tokens=CHUNK,
        chunks=np.array(named(path), np.int64),
        session=session,
        tail=number if rest else None,
    )


Drawn = list[tuple[list[int], int, int, str | None]]


def made(given_: Drawn) -> list[TraceRequest]:
    return [request(i, *one) for i, one in enumerate(given_)]


def same(a: TraceArrays, b: TraceArrays) -> bool:
    fields = ("chunk_ids", "offsets", "input_tokens", "output_tokens")
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in fields)


@given(drawn)
def test_arrays_are_the_requests_by_arrival(given_: Drawn) -> None:
    requests = made(given_)
    arrays = load_arrays(requests)
    by_arrival = sorted(requests, key=lambda r: r.arrival_s)
    assert arrays.chunk_ids.dtype == arrays.offsets.dtype == np.int64
    assert len(arrays) == len(requests) and arrays.offsets[-1] == len(arrays.chunk_ids)
    start = by_arrival[0].arrival_s
    for i, one in enumerate(by_arrival):
        assert arrays.chunks(i).tolist() == one.chunks.tolist()
        assert arrays.arrival_s[i] == one.arrival_s - start
        assert arrays.input_tokens[i] == one.input_tokens
        assert arrays.output_tokens[i] == one.output_tokens
        code = arrays.session[i]
        assert (arrays.session_names[code] if code >= 0 else None) == one.session
    tails = load_arrays(requests, tails=True)
    assert len(tails.chunk_ids) == len(arrays.chunk_ids) + sum(r.tail is not None for r in requests)


@given(drawn, st.integers(1, 4))
def test_longer_chunks(given_: Drawn, times: int) -> None:
    arrays = load_arrays(made(given_))
    longer = arrays.longer_chunks(times)
    assert longer.chunk_tokens == CHUNK * times
    for i in range(len(arrays)):
        assert longer.chunks(i).tolist() == arrays.chunks(i)[times - 1 :: times].tolist()


@given(drawn)
def test_first_hits_against_a_set(given_: Drawn) -> None:
    arrays = load_arrays(made(given_))
    seen: set[int] = set()
    for i, hit in enumerate(first_hits(arrays).tolist()):
        names = arrays.chunks(i).tolist()
        leading = next((k for k, name in enumerate(names) if name not in seen), len(names))
        assert hit == leading
        seen.update(names)


@pytest.mark.parametrize("format", ["lmcache", "mooncake"])
def test_what_is_written_reads_as_it_was(
    format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    @given(drawn)
    def check(given_: Drawn) -> None:
        arrays = load_arrays(made(given_))
        if arrays.input_tokens.sum() == 0:
            return
        path = tmp_path_factory.mktemp("trace") / "t.jsonl"
        write_trace(path, arrays, format, "test")
        trace = open_trace(path, format)
        again = load_arrays(trace.requests())
        assert trace.malformed.count == 0
        assert np.array_equal(again.arrival_s, arrays.arrival_s)
        assert np.array_equal(first_hits(again), first_hits(arrays))
        assert np.array_equal(again.input_tokens, arrays.input_tokens)
        assert [again.session_names[s] if s >= 0 else None for s in again.session] == [
            arrays.session_names[s] if s >= 0 else None for s in arrays.session
        ]
        if format == "lmcache":
            assert same(again, arrays)

    check()


def test_writing_refuses_what_is_there(tmp_path: Path) -> None:
    arrays = load_arrays(made([([1], 0, 0, None)]))
    path = tmp_path / "t"
    write_trace(path, arrays, "lmcache", "test")
    before = path.read_bytes()
    with pytest.raises(TraceError, match="is there already"):
        write_trace(path, arrays, "lmcache", "test")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(TraceError, match="can't be written; use one of"):
        write_trace(tmp_path / "u", arrays, "weka", "test")
    with pytest.raises(TraceError, match="can't be written"):
        write_trace(tmp_path / "none" / "u", arrays, "lmcache", "test")


def test_chunks_of_two_lengths_are_refused() -> None:
    one = request(0, [1], 0, 0, None)
    other = TraceRequest("x", 1.0, 10, 1, chunk_tokens=8)
    with pytest.raises(TraceError, match="in chunks of 8 tokens, others of 4"):
        load_arrays([one, other])


@given(drawn, st.integers(0, 2**32))
def test_a_synthetic_trace_is_of_the_same_kind(given_: Drawn, seed: int) -> None:
    arrays = load_arrays(made(given_))
    first, second = like(arrays, 15, seed), like(arrays, 15, seed)
    assert same(first, second) and np.array_equal(first.arrival_s, second.arrival_s)
    assert len(first) == 15 and first.chunk_tokens == CHUNK
    pairs = set(zip(arrays.input_tokens.tolist(), arrays.output_tokens.tolist(), strict=True))
    assert set(zip(first.input_tokens.tolist(), first.output_tokens.tolist(), strict=True)) <= pairs
    # A name says all that is before it: it has one place and one chunk before it.
    before: dict[int, int | None] = {}
    for i in range(len(first)):
        names = first.chunks(i).tolist()
        for name, last in zip(names, [None, *names], strict=False):
            assert before.setdefault(name, last) == last


@real
@pytest.mark.parametrize(
    ("name", "requests", "chunks", "different", "prefix", "anywhere"),
    [
        ("mooncake/conversation_trace.jsonl", 12_031, 276_491, 170_899, 0.3734, None),
        ("ragpulse", 7_106, 322_421, 219_734, 0.3142, 0.6711),
        ("weka", 873, 1_339_892, 70_727, 0.9470, None),
    ],
)
def test_public_traces(
    name: str, requests: int, chunks: int, different: int, prefix: float, anywhere: float | None
) -> None:
    found = summary(open_trace(Path(str(TRACES)) / name))
    assert (found["requests"], found["chunks"]) == (requests, chunks)
    assert found["unique_chunks"] == different and found["malformed"]["count"] == 0
    assert found["ceiling_prefix"] == pytest.approx(prefix, abs=5e-4)
    assert found["ceiling_any_position"] == (anywhere and pytest.approx(anywhere, abs=5e-4))
    json.dumps(found)


@real
def test_a_synthetic_trace_shares_like_mooncake() -> None:
    trace = open_trace(Path(str(TRACES)) / "mooncake/conversation_trace.jsonl")
    arrays = load_arrays(trace.requests())
    assert ceiling(like(arrays, len(arrays), 1)) == pytest.approx(ceiling(arrays), abs=0.02)


@real
@pytest.mark.parametrize("chunk_tokens", [32, 256])
def test_ragpulse_hits_more_at_any_position(chunk_tokens: int) -> None:
    trace = open_trace(Path(str(TRACES)) / "ragpulse", None, ReadOptions(chunk_tokens))
    found = summary(trace)
    assert found["ceiling_any_position"] > found["ceiling_prefix"] + 0.2
