"""``lmcache trace record --kv-events``: requests from what vLLM says of its blocks."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from cache_core.trace_writer import ServedRequest, TraceWriter
from lmcache_cli.errors import UserError
from lmcache_cli.trace.kv_events import (
    EventBatch,
    SeenRequests,
    Stored,
    read_batch,
    record_events,
)
from tests.cache_core.servers import eventually
from tests.lmcache_cli.command_line import COMMAND, ROOT, lmcache
from tests.lmcache_cli.recording_process import ask
from tests.lmcache_cli.vllm_world import BLOCK_TOKENS, running_vllm
from workloads.traces import load_arrays, open_trace

pytest.importorskip("zmq")


def names(*numbers: int) -> tuple[bytes, ...]:
    return tuple(b"%d" % n for n in numbers)


def stored(*numbers: int, parent: int | None = None, tokens: int = 16) -> Stored:
    return Stored(names(*numbers), None if parent is None else b"%d" % parent, tokens, None)


def requests(
    *batches: Sequence[Stored | frozenset[bytes] | None], apart: float = 1.0
) -> list[tuple[float, tuple[bytes, ...], int, int]]:
    """When each began, its prompt's blocks, how many of them were held, and its answer's tokens."""
    seen = SeenRequests()
    found: list[ServedRequest] = []
    for i, events in enumerate(batches):
        found += seen.take(EventBatch(i * apart, 0, tuple(events)))
    found += seen.end()
    assert [r.id for r in found] == [str(i + 1) for i in range(len(found))]
    return sorted(
        (r.arrival_s, tuple(r.keys), r.hits["device"] // 16, r.output_tokens) for r in found
    )


def test_a_prompt_is_known_to_its_beginning() -> None:
    assert requests([stored(1, 2, 3)], [stored(7, parent=2)]) == [
        (0.0, names(1, 2, 3), 0, 1),
        (1.0, names(1, 2, 7), 2, 1),
    ]


def test_blocks_that_come_alone_in_later_steps_are_the_answer() -> None:
    found = requests([stored(1, 2, 3)], [stored(4, parent=3)], [stored(5, parent=4)])
    assert found == [(0.0, names(1, 2, 3), 0, 32)]
    # The next turn goes on behind the answer.
    found = requests([stored(1, 2)], [stored(3, parent=2)], [stored(4, 5, parent=3)])
    assert found == [(0.0, names(1, 2), 0, 16), (2.0, names(1, 2, 3, 4, 5), 3, 1)]


def test_a_long_prompt_comes_in_parts() -> None:
    found = requests([stored(1, 2)], [stored(3, 4, parent=2)], [stored(5, parent=4)])
    assert found == [(0.0, names(1, 2, 3, 4), 0, 16)]
    # In one step only another prompt can go on from it.
    found = requests([stored(1, 2), stored(3, 4, parent=2)])
    assert found == [(0.0, names(1, 2), 0, 1), (0.0, names(1, 2, 3, 4), 2, 1)]


def test_a_hit_that_is_reported_begins_a_request() -> None:
    hit = stored(1, 2)
    found = requests([hit], [hit, stored(3, parent=2)], [hit])
    assert found == [
        (0.0, names(1, 2), 0, 1),
        (1.0, names(1, 2, 3), 2, 1),
        (2.0, names(1, 2), 2, 1),
    ]
    # One that waits for room is looked up in each step, and is one.
    found = requests([hit], [stored(9)], [hit], [hit], [hit, stored(3, parent=2)])
    assert [row[:3] for row in found] == [
        (0.0, names(1, 2), 0),
        (1.0, names(9), 0),
        (2.0, names(1, 2, 3), 2),
    ]


def test_what_was_removed_is_held_no_more() -> None:
    found = requests([stored(1, 2)], [frozenset(names(1, 2))], [stored(1, 2)])
    assert [row[2] for row in found] == [0, 0]
    found = requests([stored(1, 2)], [None], [stored(1, 2)])
    assert [row[2] for row in found] == [0, 0]


def test_prompts_without_a_known_beginning_are_counted_and_left_out() -> None:
    seen = SeenRequests()
    events = stored(4, 5, parent=3), stored(6, parent=5)
    given = [list(seen.take(EventBatch(i, 0, (event,)))) for i, event in enumerate(events)]
    assert not any(given) and not list(seen.end()) and seen.cut == 1


def test_ranks_have_caches_of_their_own() -> None:
    seen = SeenRequests()
    for rank in (0, 1):
        list(seen.take(EventBatch(float(rank), rank, (stored(1, 2),))))
    assert [r.hits["device"] for r in seen.end()] == [0, 0]


def test_blocks_in_a_circle_have_no_known_beginning() -> None:
    assert requests([stored(1, parent=2), stored(2, parent=1)], [stored(7, parent=2)]) == []


def test_an_answer_ends_when_nothing_more_comes() -> None:
    seen = SeenRequests()
    assert not list(seen.take(EventBatch(0.0, 0, (stored(1, 2),))))
    [one] = seen.take(EventBatch(40.0, 0, (stored(7),)))
    assert one.keys == list(names(1, 2)) and one.input_tokens == 32 + 8


@pytest.mark.vllm
def test_both_forms_of_vllm_are_read_and_others_are_refused() -> None:
    pytest.importorskip("vllm")
    from vllm.distributed.kv_events import (
        AllBlocksCleared,
        BlockRemoved,
        BlockStored,
        KVEventBatch,
    )

    new = BlockStored([b"x" * 32, 5], b"p", [1] * 32, 16, None, "GPU", None, session_id="s")
    other = BlockStored([b"y"], None, [1] * 16, 16, None, "CPU", None)
    second = BlockStored([b"z"], None, [1] * 16, 16, None, "GPU", None, group_idx=1)
    events = [new, other, second, BlockRemoved([7], "GPU"), AllBlocksCleared()]
    payload = msgspec.msgpack.encode(KVEventBatch(ts=3.5, events=events, data_parallel_rank=2))
    seven = (7).to_bytes(16, "big", signed=True)
    five = (5).to_bytes(16, "big", signed=True)
    wanted = EventBatch(
        3.5, 2, (Stored((b"x" * 32, five), b"p", 16, "s"), frozenset({seven}), None)
    )
    assert read_batch(payload) == wanted
    arrays = [
        ["BlockStored", [b"x" * 32, 5], b"p", [1] * 32, 16, None, "GPU"],
        ["BlockRemoved", [7], "GPU"],
        ["AllBlocksCleared"],
    ]
    old = read_batch(msgspec.msgpack.encode([3.5, arrays, 2]))
    assert old.events[0] == Stored((b"x" * 32, five), b"p", 16, None)
    assert old.events[1:] == wanted.events[1:]
    for bad in (b"", b"\xc1", msgspec.msgpack.encode([1.0]), msgspec.msgpack.encode([1.0, [3]])):
        with pytest.raises(ValueError, match="no batch of KV events"):
            read_batch(bad)


def event(*blocks: int, parent: int | None = None, tokens: int = 16) -> dict[str, object]:
    return {
        "type": "BlockStored",
        "block_hashes": list(blocks),
        "parent_block_hash": parent,
        "block_size": tokens,
    }


@pytest.mark.parametrize(
    "bad", [{"block_hashes": ["x"]}, {"parent_block_hash": "x"}, {"block_size": 0}]
)
def test_odd_fields_are_no_batch(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no batch of KV events"):
        read_batch(msgspec.msgpack.encode([1.0, [event(1) | bad]]))
    numbered = msgspec.msgpack.encode([1.0, [event(1) | {"session_id": 7}]])
    [one] = read_batch(numbered).events
    assert isinstance(one, Stored) and one.session == "7"


def record(
    tmp_path: Path, limit: int | None, *batches: tuple[float, dict[str, object]]
) -> tuple[int, Path]:
    """Records batches that a publisher of this process sends; the exit code, and the trace."""
    import zmq
    import zmq.asyncio

    out, endpoint = tmp_path / "trace.jsonl", f"ipc://{tmp_path}/kv"

    async def run() -> int:
        with zmq.asyncio.Context() as context, context.socket(zmq.XPUB) as publisher:
            publisher.bind(endpoint)
            recorded = asyncio.ensure_future(
                record_events(
                    lambda tokens, start_s: TraceWriter(out, tokens, "kv-events", "", start_s),
                    endpoint,
                    None,
                    limit,
                    True,
                )
            )
            await publisher.recv()  # the subscription
            for number, (at_s, one) in enumerate(batches):
                payload = msgspec.msgpack.encode([at_s, [one]])
                await publisher.send_multipart([b"", number.to_bytes(8, "big"), payload])
            return await recorded

    return asyncio.run(asyncio.wait_for(run(), 30)), out


def test_times_count_from_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that ends first came second."""
    monkeypatch.setattr("lmcache_cli.trace.kv_events._LAST_S", 0.0)
    first, second = event(1, 2), event(7, 8)
    more, other = event(3, parent=2), event(9)
    batches = (10.0, first), (20.0, second), (35.0, more), (55.0, other), (70.0, other)
    code, out = record(tmp_path, 2, *batches)
    lines = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert code == 0 and [line["t"] for line in lines] == [10.0, 0.0]


