"""What is predicted is what a real engine does: to the token for hits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.measured_costs import ProbedEngine, probed_engine
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.probe.engine import EngineProbe, probe_engine
from lmcache_cli.tune.candidates import Prices, TierConfiguration
from lmcache_cli.tune.cost import DeviceRoom, probed_cost
from lmcache_cli.tune.report_sections import validation_json
from lmcache_cli.tune.source import RequestSource, TuneOptions, made_source
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.validate import Tolerance, Validation, ValidationPoint, neighbours, validate
from tests.lmcache_cli.small_model import save_model
from workloads import WORKLOAD_USES

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
