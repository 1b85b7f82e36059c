"""The trace writer: what a line holds, what it does not, and what a crash leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.trace_writer import TRACE_SCHEMA, ServedRequest, TraceWriter

ROOT = Path(__file__).parents[2]
KEYS = [bytes([i]) * 32 for i in range(3)]


def served(name: str = "a", **changes: Any) -> ServedRequest:
    fields: dict[str, Any] = dict(
        id=name, arrival_s=12.5, input_tokens=50, output_tokens=4, keys=KEYS
    )
    return ServedRequest(**(fields | changes))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_header_and_a_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    writer = TraceWriter(path, 16, "proxy", "tiny", start_s=10.0)
    writer.write(
        served(hits={"cpu": 16, "disk": 0}, session="me", ttft_s=0.12345678, error="HTTP 500")
    )
    writer.close()
    header, line = read(path)
    assert header.pop("started").endswith("+00:00")
    assert header == {
        "schema": TRACE_SCHEMA,
        "chunk_tokens": 16,
        "source": "proxy",
        "model": "tiny",
    }
    assert line == {
        "id": "a",
        "t": 2.5,
        "session": writer.name(b"me"),
        "input_tokens": 50,
        "output_tokens": 4,
        "chunks": [writer.name(key) for key in KEYS],
        "hits": {"cpu": 16},
        "ttft_s": 0.123457,
        "error": "HTTP 500",
    }


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    TraceWriter(path, 16, "proxy", "tiny", 0).write(served(keys=[]))
    line = read(path)[1]
    assert (line["session"], line["ttft_s"], line["error"]) == (None, None, None)
    assert (line["chunks"], line["hits"]) == ([], {})


@given(prompt=st.lists(st.integers(0, 60_000), min_size=32, max_size=80), cut=st.integers(0, 79))
def test_equal_beginnings_have_equal_names_in_one_recording_only(
    prompt: list[int], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("traces")
    hasher = ChunkHasher(Namespace(KVLayout(1, 1, 1, "int8", 16), "tiny"))
    other = [*prompt[:cut], -1, *prompt[cut:]]
    names = []
    for name in ("one", "two"):
        writer = TraceWriter(folder / name, 16, "proxy", "tiny", 0)
        for tokens in (prompt, other):
            writer.write(served(keys=hasher.keys(tokens).prefix))
        writer.close()
        names.append([line["chunks"] for line in read(folder / name)[1:]])
    first, second = names[0]
    common = min(cut // 16, len(prompt) // 16)
    assert first[:common] == second[:common]
    assert not set(first[common:]) & set(second)
    assert not {name for chunks in names[0] for name in chunks} & set(names[1][0])
    assert all(len(bytes.fromhex(name)) == 8 for name in first)


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        TraceWriter(path, 16, "proxy", "tiny", 0)
    assert path.read_text() == "mine"


def test_after_close_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    writer = TraceWriter(path, 16, "proxy", "tiny", 0)
    writer.close()
    writer.close()
    writer.write(served())
    assert len(read(path)) == 1


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    writer = TraceWriter(path, 16, "proxy", "tiny", 0)
    # Long lines: more than one write of the buffer below.
    keys = [i.to_bytes(32, "big") for i in range(2_000)]

    def work(thread: int) -> None:
        for i in range(20):
            writer.write(served(f"{thread}-{i}", keys=keys))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = read(path)[1:]
    assert {line["id"] for line in lines} == {f"{t}-{i}" for t in range(4) for i in range(20)}
    assert all(len(line["chunks"]) == 2_000 for line in lines)


def test_a_killed_process_has_lost_no_finished_request(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    script = (
        "import os, signal\nfrom pathlib import Path\n"
        "from cache_core.trace_writer import ServedRequest, TraceWriter\n"
        f"writer = TraceWriter(Path({str(path)!r}), 16, 'proxy', 'tiny', 0)\n"
        "for i in range(100):\n    writer.write(ServedRequest(str(i), 0, 1, 1, []))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, timeout=60)
    assert done.returncode == -9
    assert [line["id"] for line in read(path)[1:]] == [str(i) for i in range(100)]
