"""``lmcache trace record`` where servers, clients and flags misbehave."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cache_core.servers import eventually
from tests.lmcache_cli.odd_process import OddServer
from tests.lmcache_cli.recording_process import Recording, ask, connect, recording

PROMPT = {"model": "odd", "prompt": "zebra " * 10}


@pytest.fixture
def odd() -> Iterator[OddServer]:
    server = OddServer("tokenize")
    yield server
    server.end()


@pytest.fixture
def recorded(odd: OddServer, tmp_path: Path) -> Iterator[Recording]:
    with recording(tmp_path / "trace.jsonl", odd.url) as started:
        yield started


def test_other_paths_go_through_as_they_are(odd: OddServer, recorded: Recording) -> None:
    path = "/a//b%2Fc/%7Ex?q=%20a+b&empty="
    data = bytes(range(256))
    key = "Bearer sk-verysecret"
    for method in ("POST", "PUT", "DELETE"):
        status, headers, body = ask(
            recorded.url,
            path,
            data,
            method,
            Authorization=key,
            X_Mine="1",
            Connection="X-Hop",
            X_Hop="here",
            Accept_Encoding="gzip",
        )
        said_method, said_path, said_headers, said_body = json.loads(body)
        named = {name.lower(): value for name, value in said_headers}
        assert (status, said_method, said_path) == (200, method, path)
        assert said_body.encode("latin-1") == data
        assert (named["authorization"], named["x-mine"]) == (key, "1")
        assert named["accept-encoding"] == "gzip" and named["host"] == f"127.0.0.1:{odd.port}"
        assert "x-hop" not in named and "user-agent" not in named
        assert headers["x-answer"] == "kept"
    assert recorded.end().endswith("0 requests, 0 prompt and 0 output tokens, 0% seen before\n")
    assert recorded.lines() == [] and "verysecret" not in recorded.out.read_text()


def test_a_body_without_a_length_and_an_answer_without_a_body(
    odd: OddServer, recorded: Recording
) -> None:
    with contextlib.closing(connect(recorded.url)) as connection:
        pieces = iter([b"one ", b"two"])
        connection.request("PUT", "/upload", pieces, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())[3] == "one two"
        # The same connection again: nothing of the first answer may be left on it.
        connection.request("HEAD", "/file")
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("Content-Length"), answer.read()) == (200, "5", b"")
        connection.request("GET", "/v1/models")
        assert connection.getresponse().read() == b'{"data": [{"id": "odd"}]}'


@pytest.mark.parametrize("target", ["http://127.0.0.2/x", "@127.0.0.2/x", "*"])
def test_no_target_leads_to_another_host(recorded: Recording, target: str) -> None:
    host, port = recorded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            f"OPTIONS {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        )
        assert client.recv(100).split()[1] in (b"400", b"404", b"405")


def test_a_compressed_body_stays_compressed(recorded: Recording) -> None:
    import gzip

    data = gzip.compress(b"hello")
    _, _, body = ask(recorded.url, "/upload", data, Content_Encoding="gzip")
    assert json.loads(body)[3].encode("latin-1") == data


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        ("refuse", "HTTP 500"),
        ("garbage", None),
        ("fail_late", "error in the answer"),
    ],
)
def test_answers_that_are_none_go_through(
    odd: OddServer, recorded: Recording, behaviour: str, error: str | None
) -> None:
    direct = ask(odd.url, "/v1/completions", PROMPT, X_Behave=behaviour)
    status, _, body = ask(recorded.url, "/v1/completions", PROMPT, X_Behave=behaviour)
    assert (status, body) == (direct[0], direct[2])
    (line,) = recorded.wait_for(1)
    assert (line["error"], line["input_tokens"], len(line["chunks"])) == (error, 60, 3)
    assert "zebra" not in recorded.out.read_text() + recorded.end()


def test_events_in_pieces_are_understood(odd: OddServer, recorded: Recording) -> None:
    direct = ask(odd.url, "/v1/completions", PROMPT, X_Behave="split")
    assert ask(recorded.url, "/v1/completions", PROMPT, X_Behave="split")[2] == direct[2]
    (line,) = recorded.wait_for(1)
    # The server's count wins: it knows what it dropped.
    assert (line["input_tokens"], line["output_tokens"], len(line["chunks"])) == (40, 7, 2)
    assert line["ttft_s"] is not None and line["error"] is None
    assert "another length than the server counted: 1;" in recorded.end()


@pytest.mark.parametrize("behaviour", ["die", "break_off"])
def test_an_answer_that_breaks_off_breaks_off_for_the_client(
    recorded: Recording, behaviour: str
) -> None:
    with contextlib.closing(connect(recorded.url)) as connection:
        body = json.dumps(PROMPT)
        connection.request("POST", "/v1/completions", body, {"X-Behave": behaviour})
        answer = connection.getresponse()
        assert answer.status == 200
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
    (line,) = recorded.wait_for(1)
    assert line["error"] == "upstream failed" and line["ttft_s"] is not None
    assert "1 request (1 failed)" in recorded.end()


def test_a_dead_server_is_a_502_and_what_was_recorded_stays(
    odd: OddServer, recorded: Recording
) -> None:
    ask(recorded.url, "/v1/completions", PROMPT, X_Behave="split")
    recorded.wait_for(1)
    odd.end()
    for path in ("/v1/completions", "/health"):
        status, _, body = ask(recorded.url, path, PROMPT)
        assert status == 502 and odd.url in json.loads(body)["error"]["message"]
    lines = recorded.wait_for(2)
    assert [line["error"] for line in lines] == [None, "upstream unreachable"]
    recorded.end()


@pytest.mark.parametrize("behaviour", ["endless", "silent"])
def test_a_client_that_leaves_leaves_the_server_too(
    odd: OddServer, recorded: Recording, behaviour: str
) -> None:
    connection = connect(recorded.url)
    connection.request("POST", "/v1/completions", json.dumps(PROMPT), {"X-Behave": behaviour})
    assert odd.process.stdout is not None
    assert odd.process.stdout.readline() == "asked\n"
    if behaviour == "endless":
        answer = connection.getresponse()
        answer.read(20)
        answer.close()
    connection.close()
    assert odd.process.stdout.readline() == "left\n"
    (line,) = recorded.wait_for(1)
    assert line["error"] == "client disconnected" and len(line["chunks"]) == 3
    recorded.end()


def test_a_second_interrupt_does_not_wait_for_open_requests(recorded: Recording) -> None:
    with contextlib.closing(connect(recorded.url)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(PROMPT), {"X-Behave": "endless"})
        connection.getresponse().read(20)
        recorded.interrupt(signal.SIGINT)
        eventually(lambda: not _takes(recorded.url))
        log = recorded.end(signal.SIGINT)
    (line,) = recorded.lines()
    assert line["error"] == "recording stopped" and len(line["chunks"]) == 3
    assert "1 request (1 failed)" in log


def _takes(url: str) -> bool:
    try:
        with contextlib.closing(connect(url)) as probe:
            probe.connect()
            return True
    except OSError:
        return False


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": []}', b'{"prompt": [true]}'])
def test_bodies_that_ask_nothing(recorded: Recording, body: bytes) -> None:
    assert ask(recorded.url, "/v1/completions", body, X_Behave="garbage")[0] == 200
    (line,) = recorded.wait_for(1)
    assert (line["error"], line["chunks"]) == ("prompt not understood", [])
    recorded.end()


def test_strange_users_and_token_ids_do_not_stop_the_recording(recorded: Recording) -> None:
    asked = {"model": "\ud800", "prompt": [2**40] * 20, "user": "\udfff", "cache_salt": "\ud800"}
    for prompt in (asked["prompt"], "a" * 40):
        ask(recorded.url, "/v1/completions", asked | {"prompt": prompt}, X_Behave="garbage")
    assert [line["chunks"] for line in recorded.wait_for(2)] == [[], []]
    recorded.end()


def test_it_ends_by_itself_after_a_time(odd: OddServer, tmp_path: Path) -> None:
    with recording(tmp_path / "t.jsonl", odd.url, "--duration", "0.5s") as recorded:
        assert "0 requests" in recorded.end(None)


def test_a_full_disk_ends_it_and_keeps_what_was_recorded(recorded: Recording) -> None:
    ask(recorded.url, "/v1/completions", PROMPT, X_Behave="split")
    before = recorded.wait_for(1)
    recorded.limit(recorded.out.stat().st_size + 40)
    assert ask(recorded.url, "/v1/completions", PROMPT, X_Behave="split")[0] == 200
    (line,) = recorded.end(None, code=1).splitlines()
    assert str(recorded.out) in line and "File too large" in line and "1 request," in line
    assert recorded.lines() == before


def test_a_server_that_takes_no_messages_is_told_about(recorded: Recording, odd: OddServer) -> None:
    assert "takes no messages" in recorded.said
    asked = {"model": "odd", "messages": [{"role": "user", "content": "zebra"}]}
    assert ask(recorded.url, "/v1/chat/completions", asked)[0] == 200
    assert recorded.wait_for(1)[0]["error"] == "prompt not tokenized"
    assert "--tokenizer" in recorded.end()


def test_a_port_of_its_own_is_shown(recorded: Recording) -> None:
    host, port = recorded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        pass
