"""Engine ``vllm``: real servers that it starts, measures and ends."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess, Popen
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.http.engine import REQUEST_NAME, SALT_TOKENS
from lmcache_cli.engines.vllm.engine import HitRecord, VllmEngine
from lmcache_cli.engines.vllm.flags import mode_flags, platform, refuse_cell
from lmcache_cli.engines.vllm.server import LMCacheServer, ServerError, VllmServer, vllm_command
from lmcache_cli.errors import MissingError, UserError
from reports.run_file import read_run
from tests.cache_core.servers import eventually
from tests.lmcache_cli.command_line import heeding_hangups, lmcache, running
from tests.lmcache_cli.pages import commands
from tests.lmcache_cli.vllm_world import ARGS, BLOCK_TOKENS, QUIET, START_S, tiny_model
from tests.processes import interrupted_at_begin
from tests.vllm_process import need_vllm

WORK = ["--documents", "2", "--questions", "2", "--context-tokens", "400", "--output-tokens", "4"]


pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("patient_client")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_vllm()
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def bench(cwd: Path, model: Path, *flags: str, args: str = "") -> CompletedProcess[str]:
    words = ["bench", "long-context", "--engine", "vllm", "--model", str(model), *WORK, *flags]
    return lmcache(*words, "--vllm-args", f"{' '.join(ARGS)} {args}", cwd=cwd, **QUIET)


def servers_of(model: Path) -> list[psutil.Process]:
    """Every process of a group whose server serves this model."""
    leaders = {
        p.pid for p in psutil.process_iter(["cmdline"]) if str(model) in (p.info["cmdline"] or [])
    }
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) in leaders and "bench" not in process.cmdline():
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_all_modes_side_by_side(model: Path, tmp_path: Path) -> None:
    """The first command of the page, with what it leaves to defaults: off, vllm and prefix."""
    assert commands("vllm.md")[0] == ["lmcache", "bench", "long-context", "--engine", "vllm"]
    done = bench(tmp_path, model, "--repeat", "2", "--json", "-")
    assert done.returncode == 0, done.stderr
    off, own, ours = cells = json.loads(done.stdout)["cells"]
    assert [cell["reuse"] for cell in cells] == ["off", "vllm", "prefix"]
    assert all(cell["failed"] == 0 and cell["n"] == 2 * 4 for cell in cells)
    assert sum(off["hit_tokens"].values()) == 0
    # Of each document the second question hits it, in both repeats; questions may start alike.
    least = 4 * ((400 + SALT_TOKENS) // BLOCK_TOKENS * BLOCK_TOKENS)
    assert least <= own["hit_tokens"]["device"] < least + 4 * 64
    least = 4 * ((400 + SALT_TOKENS) // 64 * 64)
    assert least <= ours["hit_tokens"]["cpu"] < least + 4 * 64
    assert ours["hit_tokens"]["device"] == 0
    assert own["identical_outputs"] is True and ours["identical_outputs"] is True
    assert own["chunk_tokens"] is None and own["speedup_ttft"] is not None
    assert "starting vLLM for off (log: runs/vllm-" in done.stderr
    assert len(list((tmp_path / "runs").glob("vllm-*.log"))) == 3
    assert not servers_of(model)
    [path] = (tmp_path / "runs").glob("*.parquet")
    _, meta = read_run(path)
    assert meta["complete"] and meta["engine"]["kv_bytes_per_token"] == 4 * 2 * 2 * 64 * 4


def test_a_server_that_is_killed_gives_failed_samples(model: Path, tmp_path: Path) -> None:
    """The second command of the page, with more to do than its server lives to see."""
    words = commands("vllm.md")[1][1:]
    place = words.index("--vllm-args") + 1
    words[place] += " --enforce-eager"
    flags = [*WORK, "--questions", "200", "--model", str(model)]
    try:
        with running(*words, *flags, cwd=tmp_path, **QUIET) as process:
            [log] = _logs(tmp_path, process)

            def serves() -> bool:
                return log.read_text().count("POST /v1/completions") > 10

            eventually(lambda: serves() or process.poll() is not None, START_S)
            assert process.poll() is None, process.communicate()[1]
            for server in servers_of(model):
                server.kill()
            _, err = process.communicate(timeout=START_S)
    finally:
        for server in servers_of(model):
            server.kill()
    assert process.returncode == 0, err
    assert "vllm serve ended by signal 9" in err and str(log.name) in err
    assert "Traceback" not in err
    [path] = (tmp_path / "runs").glob("*.parquet")
    samples, _ = read_run(path)
    assert len(samples) == 400
    failed = [s for s in samples if s.error]
    assert 0 < len(failed) < 400 and "not sent" in str(failed[-1].error)


@pytest.mark.parametrize("stop", ["INT", "HUP"])
def test_interruption_leaves_no_server(
    stop: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, or a terminal that closes, while the server starts; its child heeds no SIGTERM."""
    child = f"trap '' TERM; echo $$ > {tmp_path}/child; exec sleep 300"
    vllm = tmp_path / "vllm"
    vllm.write_text(
        f'#!/bin/sh\nsh -c "{child}" &\n'.replace("$$", "\\$\\$")
        + f"until [ -s {tmp_path}/child ]; do :; done\nkill -{stop} $PPID\nwait\n"
    )
    vllm.chmod(0o755)
    monkeypatch.setattr("lmcache_cli.engines.vllm.engine.vllm_command", lambda: str(vllm))
    with heeding_hangups():
        done = bench(tmp_path, model, "--reuse", "vllm")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    pid = int((tmp_path / "child").read_text())
    eventually(lambda: not psutil.pid_exists(pid))
    assert not servers_of(model)


