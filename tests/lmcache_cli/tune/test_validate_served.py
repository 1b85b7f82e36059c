"""What is predicted for vLLM's servers, its own cache first, against servers whose costs are known;
of the real one see ``benchmarks/tune_validation.py --engine vllm``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_core.layout import KVLayout
from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load, sample_of
from lmcache_cli.engines.http.engine import SALT_TOKENS, Salts
from lmcache_cli.engines.measured_costs import TierCost, probed_engine
from lmcache_cli.engines.simulated import encode_words
from lmcache_cli.engines.vllm.engine import VllmEngine
from lmcache_cli.engines.vllm.flags import OWN_BLOCK_TOKENS, mode_flags, own_cache_flags
from lmcache_cli.errors import CellError, UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.probe.media import ProbeError
from lmcache_cli.probe.served import ServedProbe
from lmcache_cli.tune.candidates import TierConfiguration
from lmcache_cli.tune.cost import probed_cost
from lmcache_cli.tune.run import run_tune
from lmcache_cli.tune.source import TuneOptions, request_arrays
from lmcache_cli.tune.validate import Tolerance, Validation, neighbours
from reports.sample import Sample
from tests.lmcache_cli.tune.test_validate import point
from workloads import Request


def test_a_server_may_be_a_point_off_in_each_tier_and_in_all() -> None:
    served = Tolerance(hits=0.01)

    def verdict(predicted: dict[str, int], found: dict[str, int], **changes: Any) -> str:
        rates = {"predicted_rate": sum(predicted.values()) / 1000}
        rates["measured_rate"] = sum(found.values()) / 1000
        hits = {"predicted_hits": predicted, "measured_hits": found, "tokens": 1000, "wrong": 1}
        made = point(**hits, **rates, **changes)
        return Validation((made,), served, "vllm", "m", 1.0).verdict

    assert verdict({"device": 300, "cpu": 200}, {"device": 310, "cpu": 190}) == "confirmed"
    assert verdict({"device": 300, "cpu": 200}, {"device": 311, "cpu": 189}) == "refuted"
    assert verdict({"device": 300, "cpu": 200}, {"device": 306, "cpu": 206}) == "refuted"
    assert verdict({"device": 300}, {"device": 300}, failed=1) == "refuted"


def test_the_device_has_no_neighbours() -> None:
    stack = TierConfiguration((("device", 7), ("cpu", 10)), 32)
    assert [s.sizes for _, s in neighbours(stack)] == [
        {"device": 7, "cpu": 5},
        {"device": 7, "cpu": 10},
        {"device": 7, "cpu": 20},
    ]
    alone = TierConfiguration((("device", 7),), 32)
    assert neighbours(alone) == [("recommended", alone)]


def test_arrays_are_of_what_a_salted_server_sees() -> None:
    def request(ids: list[int]) -> Request:
        return Request("r", "s", 0.0, np.array(ids, np.int32), (), 1)

    # With two tokens in front, what is shared ends within the second chunk of four.
    both = [request([1, *range(10, 17)]), request([1, *range(10, 15), 98, 99])]
    plain, salted = request_arrays(both, 4), request_arrays(both, 4, 2, bos=1)
    assert plain.chunk_ids.tolist() == [0, 1, 0, 2] and plain.input_tokens.tolist() == [8, 8]
    assert salted.chunk_ids.tolist() == [0, 1, 0, 1] and salted.input_tokens.tolist() == [10, 10]
    # They stand where a session puts them: a chunk of one token tells where.
    salts = Salts(lambda text: [7] * 20, 1, "cold")
    assert salts.prompt([1, 5])[: SALT_TOKENS + 1] == [1, *[7] * SALT_TOKENS]
    first = request_arrays([request([1, 5]), request([2, 5])], 1, SALT_TOKENS, bos=1)
    assert first.chunk_ids[SALT_TOKENS + 1] == SALT_TOKENS + 1
    assert set(first.chunk_ids[: SALT_TOKENS + 2]).isdisjoint(first.chunk_ids[SALT_TOKENS + 2 :])


def test_a_tier_device_is_vllms_own_cache_of_that_size(tmp_path: Path) -> None:
    spec = CacheSpec(64, {"device": 10 * 3 * OWN_BLOCK_TOKENS + 5, "cpu": 1 << 20})
    flags, _ = mode_flags(spec, tmp_path)
    assert "--no-enable-prefix-caching" not in flags and "--kv-transfer-config" in flags
    own = own_cache_flags(spec, 10, 3 * OWN_BLOCK_TOKENS)
    # Three blocks of tokens, vLLM's null block, and one for what is behind the last full one.
    assert own[own.index("--num-gpu-blocks-override") + 1] == "5"
    assert "--enable-prefix-caching" in own
    assert own[own.index("--max-model-len") + 1] == str(3 * OWN_BLOCK_TOKENS)
    with pytest.raises(CellError, match=r"--device-kv: has room for 96 tokens, .* up to 97"):
        own_cache_flags(spec, 10, 3 * OWN_BLOCK_TOKENS + 1)
    assert not own_cache_flags(CacheSpec(64, {"cpu": 1 << 20}), 10, 1 << 20)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"probe": Path("p.json")}, "--probe: --engine vllm measures its servers itself"),
        ({"chunk_tokens": "64,128"}, "--chunk-tokens: with --engine vllm it is one length"),
        ({"chunk_tokens": "48"}, "a multiple of its block of 32"),
        ({"vllm_args": "--dtype 'x"}, "--vllm-args: No closing quotation"),
        ({"validate": False, "vllm_args": "-x"}, "--vllm-args: only --validate --engine vllm"),
        ({"engine": "transformers", "device_kv": "1GiB"}, "--device-kv: with --probe or"),
        ({"hardware": "h100"}, "--hardware: with --probe or --validate"),
    ],
)
def test_flags_of_a_served_validation(changes: Any, what: str) -> None:
    given: dict[str, Any] = {"source": "rag", "engine": "vllm", "validate": True}
    TuneOptions(**given, device_kv="1GiB", no_prefix_caching=True).check()
    with pytest.raises(UserError, match=what):
        TuneOptions(**given | changes).check()


def test_a_servers_tolerances_are_wider() -> None:
    served = TuneOptions(source="rag", engine="vllm", validate=True)
    assert served.tolerances() == (0.2, 0.3) and served.chunks_made() == [64]
    assert replace(served, tolerance="0.1").tolerances() == (0.1, 0.1)
    assert TuneOptions(source="rag", validate=True).tolerances() == (0.15, 0.25)


PREFILL, LOAD, STEP = PrefillCost(0.02, 5e-5, 2e-7), TierCost(1e6, 0.0, 0.003), 0.004


class Blocks:
    """An LRU of blocks of a prompt's prefixes, heads last."""

    def __init__(self, room: int, tokens: int) -> None:
        self.room, self.tokens, self.held = room, tokens, dict[tuple[int, ...], None]()

    def names(self, ids: list[int]) -> list[tuple[int, ...]]:
        return [tuple(ids[: end + self.tokens]) for end in range(0, len(ids), self.tokens)]

    def found(self, ids: list[int]) -> int:
        count = 0
        for name in self.names(ids)[: (len(ids) - 1) // self.tokens]:
            if name not in self.held:
                break
            count += self.tokens
        return count

    def use(self, ids: list[int]) -> None:
        for name in reversed(self.names(ids)[: len(ids) // self.tokens]):
            self.held.pop(name, None)
            self.held[name] = None
        while len(self.held) > self.room:
            del self.held[next(iter(self.held))]


class FakeServer:
    """A server whose every cost is known: its own cache, and one tier below it."""

    longest = 1 << 30

    def __init__(self, spec: CacheSpec, token_bytes: int) -> None:
        self.tier = "disk" if "disk" in spec.tiers else "cpu"
        self.own = Blocks(spec.tiers["device"] // token_bytes // 32, 32)
        self.slower = 1.0
        chunk = spec.chunk_tokens
        self.below = Blocks(spec.tiers[self.tier] // token_bytes // chunk, chunk)
        self.token_bytes, self.closed = token_bytes, False

    def complete(self, ids: list[int], count: int) -> tuple[list[float], dict[str, int]]:
        assert len(ids) + count <= self.longest, "longer than --max-model-len"
        own = self.own.found(ids)
        loaded = max(0, self.below.found(ids) - own)
        self.own.use(ids)
        self.below.use(ids)
        first = PREFILL.seconds(len(ids) - own - loaded, own + loaded)
        first += LOAD.seconds(1, loaded * self.token_bytes) if loaded else 0.0
        hits = {"device": own, self.tier: loaded}
        return [self.slower * (first + STEP * place) for place in range(count)], hits

    def close(self) -> None:
        self.closed = True


class FakeEngine:
    model = "fake"

    def __init__(self) -> None:
        self.opened: list[FakeServer] = []
        self.config = type("Config", (), {"vocab_size": 1000})

    def token_bytes(self) -> int:
        return 8

    def layout(self, tokens: int) -> KVLayout:
        return KVLayout(1, 1, 1, "float32", tokens)

    def facts(self) -> dict[str, object]:
        return {"engine": "vllm", "model": self.model, "device": "cpu", "dtype": "float32"}

    def open(self, spec: CacheSpec, longest: int) -> FakeServer:
        self.opened.append(FakeServer(spec, 8))
        self.opened[-1].longest = longest
        return self.opened[-1]

    def bring_up(self, session: Any) -> None:
        assert not session.closed


def test_the_costs_of_a_server_are_found_by_requests(tmp_path: Path) -> None:
    engine: Any = FakeEngine()
    probe = ServedProbe(engine, tmp_path, 700, 64, ("cpu", "disk"))
    found = probe.measure(2, "fake")
    assert (found.prefill.a, found.prefill.b, found.prefill.c) == pytest.approx(
        (PREFILL.a, PREFILL.b, PREFILL.c)
    )
    assert found.decode_s + 700 * found.decode_token_s == pytest.approx(STEP)
    for tier in ("cpu", "disk"):
        assert found.tiers[tier].seconds(3, 4000) == pytest.approx(LOAD.seconds(3, 4000))
    assert probe.prefill_s(300) == pytest.approx(PREFILL.seconds(300))
    kept = probed_cost(probed_engine(json.loads(json.dumps(asdict(found))), "test"))
    assert kept.serving == "batches"
    # The first one stays: it tells how fast the machine is.
    assert [server.closed for server in engine.opened] == [False, True]
    probe.close()
    assert all(server.closed for server in engine.opened) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("chunk", [64, 96, 256])
def test_loads_of_short_prompts_are_of_what_a_server_takes(chunk: int, tmp_path: Path) -> None:
    engine: Any = FakeEngine()
    probe = ServedProbe(engine, tmp_path, 40, chunk)
    assert probe.measure(1, "fake").tiers["cpu"].bytes_per_s > 0
    probe.close()


def test_a_server_that_does_not_find_what_it_must_is_no_measure(tmp_path: Path) -> None:
    engine: Any = FakeEngine()
    probe = ServedProbe(engine, tmp_path, 700, 64)
    engine.opened[0].own.room = 4
    with pytest.raises(ProbeError, match=r"was to find .'device': "):
        probe.measure(1, "fake")
    engine.opened[0].own.room = 1000  # what is to be loaded never leaves it
    with pytest.raises(ProbeError, match="tokens in cpu a request found"):
        probe.measure(1, "fake")


class ServingFake(FakeServer):
    """One that serves the bench too, each cold start under other salt tokens, on a virtual
    clock."""

    spec: CacheSpec
    engine: FakeVllm
    salts = 0

    def complete(self, ids: list[int], count: int) -> tuple[list[float], dict[str, int]]:
        assert self in self.engine.up, "the server is not up"
        return super().complete(ids, count)

    def serve(self, requests: list[Request], load: Load) -> Iterator[Sample]:
        assert len(requests) > 1, "servers took turns request by request"
        for request in requests:
            ids = [10_000 + self.salts] * SALT_TOKENS + request.token_ids.tolist()
            seconds, hits = self.complete(ids, request.max_tokens)
            made = sample_of(request, 0.0, 0.0, seconds, hit_tokens=hits)
            yield replace(made, prompt_tokens=len(ids))

    def clear(self) -> None:
        self.salts += 1

    def ready(self) -> None:
        self.engine.bring_up(self)

    def settle(self) -> None: ...

    def held_chunks(self) -> int:
        return 0

    def capacities(self) -> dict[str, int]:
        return {}

    counters = troubles = capacities

    def chunk_bytes(self) -> int:
        return 8 * 64


class FakeVllm(FakeEngine, VllmEngine):
    """What ``lmcache tune`` takes for vLLM's engine."""

    name, model, max_context, bos, interleaves, cpu = "vllm", "fake", 8192, None, True, True

    def __init__(self, slower: float = 1.0) -> None:
        super().__init__()
        self.slower, self.environment = slower, {"VLLM_CPU_KVCACHE_SPACE": "1"}
        self.encode = encode_words
        self.up: set[Any] = set()

    def bring_up(self, session: Any) -> None:
        assert not session.closed
        self.up = {session, *(self.up if self.interleaves else ())}

    def open(self, spec: CacheSpec, max_tokens: int) -> Any:
        mine = ServingFake(replace(spec, tiers={"cpu": 0, **spec.tiers}), 8)
        mine.engine = self
        mine.slower = self.slower if "validate" in spec.salt else 1.0
        self.opened.append(mine)
        return mine

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        return {}

    def warm_up(self, tokens: int) -> None: ...

    def now(self) -> float:
        return 0.0

    def close(self) -> None: ...


def served(folder: Path, **changes: Any) -> TuneOptions:
    bench = BenchOptions(engine="simulated", context_tokens="400", documents=6, questions=3)
    return TuneOptions(
        source="long-context",
        bench=bench,
        validate=True,
        engine="vllm",
        device_kv="6KiB",  # 768 tokens
        max_disk="0",
        out=folder,
        **changes,
    )


@pytest.mark.parametrize(("slower", "code"), [(1.0, 0), (1.5, 1)])
def test_the_command_validates_against_servers(
    slower: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own cache first, a tier below it: half, all and twice of what it recommends."""
    engine = FakeVllm(slower)
    monkeypatch.setattr("lmcache_cli.engines.start.start_engine", lambda *a, **k: engine)
    monkeypatch.chdir(tmp_path)
    assert run_tune(served(tmp_path), "out.json", True) == code
    found = json.loads((tmp_path / "out.json").read_text())
    points = found["validation"]["points"]
    assert [point["role"] for point in points] == ["smaller", "recommended", "larger"]
    assert all(point["wrong_hits"] == 0 for point in points)
    assert {point["tiers"]["device"] for point in points} == {6144}
    assert points[2]["measured"]["hit_rate"] > points[0]["measured"]["hit_rate"]
    assert found["validation"]["drift"] == pytest.approx(1.0)
    assert found["cost"]["device"]["kv_bytes"] == 6144
    assert all(server.closed for server in engine.opened)


@pytest.mark.parametrize(
    ("changes", "cpu", "what"),
    [
        ({"device_kv": "1KiB"}, True, "--device-kv: has room for 128 tokens"),
        ({}, False, "--device-kv: how much room vLLM has for KV on a GPU"),
        ({"bench": BenchOptions(engine="simulated", context_tokens="9000")}, True, "context is"),
    ],
)
def test_what_servers_could_not_serve_is_found_before_they_start(
    changes: Any, cpu: bool, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeVllm()
    engine.cpu = cpu
    monkeypatch.setattr("lmcache_cli.engines.start.start_engine", lambda *a, **k: engine)
    given: dict[str, Any] = {"source": "long-context", "validate": True, "engine": "vllm"}
    bench = BenchOptions(engine="simulated", context_tokens="400", documents=2, questions=1)
    with pytest.raises(UserError, match=what):
        run_tune(TuneOptions(**given | {"bench": bench, "out": tmp_path} | changes), None, True)
    assert not engine.opened


def test_each_run_of_a_server_has_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def prefill_s(probe: ServedProbe, tokens: int) -> float:
        asked.append(tokens)
        return PREFILL.seconds(tokens)

    monkeypatch.setattr(ServedProbe, "prefill_s", prefill_s)
    monkeypatch.setattr("lmcache_cli.engines.start.start_engine", lambda *a, **k: FakeVllm())
    assert run_tune(served(tmp_path, repeat=2), None, True) == 0
    assert len(asked) == 3 * 2


def test_where_one_server_at_a_time_is_up_there_is_no_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the one that was probed has made room."""
    engine = FakeVllm()
    engine.interleaves = False
    monkeypatch.setattr("lmcache_cli.engines.start.start_engine", lambda *a, **k: engine)
    assert run_tune(served(tmp_path), str(tmp_path / "out.json"), True) == 0
    assert json.loads((tmp_path / "out.json").read_text())["validation"]["drift"] is None