def test_what_was_seen_is_kept_when_blocks_change_their_length(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="blocks of 32 tokens after some of 16"):
        record(tmp_path, None, (1.0, event(1, 2)), (2.0, event(3, tokens=32)))
    assert len((tmp_path / "trace.jsonl").read_text().splitlines()) == 2


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, str]]:
    endpoint, out = f"ipc://{tmp_path}/kv", tmp_path / "trace.jsonl"
    process = subprocess.Popen(
        [*COMMAND, "trace", "record", str(out), "--kv-events", endpoint],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    yield process, out, endpoint
    process.kill()
    process.communicate()


@pytest.mark.vllm
def test_vllms_own_publisher_is_recorded(
    recording: tuple[subprocess.Popen[str], Path, str],
) -> None:
    pytest.importorskip("vllm")
    from vllm.distributed.kv_events import BlockStored, KVEventBatch, ZmqEventPublisher

    process, out, endpoint = recording
    publisher = ZmqEventPublisher(0, endpoint=endpoint)
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(f"recording {endpoint}")
        tokens = list(range(100, 132))
        for at in range(3):
            blocks: list[bytes | int] = [b"zz%d" % at, b"yy%d" % at]
            event = BlockStored(blocks, None, tokens, 16, None, "GPU", None)
            # The thirty seconds after which one is ended.
            publisher.publish(KVEventBatch(ts=1000.0 + 40 * at, events=[event]))
        eventually(lambda: out.exists() and len(out.read_text().splitlines()) == 3)
        # What was sent before the end may be read behind it.
        last = BlockStored([b"zz3", b"yy3"], None, tokens, 16, None, "GPU", None)
        publisher.publish(KVEventBatch(ts=1120.0, events=[last]))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        publisher.shutdown()
    assert process.returncode == 0 and "4 requests" in said and "4 batches of events" in said
    text = out.read_text()
    header, *lines = map(json.loads, text.splitlines())
    assert header["source"] == "kv-events" and header["chunk_tokens"] == 16
    assert [line["t"] for line in lines] == [0.0, 40.0, 80.0, 120.0]
    assert not any(part in text for part in ("zz0", b"zz0".hex(), "100, 101"))
    arrays = load_arrays(open_trace(out, None).requests())
    assert arrays.input_tokens.tolist() == [40] * 4 and len(arrays.chunk_ids) == 8


def test_a_server_that_ends_is_said_when_it_does(
    recording: tuple[subprocess.Popen[str], Path, str],
) -> None:
    import zmq

    process, _, endpoint = recording
    assert process.stderr is not None
    with zmq.Context() as context:
        with context.socket(zmq.PUB) as server:
            server.bind(endpoint)
            assert process.stderr.readline().startswith(f"recording {endpoint}")
        assert process.stderr.readline().startswith(f"{endpoint}: the server has ended or hangs;")
        with context.socket(zmq.PUB) as server:
            server.bind(endpoint)
            assert process.stderr.readline() == f"{endpoint}: the server is back\n"
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 0 and "no request was seen" in said
    assert "hangs" not in said


@pytest.mark.vllm
def test_a_real_server_is_recorded(tmp_path: Path) -> None:
    """Against what the server itself says of each request."""
    endpoint, out = f"ipc://{tmp_path}/kv", tmp_path / "trace.jsonl"
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": endpoint}
    words = "zebra quux marzipan obelisk "
    said: list[tuple[int, int]] = []
    with running_vllm(tmp_path, "--kv-events-config", json.dumps(events)) as server:
        process = subprocess.Popen(
            [*COMMAND, "trace", "record", str(out), "--kv-events", endpoint],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            assert process.stderr is not None and "recording" in process.stderr.readline()
            for prompt in (words * 12, words * 9 + "something else " * 20, words * 12 + "!" * 70):
                body = {"model": "tiny", "prompt": prompt, "max_tokens": 40, "ignore_eos": True}
                usage = json.loads(ask(server.url, "/v1/completions", body)[2])["usage"]
                cached = (usage["prompt_tokens_details"] or {}).get("cached_tokens", 0)
                said.append((usage["prompt_tokens"], cached))
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "3 requests" in told, told
    lines = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    size = BLOCK_TOKENS
    assert [line["input_tokens"] // size for line in lines] == [n // size for n, _ in said]
    assert [line["hits"].get("device", 0) for line in lines] == [hit for _, hit in said]
    assert said[0][1] == 0 and said[1][1] > 0 and said[2][1] > said[1][1]
    # The fortieth token of an answer is not computed further: 39 of them fill a block or two.
    assert all(line["output_tokens"] in (size, 2 * size) for line in lines)


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcache_cli.trace.record.find_spec", lambda name: None)
    done = lmcache(
        "trace", "record", str(tmp_path / "x"), "--kv-events", "tcp://127.0.0.1:9", cwd=ROOT
    )
    assert done.returncode == 4 and "pip install 'lmcache-bench[kv-events]'" in done.stderr


def test_an_interrupt_ends_the_wait_for_a_server(
    recording: tuple[subprocess.Popen[str], Path, str],
) -> None:
    """Not after the ten seconds that it may take."""
    process, out, endpoint = recording
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(endpoint.removeprefix("ipc://"))
        silent.listen()
        _connection = silent.accept()  # and shakes no hands
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=8)
    assert process.returncode not in (0, 4) and "nothing publishes" not in said
    assert not out.exists()


def test_what_can_not_be_recorded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "x.jsonl")
    both = lmcache(
        "trace", "record", out, "--url", "http://h", "--kv-events", "tcp://h:1", cwd=ROOT
    )
    none = lmcache("trace", "record", out, cwd=ROOT)
    for done in (both, none):
        assert done.returncode == 2 and "give --url" in done.stderr
    monkeypatch.setattr("lmcache_cli.trace.kv_events._CONNECT_S", 0.05)
    silent = lmcache("trace", "record", out, "--kv-events", "tcp://127.0.0.1:9", cwd=ROOT)
    assert silent.returncode == 4 and "--kv-events-config" in silent.stderr
    odd = lmcache("trace", "record", out, "--kv-events", "udp:x", cwd=ROOT)
    assert odd.returncode == 2 and "is no address" in odd.stderr
    assert not Path(out).exists()