def test_a_server_serves_when_the_others_are_at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of vLLM's polls for a second after its last step."""
    now, slept = [50.0], list[float]()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", slept.append)
    engine: Any = object.__new__(VllmEngine)
    one, other = SimpleNamespace(), SimpleNamespace()
    engine._up, engine._last = [one, other], (None, 0.0)
    engine.bring_up(one)
    engine.served(one)
    engine.bring_up(one)
    assert not any(slept), "its own second is its own"
    now[0] += 0.25
    engine.bring_up(other)
    assert slept[-1] == 0.75
    now[0] += 1.0
    engine.rest(other)
    assert slept[-1] == 0.0


def test_an_interruption_while_the_process_begins_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted_at_begin(monkeypatch, "lmcache_cli.engines.vllm.server.subprocess.Popen"):
        VllmServer(["sleep", "300"], {}, tmp_path / "log").start(60, print)


def test_a_start_that_fails_names_the_reason_and_the_log(model: Path, tmp_path: Path) -> None:
    done = bench(tmp_path, model, "--reuse", "off", args="--max-num-seqs none")
    assert done.returncode == 1, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "max-num-seqs" in line and "its log is runs/vllm-" in line
    assert "Traceback" not in done.stderr and not servers_of(model)


def test_a_start_that_takes_too_long_is_given_up(model: Path, tmp_path: Path) -> None:
    done = bench(tmp_path, model, "--reuse", "off", "--start-timeout", "0.5")
    assert done.returncode == 1 and "--start-timeout" in done.stderr
    assert not servers_of(model)


def test_a_worker_that_outlives_its_server_is_ended(tmp_path: Path) -> None:
    """The server here ends at once, and leaves a child that heeds no SIGTERM."""
    child = f"trap '' TERM; echo $$ > {tmp_path}/child; exec sleep 300"
    leader = f'sh -c "$CHILD" & until [ -s {tmp_path}/child ]; do :; done; echo "Error: no"; exit 3'
    server = VllmServer(["sh", "-c", leader], {"CHILD": child}, tmp_path / "log")
    with pytest.raises(ServerError, match=r"exit code 3 \(Error: no\); its log is"):
        server.start(60, print)
    pid = int((tmp_path / "child").read_text())
    eventually(lambda: not psutil.pid_exists(pid))


