"""What is predicted is what a real engine does: to the token for hits."""

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
from lmcache_cli.engines.measured_costs import ProbedEngine, TierCost, probed_engine
from lmcache_cli.engines.simulated import encode_words
from lmcache_cli.engines.start import start_engine
from lmcache_cli.engines.vllm.engine import VllmEngine
from lmcache_cli.engines.vllm.flags import OWN_BLOCK_TOKENS, mode_flags, own_cache_flags
from lmcache_cli.errors import CellError, UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.probe.engine import EngineProbe, probe_engine
from lmcache_cli.probe.media import ProbeError
from lmcache_cli.probe.served import ServedProbe
from lmcache_cli.tune.candidates import Prices, TierConfiguration
from lmcache_cli.tune.cost import DeviceRoom, probed_cost
from lmcache_cli.tune.report_sections import validation_json
from lmcache_cli.tune.run import run_tune
from lmcache_cli.tune.source import RequestSource, TuneOptions, made_source, request_arrays
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.validate import Tolerance, Validation, ValidationPoint, neighbours, validate
from reports.sample import Sample
from tests.lmcache_cli.small_model import save_model
from workloads import WORKLOAD_USES, Request

pytestmark = pytest.mark.engine

WORKLOADS = ("long-context", "rag", "chat", "agent", "random")
SMALL = BenchOptions(
    engine="simulated",
    context_tokens="100",
    documents=3,
    questions=3,
    question_tokens=17,
    output_tokens=3,
    passages=2,
    passage_tokens=48,
    corpus_passages=5,
    system_tokens=33,
    sessions=3,
    rounds=2,
    requests=6,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = save_model(tmp_path_factory.mktemp("model"), "llama", max_position_embeddings=768)
    started = start_engine("transformers", str(folder), "cpu", "auto")
    yield started
    started.close()


@pytest.fixture(scope="module")
def probe(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> EngineProbe:
    return probe_engine(engine, tmp_path_factory.mktemp("probe"), 192, 3, asked=engine.model)


@pytest.fixture(scope="module")
def probed(probe: EngineProbe) -> ProbedEngine:
    return probed_engine(json.loads(json.dumps(asdict(probe))), "test")


def made(name: str, engine: Any, **changes: Any) -> RequestSource:
    # A knob that the workload has not is refused, so that it keeps its default.
    wrong = {n: getattr(BenchOptions(), n) for names in WORKLOAD_USES.values() for n in names}
    wrong = {n: value for n, value in wrong.items() if n not in WORKLOAD_USES[name]}
    if name in ("chat", "agent"):  # turns as long as several chunks
        wrong["question_tokens"] = 64
    bench = replace(SMALL, workloads=(name,), **wrong | changes)
    return made_source(
        TuneOptions(source=name, chunk_tokens="16,32"), bench, engine.encode, engine.bos
    )


def stacks(token_bytes: int) -> list[tuple[str, TierConfiguration]]:
    """Too small for all, large enough; with a disk; exclusive; other policies and admissions."""
    chunk = 16 * token_bytes
    cpu, disk = ("cpu", 5 * chunk + 7), ("disk", 1 << 20)
    return [
        ("small", TierConfiguration((("cpu", 3 * chunk),), 16)),
        ("middle", TierConfiguration((cpu,), 16)),
        ("large", TierConfiguration((("cpu", 1 << 22),), 32)),
        ("disk", TierConfiguration((cpu, disk), 16)),
        ("exclusive", TierConfiguration((cpu, ("disk", 300_000)), 16, "write_on_eviction")),
        ("lfu", TierConfiguration((cpu,), 16, policy="lfu-aging")),
        ("gdsf", TierConfiguration((cpu, disk), 16, policy="gdsf")),
        ("second touch", TierConfiguration((cpu, disk), 16, admission="second-touch")),
    ]


@pytest.mark.parametrize("name", WORKLOADS)
def test_predicted_hits_are_measured_hits(
    name: str, engine: Any, probed: ProbedEngine, tmp_path: Path
) -> None:
    source = made(name, engine)
    study = Study(source.arrays, probed_cost(probed), Prices(), clients=1)
    found = validate(
        study,
        source,
        engine,
        stacks(engine.token_bytes()),
        tolerance=Tolerance(9, 9),
        folder=tmp_path,
        prefill_points=probed.prefill_points,
    )
    assert [(p.role, p.wrong, p.failed) for p in found.points] == [
        (role, 0, 0) for role, _ in stacks(engine.token_bytes())
    ]
    assert all(p.predicted_hits == p.measured_hits for p in found.points)
    if name != "random":
        assert found.points[2].measured_rate > found.points[0].measured_rate
    assert found.drift is not None
    assert not list(tmp_path.iterdir()), "a disk tier was left behind"


def test_several_clients_and_arrivals_hit_the_same(
    engine: Any, probed: ProbedEngine, tmp_path: Path
) -> None:
    both: list[dict[str, Any]] = [{"concurrency": 3}, {"rate": 50.0}]
    for changes in both:
        source = made("rag", engine, **changes)
        study = Study(source.arrays, probed_cost(probed), Prices(), clients=source.load.concurrency)
        [point] = validate(
            study,
            source,
            engine,
            [("large", TierConfiguration((("cpu", 1 << 22),), 16))],
            tolerance=Tolerance(),
            folder=tmp_path,
            repeats=2,
        ).points
        assert point.hits_exact


def test_the_probe_finds_costs_of_every_kind(probe: EngineProbe) -> None:
    assert {"cpu", "disk"} == set(probe.tiers)
    assert all(cost.bytes_per_s > 0 for cost in probe.tiers.values())
    assert probe.prefill.seconds(191) > 0
    assert probe.decode_s + probe.decode_token_s > 0
    assert {f.cached for f in probe.prefill_figures} == {0, 48, 96}
    assert all(f.time.n == 3 for f in probe.prefill_figures)


def point(**changes: Any) -> ValidationPoint:
    times = {"p50": 1.0, "p90": 2.0, "p99": 3.0}
    plain = ValidationPoint(
        TierConfiguration((("cpu", 1),), 16), "recommended", 4, {"cpu": 8}, {"cpu": 8}, 0.5, 0.5,
        times, times, 0, 0,
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.mark.parametrize(
    ("changes", "drift", "verdict", "code"),
    [
        ({}, 1.0, "confirmed", 0),
        ({"predicted": {"p50": 1.2, "p90": 2.0, "p99": 3.0}}, 1.0, "refuted", 1),
        ({"predicted": {"p50": 1.1, "p90": 2.6, "p99": 3.0}}, None, "refuted", 1),
        ({"predicted": {"p50": 1.2, "p90": 2.0, "p99": 3.0}}, 1.5, "inconclusive", 3),
        ({"wrong": 1}, 1.5, "refuted", 1),
        ({"measured_hits": {"cpu": 7}}, 1.0, "refuted", 1),
    ],
)
def test_verdicts(changes: Any, drift: float | None, verdict: str, code: int) -> None:
    found = Validation((point(**changes),), Tolerance(), "transformers", "m", drift)
    assert (found.verdict, found.exit_code) == (verdict, code)
    assert validation_json(found)["verdict"] == verdict


def test_neighbours_are_half_and_twice() -> None:
    stack = TierConfiguration((("cpu", 10), ("disk", 100)), 16)
    assert [(role, s.sizes) for role, s in neighbours(stack)] == [
        ("smaller", {"cpu": 5, "disk": 50}),
        ("recommended", {"cpu": 10, "disk": 100}),
        ("larger", {"cpu": 20, "disk": 200}),
    ]
    assert neighbours(TierConfiguration((), 16)) == [("recommended", TierConfiguration((), 16))]


def test_a_closed_loop_without_arrivals_has_a_length(engine: Any, probed: ProbedEngine) -> None:
    cost = replace(probed_cost(probed), prefill=PrefillCost(1.0, 0.0, 0.0), decode_s=0.0)
    source = made("rag", engine)
    assert Study(source.arrays, cost, Prices(), clients=3).duration_s == pytest.approx(6 / 3)


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

    def __init__(self, spec: CacheSpec, token_bytes: int) -> None:
        self.tier = "disk" if "disk" in spec.tiers else "cpu"
        self.own = Blocks(spec.tiers["device"] // token_bytes // 32, 32)
        self.slower = 1.0
        self.below = Blocks(spec.tiers[self.tier] // token_bytes // spec.chunk_tokens, 64)
        self.token_bytes, self.closed = token_bytes, False

    def complete(self, ids: list[int], count: int) -> tuple[list[float], dict[str, int]]:
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
        return self.opened[-1]

    def bring_up(self, session: FakeServer) -> None:
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


def test_a_server_that_does_not_find_what_it_must_is_no_measure(tmp_path: Path) -> None:
    engine: Any = FakeEngine()
    probe = ServedProbe(engine, tmp_path, 700, 64)
    engine.opened[0].own.room = 4
    with pytest.raises(ProbeError, match=r"was to find .'device': "):
        probe.measure(1, "fake")
    engine.opened[0].own.room = 1000  # what is to be loaded never leaves it
    with pytest.raises(ProbeError, match="tokens in cpu a request found"):
        probe.measure(1, "fake")


def test_hits_of_the_engine_alone_are_validated_too(
    engine: Any, probed: ProbedEngine, tmp_path: Path
) -> None:
    """A stack that buys nothing is the engine's own cache: the mode that has no tier of ours."""
    source = made("rag", engine)
    cost = replace(
        probed_cost(probed), serving="batches", device=DeviceRoom(engine.token_bytes(), given=10**7)
    )
    study = Study(source.arrays, cost, Prices(), clients=1)
    asked: list[CacheSpec] = []

    class Watched:
        name, model, max_context = "vllm", "m", 10**6

        def tier_capacity(self, spec: CacheSpec) -> None:
            asked.append(spec)
            raise UserError("enough")

    watched: Any = Watched()
    for stack in (study.today, study.without):
        with pytest.raises(UserError, match="enough"):
            validate(study, source, watched, [("r", stack)], tolerance=Tolerance(), folder=tmp_path)
    assert [(spec.mode, spec.foreign) for spec in asked] == [("vllm", True), ("off", False)]
    assert asked[0].tiers == {"device": study.device} and not asked[0].ours


class ServingFake(FakeServer):
    """One that serves the bench too, each cold start under other salt tokens, on a virtual
    clock."""

    spec: CacheSpec
    salts = 0

    def serve(self, requests: list[Request], load: Load) -> Iterator[Sample]:
        for request in requests:
            ids = [10_000 + self.salts] * SALT_TOKENS + request.token_ids.tolist()
            seconds, hits = self.complete(ids, request.max_tokens)
            made = sample_of(request, 0.0, 0.0, seconds, hit_tokens=hits)
            yield replace(made, prompt_tokens=len(ids))

    def clear(self) -> None:
        self.salts += 1

    def ready(self) -> None: ...
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

    def open(self, spec: CacheSpec, max_tokens: int) -> Any:
        mine = ServingFake(replace(spec, tiers={"cpu": 0, **spec.tiers}), 8)
        mine.slower = self.slower if "validate" in spec.salt else 1.0
        self.opened.append(mine)
        return mine

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        return {}

    def warm_up(self, tokens: int) -> None: ...

    def now(self) -> float:
        return 0.0

    def close(self) -> None: ...


@pytest.mark.parametrize(("slower", "code"), [(1.0, 0), (1.5, 1)])
def test_the_command_validates_against_servers(
    slower: float, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own cache first, a tier below it: half, all and twice of what it recommends."""
    engine = FakeVllm(slower)
    monkeypatch.setattr("lmcache_cli.engines.start.start_engine", lambda *a, **k: engine)
    monkeypatch.chdir(tmp_path)
    bench = BenchOptions(engine="simulated", context_tokens="400", documents=6, questions=3)
    options = TuneOptions(
        source="long-context",
        bench=bench,
        validate=True,
        engine="vllm",
        device_kv="6KiB",  # 768 tokens
        max_disk="0",
    )
    assert run_tune(options, "out.json", True) == code
    found = json.loads((tmp_path / "out.json").read_text())
    points = found["validation"]["points"]
    assert [point["role"] for point in points] == ["smaller", "recommended", "larger"]
    assert all(point["wrong_hits"] == 0 for point in points)
    assert {point["tiers"]["device"] for point in points} == {6144}
    assert points[2]["measured"]["hit_rate"] > points[0]["measured"]["hit_rate"]
    assert found["validation"]["drift"] == pytest.approx(1.0)
    assert found["cost"]["device"]["kv_bytes"] == 6144
    assert all(server.closed for server in engine.opened)
