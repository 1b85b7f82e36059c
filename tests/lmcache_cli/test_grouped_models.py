"""Models whose layers keep different things: the transformers engine, its probe, and what follows
from them without it."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

from cache_core.tiers import MemoryTier
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.simulated import SimulatedEngine
from lmcache_cli.engines.start import start_engine
from reports.sample import Sample
from tests.benchmarks.test_random_model import MADE
from tests.lmcache_cli.command_line import lmcache
from workloads import Request

pytestmark = pytest.mark.engine

VERIFIED = tuple(kind for kind in MADE.KINDS if kind not in ("llama", "qwen3-moe"))


@pytest.mark.parametrize("kind", VERIFIED)
def test_hits_are_verified_through_the_command(kind: str, tmp_path: Path) -> None:
    MADE.random_model(kind, tmp_path / "model")
    done = lmcache(
        *("verify", "hits", "--model", tmp_path / "model", "--context-tokens", "600"),
        *("--chunk-tokens", "32", "--output-tokens", "4", "--json", "-"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert {check["tier"] for check in checks} == {"device", "cpu", "disk"}
    assert all(check["hit_tokens"] >= 600 - 32 - 32 for check in checks)


def test_a_wrong_window_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MADE.random_model("gpt-oss", tmp_path / "model")
    right = MemoryTier.write

    def wrong(self: MemoryTier, keys: list[bytes], place: object) -> list[bool]:
        done = right(self, keys, place)  # type: ignore[arg-type]
        slots = [self._slots[key] for key in keys]
        first, last = (int(self._addresses[slot]) for slot in (slots[0], slots[-1]))
        ctypes.memmove(last, first, self._chunk_bytes)
        return done

    monkeypatch.setattr(MemoryTier, "write", wrong)
    done = lmcache(
        *("verify", "hits", "--model", tmp_path / "model", "--context-tokens", "200"),
        *("--chunk-tokens", "32", "--output-tokens", "4"),
        cwd=tmp_path,
    )
    assert done.returncode == 1 and "FAIL" in done.stdout


def request(ids: list[int], number: int = 0) -> Request:
    return Request(str(number), "", 0.0, np.array(ids, np.int32), (), 2)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid") / "model"
    MADE.random_model("qwen3-next", folder)
    return folder


def test_the_simulator_hits_what_the_engine_hits(hybrid: Path) -> None:
    """Sessions, branches and small tiers: the same hits, bytes loaded and stored."""
    engine = start_engine("transformers", str(hybrid), "cpu", "auto")
    simulated = SimulatedEngine(kept=engine.kept_layers())  # type: ignore[attr-defined]
    rng = np.random.default_rng(1)
    base = rng.integers(2, 8000, 80).tolist()
    prompts = [base + rng.integers(2, 8000, 40).tolist() for _ in range(4)]
    prompts += [prompts[0] + [7] * 50, prompts[3], base[:50], prompts[0] + [7] * 60]
    requests = [request(ids, number) for number, ids in enumerate(prompts)]
    size = engine.layout(16).chunk_bytes  # type: ignore[attr-defined]
    hits = []
    for room in (60, 400):
        spec = CacheSpec(16, {"cpu": room * size}, salt="same")
        seen = []
        for bench in (engine, simulated):
            session = bench.open(spec, 300)
            try:
                samples: list[Sample] = []
                for each in requests:
                    samples += session.serve([each], Load())
                    session.settle()
            finally:
                session.close()
            seen.append([(s.hit_tokens, s.bytes_loaded, s.bytes_stored) for s in samples])
        assert seen[0] == seen[1]
        hits.append([sum(hit.values()) for hit, *_ in seen[0]])
    engine.close()
    # The first that branches can't go on from where it does; the next ones can.
    assert hits[1][:5] == [0, 0, 80, 80, 112] and sum(hits[0]) < sum(hits[1])


@pytest.mark.parametrize(
    ("model", "loaded", "groups"),
    [
        # Of 2,048 tokens: 24,576 bytes each, and a window of two chunks as many again.
        ("gpt-oss-20b", (2048 + 128) * 24_576, 2),
        ("deepseek-v3.2", 2048 * 78_324, 1),
        ("llama-3.1-8b", 2048 * 131_072, 0),
    ],
)
def test_a_model_of_the_catalogue_keeps_what_its_layers_keep(
    model: str, loaded: int, groups: int
) -> None:
    engine = start_engine("simulated", model, "cpu", "auto", hardware="h100")
    assert isinstance(engine, SimulatedEngine) and len(engine.groups(64)) == groups
    # A link of 63 GB/s; a memory of 3,350 that is read and written.
    for tier, rate in (("cpu", 63e9), ("device", 1675e9)):
        session = engine.open(CacheSpec(64, {tier: 1 << 30}, salt="x"), 4096)
        again = request([3] * 2049)
        _, hit = (sample for _ in range(2) for sample in session.serve([again], Load()))
        assert hit.hit_tokens == {tier: 2048} and hit.bytes_loaded == loaded
        assert hit.load_s == pytest.approx(loaded / rate)
        # A decode step reads the KV before it too.
        assert engine.cost.step_s(4000) > engine.cost.step_s(0)
        session.close()


def test_a_probe_is_simulated_and_tuned(hybrid: Path, tmp_path: Path) -> None:
    probed = lmcache(
        *("probe", "--model", hybrid, "--context-tokens", "128", "--repeat", "3"),
        *("--disk-size", "64MiB", "--memory-size", "64MiB", "--disk-path", tmp_path / "disk"),
        *("--out", tmp_path / "runs", "--json", tmp_path / "probe.json"),
        cwd=tmp_path,
    )
    assert probed.returncode == 0, probed.stderr
    kept = json.loads((tmp_path / "probe.json").read_text())["engine"]["kept"]
    assert [layer["keeps"] for layer in kept] == ["state"] * 3 + ["all"]
    ran = lmcache(
        *("bench", "chat", "--engine", "simulated", "--probe", tmp_path / "probe.json"),
        *("--sessions", "3", "--cpu-size", "64MiB", "--json", "-"),
        *("--out", tmp_path / "runs"),
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    [cell] = [cell for cell in json.loads(ran.stdout)["cells"] if cell["tiers"]]
    assert cell["hit_rate"] > 0
    tuned = lmcache(
        *("tune", "chat", "--probe", tmp_path / "probe.json", "--sessions", "4"),
        *("--chunk-tokens", "32,64", "--json", "-"),
        cwd=tmp_path,
    )
    assert tuned.returncode == 0, tuned.stderr
    assert "the Ledger is replayed" in tuned.stdout
