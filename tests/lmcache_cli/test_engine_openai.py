"""Engine ``openai``: against servers that behave, that don't, and a real vLLM."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.http.engine import SALT_TOKENS, OpenAIEngine
from lmcache_cli.engines.http.settings import ServerSettings, server_root
from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.modes.mode import reuse_modes
from reports.run_file import read_run
from reports.sample import Sample
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.odd_servers import Handler, bad, odd_server, requests, strict, well
from tests.lmcache_cli.small_model import save_model
from tests.lmcache_cli.vllm_world import VllmAddress
from workloads.request import Request

pytestmark = pytest.mark.usefixtures("patient_client")

SMALL = ["--documents", "2", "--questions", "2", "--context-tokens", "200", "--output-tokens", "4"]
KEY = "sk-test-1234567890abcdef"


def bench(cwd: Path, url: str, *args: str, **environment: str) -> CompletedProcess[str]:
    mode = [] if "--reuse" in args else ["--reuse", "server"]
    flags = ["bench", "long-context", "--engine", "openai", "--url", url, *SMALL, *mode, *args]
    return lmcache(*flags, cwd=cwd, **environment)


def test_a_server_with_and_without_what_it_has(tmp_path: Path) -> None:
    with odd_server() as server:
        flags = ["--reuse", "off,server", "--questions", "3", "--json", "j", "--quiet"]
        done = bench(tmp_path, server.url, *flags)
    assert done.returncode == 0, done.stderr
    off, as_it_is = json.loads((tmp_path / "j").read_text())["cells"]
    assert (off["reuse"], as_it_is["reuse"], off["n"], as_it_is["n"]) == ("off", "server", 6, 6)
    assert as_it_is["speedup_ttft"] > 0 and as_it_is["speedup_ttft_interval"]["low"] > 0
    assert as_it_is["outputs_compared"] == 0, "their salts differ, and so may their answers"
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, _ = read_run(path)
    sent = [body["prompt"] for body in server.seen[-12:]]
    starts = Counter(tuple(prompt[:12]) for prompt in sent)
    # Two documents as the server has them, six times; and six prompts that begin like no other.
    assert sorted(starts.values()) == [1] * 6 + [3, 3], starts
    assert len(samples) == 12


def test_two_servers_get_the_same_prompts_in_turns(tmp_path: Path) -> None:
    with odd_server() as one, odd_server() as other:
        flags = ["bench", "long-context", "--engine", "openai", *SMALL, "--questions", "3"]
        urls = ["--url", one.url, "--base-url", other.url]
        done = lmcache(*flags, *urls, "--quiet", "--json", "j", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    base, new = json.loads((tmp_path / "j").read_text())["cells"]
    assert (base["reuse"], new["reuse"], base["n"], new["n"]) == ("base", "server", 6, 6)
    assert base["speedup_ttft"] is None and new["speedup_ttft"] > 0
    assert new["speedup_ttft_interval"]["low"] > 0 and new["verdict"]
    assert "server makes TTFT" in done.stdout
    sent, also = ([body["prompt"] for body in server.seen[-6:]] for server in (one, other))
    assert sent == also and len({tuple(prompt[:12]) for prompt in sent}) == 2
    [path] = (tmp_path / "runs").glob("*.parquet")
    assert read_run(path)[1]["engine"]["base_url"] == other.url
    shown = lmcache("report", path, cwd=tmp_path)
    assert "server makes TTFT" in shown.stdout, shown.stderr


@pytest.mark.parametrize("how", ["model", "tokenizer", "gone"])
def test_a_second_server_that_would_be_asked_something_else(how: str, tmp_path: Path) -> None:
    model = {"id": "else" if how == "model" else "odd", "max_model_len": 4096}
    with odd_server() as one, odd_server(models=[model]) as other:
        if how == "tokenizer":
            other.shift = 1
        if how == "gone":
            other.server_close()
        flags = ["bench", "long-context", "--engine", "openai", *SMALL, "--url", one.url]
        done = lmcache(*flags, "--base-url", other.url, "--quiet", cwd=tmp_path)
    says = {"model": "serves else", "tokenizer": "different tokenizers", "gone": "start the server"}
    assert done.returncode == (4 if how == "gone" else 2) and says[how] in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def serve(url: str, asked: list[Request], load: Load, silence_s: float = 60) -> list[Sample]:
    engine = OpenAIEngine(None, ServerSettings(url, silence_s=silence_s))
    try:
        session = engine.open(CacheSpec(64, salt="test", mode="server", foreign=True), 64)
        return list(session.serve(asked, load))
    finally:
        engine.close()


def test_a_good_server(tmp_path: Path) -> None:
    with odd_server() as server:
        done = bench(tmp_path, server.url + "/v1/", "--json", "-", "--quiet")
    assert done.returncode == 0, done.stderr
    [cell] = json.loads(done.stdout)["cells"]
    assert (cell["reuse"], cell["n"], cell["failed"], cell["model"]) == ("server", 4, 0, "odd")
    assert cell["speedup_ttft"] is None and cell["identical_outputs"] is None
    assert cell["hit_tokens"]["device"] > 0
    hello, *sent = server.seen
    assert hello["stream_options"] == {"include_usage": True} and hello["temperature"] == 0
    assert all(body["ignore_eos"] and body["return_token_ids"] for body in sent)
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, meta = read_run(path)
    assert all(s.output_ids == (120,) * 4 and len(s.token_s) == 4 for s in samples)
    assert meta["engine"]["url"] == server.url
    assert meta["engine"]["max_context"] == 4096 - SALT_TOKENS


def test_a_cloud_takes_text_and_sees_the_key_that_nobody_else_sees(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "llama")
    cloud = [{"id": "big-model"}, {"id": "small-model"}]
    with odd_server(strict, models=[cloud[0]], key=KEY, tokenize=False) as server:
        done = bench(tmp_path, server.url, "--model", str(model), "--json", "j", OPENAI_API_KEY=KEY)
        refused = bench(tmp_path, server.url, "--model", str(model), OPENAI_API_KEY=KEY + "x")
        without = bench(tmp_path, server.url, "--model", str(model))
    assert done.returncode == 0, done.stderr
    assert all(isinstance(body["prompt"], str) for body in server.seen[-4:])
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, meta = read_run(path)
    assert all(s.prompt_tokens == 50 and s.output_tokens == 3 for s in samples)
    assert len({s.output_ids for s in samples}) == 1 and samples[0].output_ids
    assert meta["engine"]["outputs"] == "digest of the text"
    for run in (refused, without):
        assert run.returncode == 2 and len(run.stderr.strip().splitlines()) <= 2
        assert "key" in run.stderr and "Traceback" not in run.stderr
    assert "***" in refused.stderr or "refused" in refused.stderr
    for run in (done, refused, without):
        assert KEY not in run.stdout + run.stderr
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file


HOW = ["500", "no stream", "no http", "hangs", "hangs amid", "hangs up", "dies", "garbage"]
HOW += ["no object", "wrong shape", "error event", "cut short"]


@pytest.mark.parametrize("how", HOW)
def test_a_request_that_fails_is_a_sample_that_says_so(how: str) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        # 0 is the hello; then every other one fails.
        if number % 2:
            bad(handler, how)
        else:
            well(handler, body, number)

    with odd_server(behave) as server:
        samples = serve(server.url, requests(4), Load(1), silence_s=0.5)
    assert [s.request_id for s in samples] == ["r0", "r1", "r2", "r3"]
    assert [s.error is None for s in samples] == [False, True, False, True]
    assert all("\n" not in s.error for s in samples if s.error)
    words = {"500": "out of memory", "error event": "engine is dead", "hangs": "silence"}
    assert words.get(how, "") in str(samples[0].error)


def test_a_server_that_dies_is_left_alone_after_three(tmp_path: Path) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number > 2:  # the hello, the warm-up and one more are well
            bad(handler, "hangs up")
        else:
            well(handler, body, number)

    with odd_server(behave) as server:
        done = bench(tmp_path, server.url, "--documents", "5", "--json", "-")
        assert len(server.seen) == 3 + 3
    assert done.returncode == 0, done.stderr
    [cell] = json.loads(done.stdout)["cells"]
    assert (cell["n"], cell["failed"]) == (1, 9)
    assert "broke off" in done.stderr and "3 requests in a row got no answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_when_all_fail_the_exit_code_is_1_and_the_run_is_kept(tmp_path: Path) -> None:
    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        well(handler, body, number) if number < 2 else bad(handler, "500")

    with odd_server(behave) as server:
        done = bench(tmp_path, server.url)
    assert done.returncode == 1 and "out of memory" in done.stderr
    assert len(list((tmp_path / "runs").glob("*.parquet"))) == 1


@pytest.mark.parametrize("load", [Load(5), Load(None)], ids=["closed", "open"])
def test_requests_are_under_way_together_and_samples_in_order(load: Load) -> None:
    """The server answers nobody before five have asked, and those in reverse."""
    together = threading.Barrier(5)
    turns = [threading.Event() for _ in range(5)]

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if 1 <= number <= 5:
            together.wait(30)
            mine = body["prompt"][SALT_TOKENS]
            if mine < 4:
                turns[mine + 1].wait(30)
            well(handler, body, number)
            turns[mine].set()
        else:
            well(handler, body, number)

    with odd_server(behave) as server:
        samples = serve(server.url, requests(5), load)
    assert [s.request_id for s in samples] == [f"r{i}" for i in range(5)]
    assert not any(s.error for s in samples)
    finished = [s.finished_s for s in samples]
    assert finished == sorted(finished, reverse=True)


def test_closed_loop_never_has_more_under_way_than_clients() -> None:
    lock, now, most = threading.Lock(), Counter[str](), 0
    # No answer before three are asked for: however slow the machine is, three are under way.
    three = threading.Barrier(3)

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        nonlocal most
        with lock:
            now["under way"] += 1
            most = max(most, now["under way"])
        if number:  # the first is the engine's own question
            three.wait(timeout=30)
        with lock:
            now["under way"] -= 1
        well(handler, body, number)

    with odd_server(behave) as server:
        samples = serve(server.url, requests(12), Load(3))
    assert most == 3
    for i, sample in enumerate(samples):
        answered = sum(s.finished_s <= sample.scheduled_s for s in samples[:i])
        assert answered >= i - 2, "it was due before a client was free"
    assert all(s.scheduled_s <= s.sent_s <= s.first_token_s <= s.finished_s for s in samples)


def test_each_cold_start_has_other_first_tokens_and_the_same_rest() -> None:
    with odd_server() as server:
        engine = OpenAIEngine(None, ServerSettings(server.url))
        for _ in range(2):
            session = engine.open(CacheSpec(64, salt="one", mode="server", foreign=True), 64)
            for _ in range(2):
                session.clear()
                list(session.serve(requests(1), Load(1)))
        engine.close()
    prompts = [body["prompt"] for body in server.seen[1:]]
    assert len({tuple(p[:SALT_TOKENS]) for p in prompts}) == 4
    assert {tuple(p[SALT_TOKENS:]) for p in prompts} == {tuple(range(32))}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000", "not a URL"),
        ("ftp://host", "not a URL"),
        ("http://", "not a URL"),
        ("http://host:port", "not a URL"),
        (f"http://user:{KEY}@host", "has a login"),
        (f"http://host/v1?key={KEY}", "a query"),
    ],
)
def test_urls_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        server_root(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "openai"], "--url"),
        (["--engine", "simulated", "--url", "http://h"], "--url"),
        (["--engine", "simulated", "--vllm-args", "-x"], "--vllm-args"),
        (["--engine", "vllm", "--vllm-args", "'open"], "--vllm-args"),
        (["--engine", "vllm", "--device-size", "1GiB"], "--vllm-args"),
        (["--engine", "vllm", "--admission", "second-touch"], "--admission"),
        (["--engine", "vllm", "--reuse", "naive"], "off, vllm, prefix"),
        (["--engine", "vllm", "--start-timeout", "0"], "--start-timeout"),
        (["--engine", "openai", "--url", "http://h", "--reuse", "prefix"], "leave --reuse out"),
        (["--engine", "openai", "--url", "http://h", "--disk-size", "1GiB"], "the server's"),
        (["--engine", "openai", "--url", "http://h", "--request-timeout", "-1"], "above 0"),
        (["--engine", "openai", "--url", "http://h", "--base-url", "http://h/v1"], "the same as"),
        (["--engine", "openai", "--url", "http://h", "--base-url", "h"], "not a URL"),
        (["--engine", "openai", "--url", "http://h", "--reuse", "base,server"], "go together"),
        (["--engine", "simulated", "--base-url", "http://h"], "openai would"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], words: str, tmp_path: Path) -> None:
    done = lmcache("bench", *flags, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_default_modes() -> None:
    assert reuse_modes("openai", None) == ["off", "server"]
    assert reuse_modes("openai", None, "http://h") == ["base", "server"]
    for modes in ("server", "off,base,server"):
        with pytest.raises(UserError):
            reuse_modes("openai", modes, "http://h")
    assert reuse_modes("vllm", None) == ["off", "vllm", "prefix"]
    assert reuse_modes("simulated", None) == ["off", "prefix"]


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMCACHE_API_KEY", "sk-\nsecret")
    with pytest.raises(UserError, match="LMCACHE_API_KEY") as caught:
        OpenAIEngine(None, ServerSettings("http://127.0.0.1:9"))
    assert "secret" not in str(caught.value)


def test_nobody_there_no_model_no_tokenizer() -> None:
    with odd_server() as server:
        url = server.url
    with pytest.raises(MissingError, match="start the server"):
        OpenAIEngine(None, ServerSettings(url))
    two = [{"id": "a"}, {"id": "b"}]
    with odd_server(models=two) as server:
        with pytest.raises(UserError, match="one of a, b"):
            OpenAIEngine(None, ServerSettings(server.url))
        with pytest.raises(UserError, match="has no 'c'"):
            OpenAIEngine("c", ServerSettings(server.url))
        OpenAIEngine("b", ServerSettings(server.url)).close()
    with (
        odd_server(models=[], tokenize=False) as server,
        pytest.raises(UserError, match="--model"),
    ):
        OpenAIEngine(None, ServerSettings(server.url))
    with odd_server(tokenize=False) as server, pytest.raises(UserError, match="no tokenizer"):
        OpenAIEngine(None, ServerSettings(server.url))


@pytest.mark.vllm
def test_a_real_vllm(vllm_address: VllmAddress, tmp_path: Path) -> None:
    """It hits what its prefix cache has, and a second run is as cold as the first."""
    hits = []
    for run in range(2):
        flags = ["--concurrency", "2", "--json", "-", "--quiet", "--out", f"run{run}"]
        done = bench(tmp_path, vllm_address.url, "--context-tokens", "400", *flags)
        assert done.returncode == 0, done.stderr
        [cell] = json.loads(done.stdout)["cells"]
        assert cell["failed"] == 0 and cell["n"] == 4
        hits.append(cell["hit_tokens"]["device"])
    [path] = (tmp_path / "run0").glob("*.parquet")
    samples, meta = read_run(path)
    assert all(len(s.output_ids) == len(s.token_s) == 4 for s in samples)
    assert all(list(s.token_s) == sorted(s.token_s) for s in samples)
    assert meta["engine"]["owned_by"] == "vllm"
    assert meta["engine"]["tokenizer"] == "the server's /tokenize"
    # 2 documents, of each a second question: it hits the whole blocks of salt and document, and
    # maybe the words with which both questions start.
    block = vllm_address.block_tokens
    least = 2 * ((400 + SALT_TOKENS) // block * block)
    assert hits[0] == hits[1] and least <= hits[0] < least + 2 * 64
