"""Traces of text, users' own fields, guesses, and what can be read but once."""

from __future__ import annotations

import json
import os
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from workloads.traces import ReadOptions, TraceError, TraceRequest, load_arrays, open_trace
from workloads.traces.summary import ceiling

LONG = "a b c d e f g h"


def tokenize(prompt: Any) -> list[int]:
    """A token per word; of messages, one more per role."""
    if isinstance(prompt, str):
        return [hash(word) % 1000 for word in prompt.split()]
    roles = [message["role"] for message in prompt]
    assert all(a != b for a, b in pairwise(roles)), roles
    return [t for m in prompt for t in (ord(m["role"][0]), *tokenize(m["content"]))]


TEXT = ReadOptions(chunk_tokens=4, tokenize=tokenize)


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path: Path, options: ReadOptions | None = None) -> list[TraceRequest]:
    return list(open_trace(path, None, options).requests())


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_agent_traces_of_lmcache(tmp_path: Path) -> None:
    said = [message("system", LONG), message("user", LONG)]
    more = [*said, message("assistant", "x"), message("user", LONG)]
    path = lines(
        tmp_path / "t",
        {"session_id": "a", "model": "m", "input": said, "output_length": 7, "pre_gap": 0.0},
        {"session_id": "b", "model": "m", "input": said, "output_length": 7, "pre_gap": 0.0},
        {"session_id": "a", "model": "m", "input": more, "output_length": 9, "pre_gap": 2.5},
    )
    first, other, second = read(path, TEXT)
    assert (first.session, other.session, second.session) == ("a", "b", "a")
    assert (first.arrival_s, other.arrival_s, second.arrival_s) == (0, 0, 2.5)
    assert (second.output_tokens, second.input_tokens) == (9, 9 * 3 + 2)
    assert list(second.chunks[:4]) == list(first.chunks) == list(other.chunks)
    stamped = lines(
        tmp_path / "s",
        *({"session_id": "a", "input": said, "session_timestamp": t} for t in (0.0, 4.0)),
    )
    assert [r.arrival_s for r in read(stamped, TEXT)] == [0, 4]


def test_turns_of_aiperf(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "t",
        {"session_id": "a", "turns": [{"text": LONG}, {"text": "x y", "delay": 1500}]},
        {"session_id": "b", "turns": [{"text": LONG, "timestamp": 700, "output_length": 3}]},
        {"turns": [{"texts": ["a", "b"]}, {"text": "c", "delay": 1}]},
    )
    first, second, other, third, fourth = read(path, TEXT)
    assert [r.session for r in (first, second, other)] == ["a", "a", "b"]
    assert [r.arrival_s for r in (first, second, other)] == pytest.approx([0, 1.5, 0.7])
    assert second.input_tokens == first.input_tokens + 1 + 3, "an answer without text is between"
    assert list(first.chunks) == list(second.chunks[:2]) == list(other.chunks)
    assert other.output_tokens == 3
    assert third.session == fourth.session not in (None, "a", "b"), "without a name, the line's"
    assert (third.input_tokens, fourth.arrival_s) == (3, 0.001)


def test_rows_of_aiperf(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "t",
        {"timestamp": 0, "text_input": LONG, "output_length": 5},
        {"timestamp": 100, "text_input": LONG, "output_length": 5},
    )
    found = read(path, TEXT)
    assert [r.arrival_s for r in found] == [0, 0.1] and found[1].output_tokens == 5
    assert ceiling(load_arrays(found)) == 0.5


@pytest.mark.parametrize(
    "record",
    [
        {
            "id": "c0",
            "conversations": [
                {"from": "human", "value": LONG},
                {"from": "gpt", "value": "x y z"},
                {"from": "human", "value": "more"},
                {"from": "gpt", "value": "w"},
            ],
        },
        {
            "conversation_id": "c0",
            "conversation": [
                message("user", LONG),
                message("assistant", "x y z"),
                message("user", "more"),
                message("assistant", "w"),
            ],
        },
    ],
    ids=["sharegpt", "lmsys"],
)
def test_talks(record: dict[str, Any], tmp_path: Path) -> None:
    first, second = read(lines(tmp_path / "t", record), TEXT)
    assert (first.input_tokens, first.output_tokens) == (9, 3)
    assert (second.input_tokens, second.output_tokens) == (9 + 4 + 2, 1)
    assert first.session == second.session and list(second.chunks[:2]) == list(first.chunks)


