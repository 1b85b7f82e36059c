"""Each format: a sample after its documentation, what it says, and what is wrong with it."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from workloads.traces import (
    FORMATS,
    ReadOptions,
    TraceError,
    TraceRequest,
    load_arrays,
    open_trace,
)

MOONCAKE = {"timestamp": 27482, "input_length": 1200, "output_length": 52, "hash_ids": [46, 47, 9]}
TIMED = {"timestamp": 1.5, "input_length": 40, "output_length": 5, "hash_ids": [1, 2, 3]}
BAILIAN = {
    "chat_id": 159,
    "parent_chat_id": -1,
    "timestamp": 61.114,
    "input_length": 40,
    "output_length": 13,
    "type": "text",
    "turn": 1,
    "hash_ids": [1089, 2**64 - 2, 1091],
}
LOOKUP = {
    "timestamp": "2026-05-07T00:00:00Z",
    "request_id": "req-a",
    "model_name": "m",
    "chunk_size": 256,
    "seq_len": 600,
    "chunk_hashes": ["0x1f", "2e"],
}
HEADER = {"schema": "lmcache.trace/1", "chunk_tokens": 16, "source": "proxy", "model": "m"}
OURS = {
    "id": "7",
    "t": 2.5,
    "session": "00ff",
    "input_tokens": 40,
    "output_tokens": 3,
    "chunks": ["ffffffffffffffff", "0000000000000002"],
}
RAG = {
    "timestamp": "82",
    "input_length": 300,
    "output_length": 9,
    "hash_ids": {"sys_prompt": [1], "passages_ids": [5, 6], "history": [], "user_input": [7]},
    "session_id": "s",
}
CHAT = {"messages": [{"role": "user", "content": "a b c d"}], "user": "u", "max_tokens": 5}
AGENT = {
    "id": "trace_1",
    "block_size": 64,
    "hash_id_scope": "local",
    "requests": [
        {"t": 0.0, "type": "n", "in": 130, "out": 3, "hash_ids": [1, 2], "think_time": 0.0},
        {
            "t": 5.0,
            "type": "subagent",
            "agent_id": "a1",
            "requests": [{"t": 1.0, "type": "s", "in": 64, "out": 2, "hash_ids": [9]}],
        },
        {"t": 5.5, "type": "s", "in": 200, "out": 3, "hash_ids": [1, 2, 3], "think_time": 2.0},
    ],
}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def lines(path: Path, *records: object) -> Path:
    texts = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(texts) + "\n")
    return path


def rag_folder(folder: Path, *records: object) -> Path:
    lengths: dict[tuple[str, str], dict[int, int]] = {
        ("1_sys_prompt", "sys_prompt_id"): {1: 100},
        ("2_passages", "passage_id"): {5: 70, 6: 90},
        ("3_history", "history_id"): {},
        ("4_user_input", "user_input_id"): {7: 30},
        ("5_web_search", "web_search_id"): {},
    }
    for (name, key), known in lengths.items():
        lines(folder / f"{name}.jsonl", *({key: i, "token_length": n} for i, n in known.items()))
    return lines(folder / "0_trace.jsonl", *records)


def read(path: Path, format: str | None = None, **options: Any) -> list[TraceRequest]:
    return list(open_trace(path, format, ReadOptions(**options)).requests())


def facts(request: TraceRequest) -> tuple[float, int, int, int, list[int]]:
    return (
        request.arrival_s,
        request.input_tokens,
        request.output_tokens,
        request.chunk_tokens,
        request.chunks.tolist(),
    )


def test_mooncake(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", MOONCAKE, MOONCAKE | {"block_size": 64, "input_length": 192})
    first, second = open_trace(path).requests()
    assert open_trace(path).format == "mooncake"
    assert facts(first) == (27.482, 1200, 52, 512, [46, 47])
    assert (first.tail, first.content, first.session) == (9, None, None)
    assert facts(second)[3:] == (64, [46, 47, 9]) and second.tail is None


def test_timed_trace_is_told_by_its_number_of_blocks(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", TIMED)
    assert open_trace(path).format == "timed-trace"
    (request,) = read(path)
    assert facts(request) == (1.5, 40, 5, 16, [1, 2])
    (other,) = read(path, chunk_tokens=14, unit_s=0.001)
    assert facts(other) == (0.0015, 40, 5, 14, [1, 2])


def test_bailian_links_turns(tmp_path: Path) -> None:
    follow = {"chat_id": 160, "parent_chat_id": 159, "turn": 2}
    last = {"chat_id": 161, "parent_chat_id": 160, "turn": 3}
    path = lines(tmp_path / "t.jsonl", BAILIAN, BAILIAN | follow, BAILIAN | last)
    assert open_trace(path).format == "bailian"
    requests = read(path)
    assert facts(requests[0]) == (61.114, 40, 13, 16, [1089, -2])
    assert [r.session for r in requests] == ["159"] * 3


def test_lookup(tmp_path: Path) -> None:
    later = LOOKUP | {"timestamp": "2026-05-07T00:00:01.5Z", "chunk_hashes": [31, 46, 5]}
    path = lines(tmp_path / "t.jsonl", LOOKUP, later)
    assert open_trace(path).format == "lmcache-lookup"
    first, second = read(path)
    assert facts(first) == (0.0, 600, 0, 256, [31, 46])
    assert facts(second) == (1.5, 600, 0, 256, [31, 46]) and second.tail == 5


def test_our_recording(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", HEADER, OURS)
    assert open_trace(path).format == "lmcache"
    (request,) = read(path)
    assert facts(request) == (2.5, 40, 3, 16, [-1, 2])
    assert (request.id, request.session) == ("7", "00ff")


def test_ragpulse(tmp_path: Path) -> None:
    swapped = {"hash_ids": RAG["hash_ids"] | {"passages_ids": [6, 5]}}  # type: ignore[operator]
    path = rag_folder(tmp_path, RAG, RAG | swapped)
    assert open_trace(tmp_path).format == open_trace(path).format == "ragpulse"
    first, second = read(tmp_path)
    assert [(s.id, s.tokens, s.kind) for s in first.segments] == [
        (1, 100, "system"),
        (5, 70, "passage"),
        (6, 90, "passage"),
        (7, 30, "question"),
    ]
    # 290 tokens in chunks of 64: 100 of them are the shared system prompt.
    assert first.chunk_tokens == 64 and len(first.chunks) == 4
    assert (first.chunks == second.chunks).tolist() == [True, False, False, False]
    assert first.content is not None and second.content is not None
    assert sorted(first.content) == sorted(second.content) and len(first.content) == 3


def test_ragpulse_without_side_files(tmp_path: Path) -> None:
    path = lines(tmp_path / "0_trace.jsonl", RAG)
    with pytest.raises(TraceError, match=r"1_sys_prompt\.jsonl .* is not beside it"):
        read(path)


@pytest.mark.parametrize("indent", [None, 1])
def test_weka_and_its_sub_agents(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "trace_1.json"
    path.write_text(json.dumps(AGENT, indent=indent))
    assert open_trace(path).format == "weka"
    requests = read(path)
    assert [(r.session, r.parent, r.arrival_s) for r in requests] == [
        ("trace_1", None, 0.0),
        ("trace_1", None, 5.5),
        ("trace_1/a1", "trace_1", 6.0),
    ]
    assert [r.think_s for r in requests] == [0.0, 2.0, None]
    assert requests[0].chunks.tolist() == requests[1].chunks[:2].tolist()


def test_weka_times_that_count_from_the_start(tmp_path: Path) -> None:
    agent = json.loads(json.dumps(AGENT))
    agent["requests"][1]["requests"][0]["t"] = 5.25
    requests = read(lines(tmp_path / "t.jsonl", agent))
    assert [r.arrival_s for r in requests] == [0.0, 5.25, 5.5]


def test_a_folder_of_sessions_shares_nothing_between_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(AGENT | {"id": name}))
    requests = read(tmp_path)
    ids = [set(r.chunks.tolist()) for r in requests]
    assert len(requests) == 6 and not (ids[0] | ids[1]) & (ids[3] | ids[4])


def test_lengths_only(tmp_path: Path) -> None:
    azure = lines(
        tmp_path / "azure.csv",
        AZURE,
        "2023-11-16 18:01:51.1632340,4808,10",
        "2023-11-16 18:01:52.5000000,3180,8",
    )
    burst = lines(tmp_path / "burst.csv", BURST, "5,ChatGPT,472,18,490,Conversation log")
    assert [open_trace(p).format for p in (azure, burst)] == ["azure", "burstgpt"]
    assert not FORMATS["azure"].shares and not FORMATS["burstgpt"].shares
    first, second = read(azure)
    assert facts(first) == (0.0, 4808, 10, 0, [])
    assert second.arrival_s == pytest.approx(1.336766)
    assert facts(read(burst)[0]) == (0.0, 472, 18, 0, [])


def test_chats_need_a_tokenizer(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.jsonl", CHAT)
    assert open_trace(path).format == "openai-chat"
    with pytest.raises(TraceError, match="tokenizer"):
        read(path)


def test_chats(tmp_path: Path) -> None:
    answered = {
        "custom_id": "x",
        "timestamp": 3.0,
        "body": {"messages": [*CHAT["messages"], {"role": "assistant", "content": "e f"}]},  # type: ignore[misc]
    }
    path = lines(tmp_path / "t.jsonl", CHAT, answered, {"prompt": [1, 2, 3], "max_tokens": 4})

    def tokenize(prompt: Any) -> list[int]:
        text = prompt if isinstance(prompt, str) else " ".join(m["content"] for m in prompt)
        return [ord(word[0]) for word in text.split()]

    first, second, third = read(path, tokenize=tokenize, chunk_tokens=2)
    assert (first.input_tokens, first.output_tokens, first.session) == (4, 5, "u")
    assert first.chunks.tolist() == second.chunks.tolist() and len(first.chunks) == 2
    assert (second.id, second.output_tokens) == ("x", 2)
    assert (third.input_tokens, third.output_tokens, len(third.chunks)) == (3, 4, 1)


def test_compression_is_told_by_the_first_bytes(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(MOONCAKE | {"timestamp": i}) for i in range(5000)).encode()
    (tmp_path / "gz").write_bytes(gzip.compress(text))
    (tmp_path / "zst").write_bytes(pa.compress(text, "zstd", asbytes=True))
    for name in ("gz", "zst"):
        assert len(read(tmp_path / name)) == 5000


def test_a_compressed_file_that_breaks_off(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(MOONCAKE | {"timestamp": i * 7919}) for i in range(5000)).encode()
    path = tmp_path / "t.gz"
    path.write_bytes(gzip.compress(text)[:-2000])
    trace = open_trace(path)
    assert 0 < len(list(trace.requests())) < 5000
    assert trace.malformed.count == 1 and "breaks off" in trace.malformed.examples[0]


BAD = [
    ("mooncake", [MOONCAKE], "{", "not JSON"),
    ("mooncake", [MOONCAKE], [1], "a JSON list"),
    ("mooncake", [MOONCAKE], {"timestamp": 1, "input_length": 5}, "hash_ids is missing"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"hash_ids": 5}, "is no list"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"hash_ids": [1.5]}, "no name of a chunk"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"hash_ids": [True]}, "no name of a chunk"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"hash_ids": [2**64]}, "no 64-bit number"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"hash_ids": [1, 2, 3, 4]}, "4 chunks of 512"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"hash_ids": [1]}, "1 blocks of 512"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"input_length": -1}, "less than 0"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"input_length": "many"}, "not a whole number"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"timestamp": None}, "no time"),
    ("mooncake", [MOONCAKE], MOONCAKE | {"timestamp": 10**400}, "no time"),
    ("mooncake", [MOONCAKE], '{"timestamp": NaN, "input_length": 1, "hash_ids": []}', "no time"),
    ("bailian", [BAILIAN], {"timestamp": 1}, "chat_id is missing"),
    ("lmcache-lookup", [LOOKUP], LOOKUP | {"chunk_size": 0}, "less than 1"),
    ("lmcache", [HEADER, OURS], OURS | {"chunks": None}, "is no list"),
    ("lmcache", [HEADER, OURS], HEADER | {"schema": "lmcache.trace/9"}, "is not lmcache.trace/1"),
    ("azure", [AZURE, "2023-11-16,1,1"], "2023-11-16,1", "2 cells under a header of 3"),
    ("azure", [AZURE, "2023-11-16,1,1"], "yesterday,1,1", "no time"),
    ("burstgpt", [BURST, "5,m,1,1,2,log"], "5,m,x,1,2,log", "not a whole number"),
    ("weka", [AGENT], {"block_size": 64}, "requests is missing"),
    ("weka", [AGENT], AGENT | {"requests": [{"t": 0}]}, r"requests\[0\] of trace_1: in is"),
    ("ragpulse", [RAG], RAG | {"hash_ids": {"user_input": [8]}}, "8 is not in 4_user_input"),
    ("ragpulse", [RAG], RAG | {"input_length": 10}, "its parts have more"),
    ("ragpulse", [RAG], RAG | {"hash_ids": [1]}, "no object of parts"),
    ("openai-chat", [CHAT], {"messages": []}, "no list of messages"),
    ("openai-chat", [CHAT], {"messages": [{"content": "x"}]}, "has no role"),
    ("openai-chat", [CHAT], {"prompt": 5}, "neither text nor"),
    ("openai-chat", [CHAT], {"prompt": "boom"}, "can't be tokenized"),
]


@pytest.mark.parametrize(("format", "good", "bad", "reason"), BAD)
def test_a_malformed_line_is_named_and_left_out(
    format: str, good: list[object], bad: object, reason: str, tmp_path: Path
) -> None:
    def tokenize(prompt: Any) -> list[int]:
        if prompt == "boom":
            raise RuntimeError("no")
        return [1, 2, 3]

    path = tmp_path / "0_trace.jsonl"
    records = [*good, bad, *[good[-1]] * 12]
    (rag_folder(tmp_path, *records) if format == "ragpulse" else lines(path, *records))
    whole = open_trace(path, None, ReadOptions(tokenize=tokenize))
    assert whole.format == format
    requests = list(whole.requests())
    assert len(requests) == (13 * 3 if format == "weka" else 13)
    assert whole.malformed.count == 1
    (example,) = whole.malformed.examples
    assert example.startswith(f"{path}:{len(good) + 1}: ")
    assert re.search(reason, example), example


def test_many_malformed_lines_are_counted_and_ten_shown(tmp_path: Path) -> None:
    trace = open_trace(lines(tmp_path / "t", *[MOONCAKE] * 450, *["{"] * 50))
    assert len(list(trace.requests())) == 450
    assert (trace.malformed.count, len(trace.malformed.examples)) == (50, 10)
    assert len(list(trace.requests())) == 450 and trace.malformed.count == 50


def test_a_file_that_is_mostly_malformed_gives_no_answer(tmp_path: Path) -> None:
    trace = open_trace(lines(tmp_path / "t", *[MOONCAKE] * 8, "{"))
    with pytest.raises(TraceError, match=r"t: 1 of 9 lines are malformed, too many .*t:9: not"):
        load_arrays(trace.requests())
    trace = open_trace(lines(tmp_path / "t", *[MOONCAKE] * 9, "{"))
    assert len(load_arrays(trace.requests())) == 9 and trace.malformed.share == 0.1


def test_a_line_that_is_not_utf_8(tmp_path: Path) -> None:
    path = lines(tmp_path / "t", *[MOONCAKE] * 9)
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    trace = open_trace(path)
    assert len(list(trace.requests())) == 9 and "not UTF-8" in trace.malformed.examples[0]


def test_the_wrong_format_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "t", LOOKUP)
    with pytest.raises(TraceError, match=r"looks like lmcache-lookup .* --format lmcache-lookup"):
        read(path, "mooncake")
    with pytest.raises(TraceError, match="'x' is not known; use one of lmcache"):
        open_trace(path, "x")


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (b"", "an empty file"),
        (b"PAR1\0\0", r"a binary file \(Parquet\)"),
        (b'{"a": 1, "b": 2}\n', "JSON with the fields a, b"),
        (b"hello\n", "text that begins 'hello'"),
        (b"\x1f\x8b\x08nonsense", "damaged"),
    ],
)
def test_no_trace_is_told_what_it_looks_like(content: bytes, looks: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=looks):
        open_trace(path)


def test_no_file(tmp_path: Path) -> None:
    for format in (None, "mooncake"):
        with pytest.raises(TraceError, match=r"No such file|no such file"):
            open_trace(tmp_path / "none", format)
