"""``bench`` on disk and remote tiers with a real (small, random-weight) model."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.cache_core.servers import RedisProcess, eventually
from tests.lmcache_cli.command_line import lmcache, lmcache_process, running
from tests.lmcache_cli.small_model import save_model

pytestmark = pytest.mark.engine

FLAGS = ["--context-tokens", "160", "--documents", "3", "--questions", "2", "--output-tokens", "4"]
FLAGS += ["--chunk-tokens", "16", "--question-tokens", "16", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model"), "llama"))


def command(model: str, *flags: str) -> list[str]:
    return ["bench", "long-context", "--model", model, *FLAGS, *flags]


def bench(model: str, cwd: Path, *flags: str) -> dict[str, Any]:
    done = lmcache(*command(model, *flags, "--json", "-"), cwd=cwd)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_disk_below_a_cpu_tier_that_is_too_small(model: str, tmp_path: Path) -> None:
    # 512 bytes of KV a token: a document is 80 KiB; the cpu tier holds a tenth of the working set.
    document = bench(model, tmp_path, "--cpu-size", "24KiB", "--disk-size", "16MiB")
    _, cell = document["cells"]
    assert not document["warnings"]
    assert cell["hit_tokens"]["disk"] == 3 * 160
    assert cell["identical_outputs"] is True
    assert cell["tier_work"]["disk"]["read_bytes"] > 0
    assert cell["tier_work"]["disk"]["failed_chunks"] == 0
    left = [p.name for p in (tmp_path / "runs").iterdir() if p.suffix != ".parquet"]
    assert left == [], "a disk tier that nobody named is removed"


def test_a_restart_keeps_the_hits_of_a_named_cache(model: str, tmp_path: Path) -> None:
    flags = ["--cpu-size", "0", "--disk-size", "16MiB", "--disk-path", str(tmp_path / "kv")]
    first = bench(model, tmp_path, *flags, "--cache-name", "mine")["cells"][1]
    process = lmcache_process(
        *command(model, *flags, "--cache-name", "mine", "--json", "-"), cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    again = json.loads(process.stdout)["cells"][1]
    other = bench(model, tmp_path, *flags, "--cache-name", "yours")["cells"][1]
    assert first["hit_tokens"]["disk"] == other["hit_tokens"]["disk"] == 3 * 160
    # Every request of the second process hits, also each document's first question.
    assert again["hit_tokens"]["disk"] == 6 * 160
    assert again["identical_outputs"] is True and again["state"] == "lasting"


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--disk-size", "1MiB", "--disk-path", "/proc/kv"], 2, "/proc/kv"),
        (["--disk-size", "9KiB"], 2, "disk"),
        (["--remote", "redis://127.0.0.1:1?timeout=0.5"], 4, "--remote"),
        (["--remote", "carrier-pigeon"], 2, "carrier-pigeon"),
        (["--remote", "ftp://somewhere"], 2, "redis://host:port"),
        (["--cache-name", "x"], 2, "needs a tier that lasts"),
        (["--admission", "bytes-per-day"], 2, "--disk-writes-per-day"),
    ],
)
def test_bad_tiers_are_one_clear_line(
    flags: list[str], code: int, words: str, model: str, tmp_path: Path
) -> None:
    done = lmcache(*command(model, *flags), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["--disk-size", "1MiB", "--disk-path", "/proc/kv"],
        ["--remote", "carrier-pigeon"],
        ["--remote", "redis://127.0.0.1:1?timeout=0.5"],
    ],
)
def test_places_are_looked_at_before_a_model_is_loaded(flags: list[str], tmp_path: Path) -> None:
    done = lmcache(*command("no/such-model", *flags), cwd=tmp_path)
    assert done.returncode in (2, 4) and flags[-2] in done.stderr
    assert "no/such-model" not in done.stderr


def commands_served(port: int) -> int:
    """By a Redis server, this question included."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"INFO stats\r\n")
        reply = b""
        while b"total_commands_processed:" not in reply or not reply.endswith(b"\r\n"):
            reply += connection.recv(4096)
    return int(reply.split(b"total_commands_processed:")[1].split(b"\r\n")[0])


def test_two_processes_share_a_remote_and_survive_its_death(model: str, tmp_path: Path) -> None:
    server = RedisProcess(tmp_path)
    try:
        url = f"redis://127.0.0.1:{server.port}?timeout=1&pause=0.2"
        flags = ["--cpu-size", "24KiB", "--remote", url, "--cache-name", "shared"]
        first = bench(model, tmp_path, *flags)["cells"][1]
        second = bench(model, tmp_path, *flags)["cells"][1]
        assert second["hit_tokens"]["remote"] > first["hit_tokens"]["remote"]
        assert second["identical_outputs"] is True
        before = commands_served(server.port)
        more = ["--repeat", "20", "--json", "out.json"]
        with running(*command(model, *flags, *more), cwd=tmp_path) as process:
            # Past what opening takes; to ask is a command too.
            def served_some() -> bool:
                nonlocal before
                assert process.poll() is None
                before += 1
                return commands_served(server.port) >= before + 60

            eventually(served_some, 600)
            server.kill()
            _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    finally:
        server.kill()
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert cells[1]["failed"] == 0 and cells[1]["n"] == 20 * 6
    assert cells[1]["identical_outputs"] is True


@pytest.mark.parametrize("codec", ["fp8", "int8"])
def test_a_codec_keeps_more_in_as_many_bytes(codec: str, model: str, tmp_path: Path) -> None:
    """A cpu tier of half the working set in float32 holds all of it; another codec's chunks, in
    the same folder, are none of this one's."""
    # 512 bytes of KV a token in float32, so 240 KiB for three documents.
    flags = ["--cpu-size", "120KiB", "--disk-size", "0"]
    plain = bench(model, tmp_path, *flags)["cells"][1]
    coded = bench(model, tmp_path, *flags, "--codec", codec)["cells"][1]
    assert (plain["codec"], coded["codec"]) == (None, codec)
    assert coded["hit_tokens"]["cpu"] == 3 * 160
    assert plain["tier_work"]["cpu"]["evicted_chunks"] > 0
    assert coded["tier_work"]["cpu"]["evicted_chunks"] == 0
    assert coded["tier_work"]["cpu"]["failed_chunks"] == 0


def test_codecs_share_no_chunk(model: str, tmp_path: Path) -> None:
    flags = ["--cpu-size", "0", "--disk-size", "16MiB", "--disk-path", str(tmp_path / "kv")]
    flags += ["--cache-name", "mine", "--codec"]
    again = [bench(model, tmp_path, *flags, name)["cells"][1] for name in ("fp8", "fp8", "int8")]
    hits = [cell["hit_tokens"]["disk"] for cell in again]
    assert hits == [3 * 160, 6 * 160, 3 * 160]