def test_a_talk_is_one_line_of_those_that_are_counted(tmp_path: Path) -> None:
    talk = {"conversation": [message("user", LONG), message("assistant", "x")] * 10}
    trace = open_trace(lines(tmp_path / "t", *[talk] * 3, {"conversation": "?"}), None, TEXT)
    with pytest.raises(TraceError, match="1 of 4 lines are malformed"):
        list(trace.requests())


def test_a_turn_comes_after_the_one_before(tmp_path: Path) -> None:
    turns = [message("user", "x"), message("user", "y") | {"delay": 3}]
    path = lines(tmp_path / "t", *({"timestamp": at, "conversation": turns} for at in (10, 50)))
    assert [r.arrival_s for r in read(path, TEXT)] == [0, 3, 40, 43]


@pytest.mark.parametrize("field", ["request", "body"])
def test_fields_that_are_called_as_ours_are_no_requests_of_ours(field: str, tmp_path: Path) -> None:
    path = lines(tmp_path / "t", {field: "hello there", "at": 1, "n": 7})
    with pytest.raises(TraceError, match=rf"JSON with the fields {field}, at, n, .* --map time="):
        open_trace(path)
    mapped = ReadOptions(names={"time": "at", "input": "n"})
    assert [r.input_tokens for r in read(path, mapped)] == [7]