def test_a_missing_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MissingError, match="pip install vllm"):
        vllm_command()


def test_flags_of_each_mode(tmp_path: Path) -> None:
    off, _ = mode_flags(CacheSpec(64, mode="off"), tmp_path)
    own, _ = mode_flags(CacheSpec(64, mode="vllm", foreign=True), tmp_path)
    assert off == ["--no-enable-prefix-caching"] and own == ["--enable-prefix-caching"]
    offload, _ = mode_flags(CacheSpec(64, {"cpu": 1 << 30}, mode="offload", foreign=True), tmp_path)
    config = json.loads(offload[-1])
    assert config["kv_connector"] == "OffloadingConnector"
    assert config["kv_connector_extra_config"] == {"cpu_bytes_to_use": 1 << 30}
    there = CacheSpec(64, {"cpu": 1 << 30}, mode="offload", foreign=True)
    with pytest.raises(UserError, match="needs a GPU"):
        refuse_cell(there, [], cpu=True)
    refuse_cell(there, [], cpu=False)
    if find_spec("lmcache") is None:
        with pytest.raises(MissingError, match="pip install lmcache"):
            mode_flags(CacheSpec(64, {"cpu": 1 << 30}, mode="lmcache", foreign=True), tmp_path)


def test_where_lmcaches_server_is(tmp_path: Path) -> None:
    spec = CacheSpec(64, {"cpu": 3 << 29}, mode="lmcache", foreign=True)
    server = LMCacheServer(spec, {}, tmp_path / "log")
    flags = server.address()
    port = int(flags[flags.index("--port") + 1])
    assert server.url == f"http://127.0.0.1:{flags[flags.index('--http-port') + 1]}"
    config = json.loads(server.connector()[-1])
    assert (config["kv_connector"], config["kv_role"]) == ("LMCacheMPConnector", "kv_both")
    assert config["kv_connector_extra_config"]["lmcache.mp.port"] == port


def test_lmcaches_chunks_are_whole_blocks() -> None:
    spec = CacheSpec(64, {"cpu": 1 << 30}, mode="lmcache", foreign=True)
    with pytest.raises(UserError, match=r"block of 128 tokens.*--chunk-tokens 128"):
        refuse_cell(spec, [], cpu=True)
    with pytest.raises(UserError, match=r"block of 48 tokens"):
        refuse_cell(spec, ["--block-size=48"], cpu=False)
    refuse_cell(spec, ["--block-size", "32"], cpu=True)
    refuse_cell(spec, [], cpu=False)
    refuse_cell(CacheSpec(64, {"cpu": 1 << 30}), [], cpu=True)


def test_shared_memory_of_the_group_goes_with_the_server(tmp_path: Path) -> None:
    """LMCache names its segments so; the other is of a group that is not ours to clean."""
    child = Popen(["sleep", "60"], start_new_session=True)
    names = [f"/dev/shm/lmcache_kv_{pid}_test" for pid in (child.pid, os.getpid())]
    ours, other = map(Path, names)
    server = LMCacheServer(
        CacheSpec(64, {"cpu": 1}, mode="lmcache", foreign=True), {}, tmp_path / "log"
    )
    try:
        ours.touch()
        other.touch()
        server.note_segments(child.pid)
        server.stop()
        assert not ours.exists() and other.exists()
    finally:
        child.kill()
        child.wait()
        ours.unlink(missing_ok=True)
        other.unlink(missing_ok=True)


