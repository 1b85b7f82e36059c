"""``lmcache trace record`` in front of a real vLLM server."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lmcache_cli.recording_process import Recording, ask, events, recording
from tests.lmcache_cli.vllm_world import VllmAddress

pytestmark = pytest.mark.vllm

WORDS = "zebra quux marzipan obelisk "
SHARED = WORDS * 12


@pytest.fixture
def server(vllm_address: VllmAddress) -> VllmAddress:
    return vllm_address


@pytest.fixture
def recorded(server: VllmAddress, tmp_path: Path) -> Iterator[Recording]:
    with recording(tmp_path / "trace.jsonl", server.url) as started:
        yield started


def completion(prompt: object, **more: object) -> dict[str, Any]:
    asked = dict(model="tiny", prompt=prompt, max_tokens=6, temperature=0, ignore_eos=True)
    return asked | more


def chat(text: object, **more: object) -> dict[str, Any]:
    asked = completion(None, messages=[{"role": "user", "content": text}], **more)
    del asked["prompt"]
    return asked


CASES = [
    ("/v1/completions", completion(SHARED), len(SHARED)),
    ("/v1/completions", completion(list(range(40))), 40),
    ("/v1/chat/completions", chat(SHARED), len(f"user: {SHARED}\nassistant: ")),
    (
        "/v1/chat/completions",
        chat([{"type": "text", "text": SHARED}], add_generation_prompt=False),
        len(f"user: {SHARED}\n"),
    ),
]


@pytest.mark.parametrize(("path", "asked", "length"), CASES)
@pytest.mark.parametrize("streamed", [None, "plain", "usage"])
def test_lengths_times_and_chunks(
    server: VllmAddress,
    recorded: Recording,
    path: str,
    asked: dict[str, Any],
    length: int,
    streamed: str | None,
) -> None:
    if streamed:
        options = {"stream_options": {"include_usage": True}} if streamed == "usage" else {}
        asked = asked | {"stream": True} | options
    direct = ask(server.url, path, asked)
    status, headers, body = ask(recorded.url, path, asked)
    assert (status, headers["content-type"]) == (direct[0], direct[1]["content-type"])
    if streamed:
        said = [event["choices"] for event in events(body)]
        # How tokens fall into events is up to the server's timing; the text is not.
        assert _text(said) == _text([event["choices"] for event in events(direct[2])])
    else:
        assert _text([json.loads(body)["choices"]]) == _text([json.loads(direct[2])["choices"]])
    (line,) = recorded.wait_for(1)
    assert (line["input_tokens"], line["output_tokens"]) == (length, 6)
    assert len(line["chunks"]) == len(set(line["chunks"])) == length // 16
    assert line["error"] is None and line["session"] is None and line["t"] >= 0
    assert (line["ttft_s"] is not None) == bool(streamed)
    recorded.end()


def _text(choices: list[list[dict[str, Any]]]) -> str:
    found = [choice for some in choices for choice in some]
    parts = [
        c.get("text") or (c.get("delta") or c.get("message") or {}).get("content") for c in found
    ]
    return "".join(part or "" for part in parts)


def test_a_shared_prefix_has_shared_names_in_this_recording_only(
    server: VllmAddress, recorded: Recording, tmp_path: Path
) -> None:
    prompts = [SHARED + "first question", SHARED + "second question", SHARED + "first question"]
    for prompt in prompts:
        assert ask(recorded.url, "/v1/completions", completion(prompt))[0] == 200
    first, second, third = (line["chunks"] for line in recorded.wait_for(3))
    common = len(SHARED) // 16
    assert first == third
    assert first[:common] == second[:common] and not set(first[common:]) & set(second)
    log = recorded.end()
    total = sum(map(len, prompts))
    shared = 16 * (common + len(third))
    assert f"3 requests, {total:,} prompt and 18 output tokens, {shared / total:.0%}" in log
    with recording(tmp_path / "again.jsonl", server.url) as again:
        ask(again.url, "/v1/completions", completion(prompts[0]))
        (line,) = again.wait_for(1)
        assert len(line["chunks"]) == len(first) and not set(line["chunks"]) & set(first)


def test_server_and_local_tokenizer_agree_and_the_servers_cache_is_seen(
    server: VllmAddress, recorded: Recording
) -> None:
    # More than a block of the server's prefix cache.
    prompt = "obelisk " * 100
    for _ in range(2):
        ask(recorded.url, "/v1/chat/completions", chat(prompt))
    lines = recorded.wait_for(2)
    assert lines[1]["hits"]["cached"] > 0 and set(lines[1]["hits"]) == {"cached"}


def test_models_and_tenants_share_nothing(recorded: Recording) -> None:
    for salt in ("a", "b", "a"):
        ask(recorded.url, "/v1/completions", completion(SHARED, cache_salt=salt))
    first, second, third = (set(line["chunks"]) for line in recorded.wait_for(3))
    assert first == third and not first & second


def test_sessions_have_names_of_their_own(recorded: Recording) -> None:
    for user, headers in [("ann", {}), ("bob", {}), ("ann", {}), ("x", {"X_Session_Id": "ann"})]:
        ask(recorded.url, "/v1/completions", completion("hello", user=user), **headers)
    names = [line["session"] for line in recorded.wait_for(4)]
    assert names[0] == names[2] == names[3] != names[1]
    assert "ann" not in names and None not in names


def test_several_prompts_are_several_lines(recorded: Recording) -> None:
    asked = completion([SHARED, SHARED[1:], SHARED + "x"], n=2, temperature=1, top_k=1)
    assert ask(recorded.url, "/v1/completions", asked)[0] == 200
    asked = completion([[1, 2, 3] * 20, [1, 2, 3] * 30])
    assert ask(recorded.url, "/v1/completions", asked)[0] == 200
    lines = recorded.wait_for(5)
    assert [line["id"] for line in lines] == ["1.0", "1.1", "1.2", "2.0", "2.1"]
    length = len(SHARED)
    assert [line["input_tokens"] for line in lines] == [length, length - 1, length + 1, 60, 90]
    assert lines[0]["chunks"] == lines[2]["chunks"]
    assert lines[3]["chunks"] == lines[4]["chunks"][:3]
    assert [line["output_tokens"] for line in lines] == [12, 12, 12, 6, 6]


def test_many_at_once(recorded: Recording) -> None:
    def one(number: int) -> int:
        asked = completion(f"{SHARED}{number:04}", stream=bool(number % 2))
        return ask(recorded.url, "/v1/completions", asked)[0]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, range(24))) == {200}
    log = recorded.end(signal.SIGTERM)
    lines = recorded.lines()
    assert {line["id"] for line in lines} == {str(i) for i in range(1, 25)}
    assert len({tuple(line["chunks"][: len(SHARED) // 16]) for line in lines}) == 1
    assert all(line["output_tokens"] == 6 for line in lines)
    assert "24 requests" in log


def test_nothing_of_a_prompt_or_a_key_is_in_the_file(recorded: Recording, tmp_path: Path) -> None:
    key = "sk-verysecret"
    sent = [
        ("/v1/completions", completion(SHARED, user="ann@example.org")),
        ("/v1/completions", completion([77, 78, 79, 80] * 10)),
        ("/v1/chat/completions", chat(SHARED, stream=True)),
        ("/v1/completions", completion(SHARED * 90)),  # longer than the model takes
        ("/v1/completions", b'{"prompt": "' + SHARED.encode()),
        ("/v1/chat/completions", completion(SHARED)),
    ]
    answers = []
    for path, asked in sent:
        answer = ask(recorded.url, path, asked, Authorization=f"Bearer {key}")
        answers.append((answer[0], _output(answer[2])))
    assert [status for status, _ in answers] == [200, 200, 200, 400, 400, 400]
    lines = recorded.wait_for(6)
    assert [line["error"] for line in lines] == [None, None, None, *["HTTP 400"] * 3]
    log = recorded.end()
    for text in (recorded.out.read_text(), log):
        assert not any(word in text for word in (*WORDS.split(), key, "ann@", "77,78", "77, 78"))
        assert not any(output in text for _, output in answers if output)
    assert [p.name for p in tmp_path.iterdir()] == ["trace.jsonl"]


def _output(body: bytes) -> str:
    try:
        choices = json.loads(body).get("choices")
    except ValueError:
        choices = [c for event in events(body) for c in event["choices"]]
    return _text([choices or []])


def test_it_ends_by_itself_after_so_many_requests(server: VllmAddress, tmp_path: Path) -> None:
    with recording(tmp_path / "t.jsonl", server.url + "/v1/", "--requests", "2") as recorded:
        for _ in range(2):
            ask(recorded.url, "/v1/completions", completion("hello"))
        assert "2 requests" in recorded.end(None)
        assert len(recorded.lines()) == 2


def test_the_local_tokenizer_counts_as_the_server_does(server: VllmAddress, tmp_path: Path) -> None:
    import asyncio
    import urllib.request

    from lmcache_cli.trace.prompt import LocalTokens, read_body

    local = LocalTokens(str(server.model))
    for asked, is_chat in [
        (completion(SHARED), False),
        (chat(SHARED), True),
        (chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), True),
        (chat("hi", add_generation_prompt=False), True),
    ]:
        (prompt,) = read_body(json.dumps(asked).encode(), is_chat).prompts
        request = urllib.request.Request(
            f"{server.url}/tokenize",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            expected = json.load(answer)["tokens"]
        assert asyncio.run(local.token_ids("tiny", prompt, None)) == expected
