"""``lmcache trace record`` where it can't start, and what it says then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lmcache_cli.odd_process import OddServer
from tests.lmcache_cli.recording_process import ask, recording, run
from tests.lmcache_cli.small_model import save_model

PROMPT = {"model": "odd", "prompt": "zebra " * 10}


@pytest.fixture
def odd() -> Iterator[OddServer]:
    server = OddServer("tokenize")
    yield server
    server.end()


Case = tuple[Callable[[OddServer, Path], tuple[str, ...]], int, str]
STARTS: dict[str, Case] = {
    "no server": (lambda odd, _: ("http://127.0.0.1:1",), 4, "http://127.0.0.1:1 can't be reached"),
    "no address": (lambda odd, _: ("localhost:8000",), 2, "--url"),
    "name and password": (lambda odd, _: ("http://me:secret@127.0.0.1:1",), 2, "--url"),
    "port taken": (lambda odd, _: (odd.url, "--listen", f"127.0.0.1:{odd.port}"), 2, "--listen"),
    "not loopback": (lambda odd, _: (odd.url, "--listen", "0.0.0.0:0"), 2, "--listen"),
    "no port": (lambda odd, _: (odd.url, "--listen", "127.0.0.1"), 2, "--listen"),
    "no duration": (lambda odd, _: (odd.url, "--duration", "soon"), 2, "--duration"),
    "no chunk": (lambda odd, _: (odd.url, "--chunk-tokens", "0"), 2, "--chunk-tokens"),
    "no tokenizer": (lambda odd, at: (odd.url, "--tokenizer", str(at)), 2, "--tokenizer"),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts_that_fail_say_why_and_leave_no_file(
    odd: OddServer, tmp_path: Path, name: str
) -> None:
    flags, code, said = STARTS[name]
    done = run(tmp_path / "trace.jsonl", *flags(odd, tmp_path))
    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("lmcache: ") and said in line and "secret" not in line
    assert not list(tmp_path.iterdir())


def test_a_server_without_tokenize_needs_a_tokenizer_at_the_start(tmp_path: Path) -> None:
    server = OddServer()
    try:
        done = run(tmp_path / "trace.jsonl", server.url)
        assert done.returncode == 4 and "--tokenizer" in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
        model = str(save_model(tmp_path / "model", "llama"))
        with recording(tmp_path / "trace.jsonl", server.url, "--tokenizer", model) as recorded:
            ask(recorded.url, "/v1/completions", PROMPT, X_Behave="garbage")
            (line,) = recorded.wait_for(1)
            assert (line["input_tokens"], len(line["chunks"])) == (60, 3)
            recorded.end()
    finally:
        server.end()


def test_a_file_that_is_there_is_not_touched(odd: OddServer, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("mine")
    done = run(path, odd.url)
    assert done.returncode == 2 and str(path) in done.stderr
    assert path.read_text() == "mine"
    done = run(tmp_path / "nowhere" / "trace.jsonl", odd.url)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