def test_requests_of_inference_perf(tmp_path: Path) -> None:
    asked = json.dumps({"model": "m", "prompt": LONG, "max_tokens": 6})
    path = lines(tmp_path / "t", {"start_time": 5.0, "request": asked}, {"request": "{"})
    trace = open_trace(path, None, TEXT)
    with pytest.raises(TraceError, match=r"1 of 2 lines .*request is no JSON"):
        list(trace.requests())
    path = lines(tmp_path / "t", {"start_time": 5.0, "request": asked})
    assert read(path, TEXT)[0].output_tokens == 6


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_is_an_object_a_line(
    indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workloads.traces.lines._PIECE", 50)  # ends within elements and characters
    said = [{"from": "human", "value": f"{LONG} ä {i}"} for i in range(3)]
    talks = [{"id": f"c{i}", "conversations": [one]} for i, one in enumerate(said)]
    whole = json.dumps(talks, indent=indent, ensure_ascii=False).encode()
    (tmp_path / "t.json").write_bytes(b"\xef\xbb\xbf" + whole)
    single = lines(tmp_path / "t.jsonl", *talks)
    listed = read(tmp_path / "t.json", TEXT)
    assert [r.id for r in listed] == [r.id for r in read(single, TEXT)] == ["c0.0", "c1.0", "c2.0"]
    assert [list(r.chunks) for r in listed] == [list(r.chunks) for r in read(single, TEXT)]
    (tmp_path / "cut.json").write_bytes(whole[:-60])
    trace = open_trace(tmp_path / "cut.json", None, TEXT)
    with pytest.raises(TraceError, match=r"1 of 3 lines .*cut.json:3: the list breaks off"):
        list(trace.requests())
    for broken, says in (
        (whole.replace(b'"c1"', b"c1"), "element 2 of its list is no JSON .*; mend it"),
        (whole + whole, "behind its list of 3 elements is '"),
        (b"[section]\na=1", "element 1 of its list is no JSON"),
        (b"[]", "an empty list, which is no known trace"),
    ):
        (tmp_path / "broken.json").write_bytes(broken)
        with pytest.raises(TraceError, match=says):
            read(tmp_path / "broken.json", TEXT)
    (tmp_path / "own.json").write_text('[{"ts": 1, "n": 5}, {"ts": 3, "n": 6}]')
    names = ReadOptions(names={"time": "ts", "input": "n"})
    assert [r.arrival_s for r in read(tmp_path / "own.json", names)] == [0, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\n \n", "t: an empty file, which is no known trace$"),
        ("ts,n\n1,2\n".encode("utf-16"), "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 .*t >"),
        (b"PK\x03\x04rest", "t: a zip archive; unpack it first$"),
        (b"PAR1\0rest", r"t: a binary file \(Parquet\), which is no known trace$"),
        (b"[1, 2]", "t: text that begins '1', which is no known trace; name its fields"),
    ],
)
def test_what_is_no_text_is_said_to_be(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(TraceError, match=says):
        open_trace(tmp_path / "t")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("ts;n;note\n1;900;a,b\n3;901;c\n", [(0, 900), (2, 901)]),
        ("ts\tn\n1\t900\n3\t901\n", [(0, 900), (2, 901)]),
        ("ts,n\n1,900.0\n3,901.0\n", [(0, 900), (2, 901)]),
        ("ts,n\n1787000000000,9\n1787000000500,9\n", [(0, 9), (0.5, 9)]),  # ms since 1970
        ("ts,n\n05/01/2026,9\n", "no time; a number, or a date like 2026-05-01 10:00:00"),
        ("ts,n\n1,9.5\n", "'9.5' is not a whole number"),
        ("ts,m\n1,9\n", "has no 'n'; its fields are ts, m"),
        ('{"ts": 1, "m": 9}', "has no 'n'; its fields are ts, m"),
        ("ts,größe,n\n1,2,9\n", "t:1: not UTF-8; write it as UTF-8"),
    ],
)
def test_a_users_own_table(content: str, got: Any, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(content, encoding="latin-1")
    names = ReadOptions(names={"time": "ts", "input": "n"})
    if isinstance(got, str):
        with pytest.raises(TraceError, match=got):
            read(tmp_path / "t", names)
    else:
        assert [(r.arrival_s, r.input_tokens) for r in read(tmp_path / "t", names)] == got


@pytest.mark.parametrize(
    ("unit", "named", "said"),
    [
        (1, None, "times in s"),
        (10**3, None, "times in ms"),
        (10**6, None, "times in µs"),
        (10**9, None, "times in ns"),
        (1, "mooncake", "times in s"),
        (10**3, "mooncake", ""),
    ],
)
def test_a_clock_since_1970_tells_its_unit(
    unit: int, named: str | None, said: str, tmp_path: Path
) -> None:
    row = {"input_length": 600, "output_length": 1, "hash_ids": [1, 2]}
    times = ((1787000000 + i) * unit for i in range(3))
    numbers = [{"timestamp": t, **row} for t in times]
    texts = [{**each, "timestamp": str(each["timestamp"])} for each in numbers]
    for rows in (numbers, texts):
        trace = open_trace(lines(tmp_path / "t", *rows), named)
        assert said in trace.guess and bool(said) == bool(trace.guess)
        arrivals = [request.arrival_s for request in trace.requests()]
        assert arrivals[2] - arrivals[0] == pytest.approx(2, abs=1e-3)


def test_blocks_that_a_named_format_does_not_have_are_guessed(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 640, "hash_ids": list(range(10))}
    path = lines(tmp_path / "t", row, row)
    trace = open_trace(path, "mooncake")
    assert trace.guess == "blocks of 64 tokens (else --chunk-tokens)"
    assert [len(r.chunks) for r in trace.requests()] == [10, 10]
    assert open_trace(path, "mooncake", ReadOptions(chunk_tokens=64)).guess == ""


def test_delays_of_mooncake_count_from_the_session_before(tmp_path: Path) -> None:
    row = {"input_length": 600, "output_length": 1, "hash_ids": [1, 2]}
    path = lines(
        tmp_path / "t",
        {"session_id": "a", "timestamp": 1000, **row},
        {"session_id": "b", "timestamp": 3000, **row},
        {"session_id": "a", "delay": 500, **row},
        {"session_id": "a", "delay": 250, **row},
    )
    assert [r.arrival_s for r in read(path)] == [1, 3, 1.5, 1.75]


@pytest.mark.parametrize(
    ("block", "format", "guess"),
    [
        (512, "mooncake", "blocks of 512 tokens (else --chunk-tokens) and times in ms"),
        (64, "mooncake", "blocks of 64 tokens (else --chunk-tokens) and times in ms"),
        (16, "timed-trace", "blocks of 16 tokens (else --chunk-tokens) and times in s"),
    ],
)
def test_blocks_are_guessed_and_said_to_be(
    block: int, format: str, guess: str, tmp_path: Path
) -> None:
    rows = [
        {"timestamp": i, "input_length": n * block, "hash_ids": list(range(n))}
        for i, n in enumerate((10, 20, 40))
    ]
    trace = open_trace(lines(tmp_path / "t", *rows))
    assert (trace.format, [len(r.chunks) for r in trace.requests()]) == (format, [10, 20, 40])
    assert trace.guess.startswith(guess)
    said = open_trace(tmp_path / "t", None, ReadOptions(chunk_tokens=block, unit_s=0.001))
    assert said.guess == ""
    own = [row | {"block_size": block} for row in rows]
    assert open_trace(lines(tmp_path / "t", *own)).guess == ""


OWN = {"time": "ts", "input": "n_in", "output": "n_out", "session": "who"}


def test_fields_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "who,ts,n_in,n_out\nx,2026-01-01T00:00:10,64,5\ny,2026-01-01T00:00:12,32,1\n"
    )
    rows = (
        {"who": "x", "ts": 10, "n_in": 64, "n_out": 5},
        {"who": "y", "ts": 12, "n_in": 32, "n_out": 1},
    )
    for path in (tmp_path / "t.csv", lines(tmp_path / "t.jsonl", *rows)):
        trace = open_trace(path, None, ReadOptions(names=OWN))
        found = list(trace.requests())
        assert [(r.arrival_s, r.input_tokens, r.output_tokens, r.session) for r in found] == [
            (0, 64, 5, "x"),
            (2, 32, 1, "y"),
        ]
        assert not trace.reader.shares and load_arrays(found).chunk_tokens == 0