def test_lmcache_hits_and_its_server_ends(model: Path, tmp_path: Path) -> None:
    if find_spec("lmcache") is None:
        pytest.skip("lmcache is not installed (docs/engines/vllm.md says how)")
    flags = ["--reuse", "off,lmcache", "--cpu-size", "256MiB", "--json", "-"]
    done = bench(tmp_path, model, *flags)
    assert done.returncode == 0, done.stderr
    off, peer = json.loads(done.stdout)["cells"]
    assert off["failed"] == peer["failed"] == 0 and off["n"] == peer["n"] == 4
    # Of each document the second question hits it, in whole chunks; questions may start alike.
    least = 2 * ((400 + SALT_TOKENS) // 64 * 64)
    assert least <= peer["hit_tokens"]["cpu"] < least + 2 * 64
    assert peer["identical_outputs"] is True
    [log] = (tmp_path / "runs").glob("vllm-*-lmcache-cpu.cache.log")
    pids = {int(p) for p in re.findall(r"Started server process \[(\d+)\]", log.read_text())}
    assert len(pids) == 1 and not any(map(psutil.pid_exists, pids))
    assert not servers_of(model)


def test_flags_of_our_connector(tmp_path: Path) -> None:
    spec = CacheSpec(32, {"cpu": 5, "disk": 7}, salt="s", folder=tmp_path)
    flags, _ = mode_flags(spec, tmp_path / "t")
    assert flags[0] == "--no-enable-prefix-caching"
    config = json.loads(flags[-1])
    assert config["kv_load_failure_policy"] == "recompute"
    extra = config["kv_connector_extra_config"]
    assert (extra["chunk_tokens"], extra["cpu_size"], extra["disk_size"]) == (32, 5, 7)
    assert extra["trace"] == str(tmp_path / "t") and extra["disk_path"] == str(tmp_path)


def test_blend_in_our_connector_needs_a_certificate(tmp_path: Path) -> None:
    def extra(**more: Any) -> dict[str, Any]:
        settings = BlendSettings(**more)
        spec = CacheSpec(32, {"cpu": 5}, mode="blend", blend=settings)
        flags, _ = mode_flags(spec, tmp_path / "t")
        found: dict[str, Any] = json.loads(flags[-1])["kv_connector_extra_config"]
        return found

    assert extra(certificate=tmp_path / "p")["blend_certificate"] == str(tmp_path / "p")
    assert "blend_unverified" not in extra(certificate=tmp_path / "p")
    assert extra()["blend_unverified"] is True


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    flags, env = platform(cpu=True, dtype="auto")
    assert env["VLLM_CPU_KVCACHE_SPACE"] == "7" and flags == ["--dtype", "float32"]
    flags, env = platform(cpu=False, dtype="bfloat16")
    assert "VLLM_CPU_KVCACHE_SPACE" not in env and flags == ["--dtype", "bfloat16"]


def test_hits_are_read_as_they_are_written(tmp_path: Path) -> None:
    record = HitRecord(tmp_path / "t.jsonl")
    one, ten = "lmcache-0123456789ab-1", "lmcache-0123456789ab-10"
    assert REQUEST_NAME.fullmatch(ten)
    assert record.find(one, 0) is None
    with record.path.open("w") as file:
        file.write('{"schema": "lmcache.trace/1"}\n')
        file.write(json.dumps({"id": f"cmpl-{ten}-0-deadbeef", "hits": {"cpu": 64}}) + "\n")
        file.write(json.dumps({"id": f"cmpl-{one}-0-deadbeef", "hits": {}})[:20])
        file.flush()
        assert record.find(one, 0.05) is None
        assert record.find(ten, 0.05) == {"cpu": 64}
        file.write(json.dumps({"id": f"cmpl-{one}-0-deadbeef", "hits": {}})[20:] + "\n")
    assert record.find(one, 5) == {}


def _logs(folder: Path, process: Popen[str]) -> list[Path]:
    def there() -> bool:
        assert process.poll() is None, process.communicate()
        return bool(list((folder / "runs").glob("vllm-*.log")))

    eventually(there, START_S)
    return list((folder / "runs").glob("vllm-*.log"))