def test_chunks_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ts,n_in,parts\n0,64,a1 b2\n1,64,a1 b3\n")
    rows = (
        {"ts": 0, "n_in": 64, "parts": ["a1", "b2"]},
        {"ts": 1, "n_in": 64, "parts": ["a1", "b3"]},
    )
    names = {"time": "ts", "input": "n_in", "chunks": "parts"}
    for path in (tmp_path / "t.csv", lines(tmp_path / "t.jsonl", *rows)):
        trace = open_trace(path, None, ReadOptions(32, names=names))
        assert trace.reader.shares and ceiling(load_arrays(trace.requests())) == 0.25
    with pytest.raises(TraceError, match="--chunk-tokens"):
        open_trace(path, None, ReadOptions(names=names))


def test_what_a_mapping_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ts,n_in\n0,64\n")
    path = tmp_path / "t.csv"
    with pytest.raises(TraceError, match=r"no known trace; name its fields: --map time=FIELD"):
        open_trace(path)
    for names, says in (
        ({"time": "ts"}, "input is missing; name its fields"),
        ({**OWN, "colour": "x"}, "'colour' is no field"),
    ):
        with pytest.raises(TraceError, match=says):
            open_trace(path, None, ReadOptions(names=names))
    trace = open_trace(path, None, ReadOptions(names={"time": "t", "input": "n_in"}))
    with pytest.raises(TraceError, match="has no 't'; its fields are ts, n_in"):
        list(trace.requests())
    with pytest.raises(TraceError, match="leave --format out"):
        open_trace(path, "azure", ReadOptions(names=OWN))


def test_a_pipe_is_read_as_a_file(tmp_path: Path) -> None:
    row = {"timestamp": 5, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(
        target=lambda: (tmp_path / "pipe").write_text((json.dumps(row) + "\n") * 30)
    )
    writer.start()
    trace = open_trace(tmp_path / "pipe")
    writer.join()
    assert len(list(trace.requests())) == len(list(trace.requests())) == 30
    assert len(list(open_trace(tmp_path / "pipe").requests())) == 30, "and again, for a bench"
