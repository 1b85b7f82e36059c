"""The bench's own honesty: turns, cold starts, contamination, groups that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from lmcache_cli.bench.cells import Cell, Scenario, cross, groups_that_fit
from lmcache_cli.bench.measure import ContaminationError, Measured, measure_cells
from lmcache_cli.bench.plan import MODES
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.measured_costs import CostModel
from lmcache_cli.engines.simulated import SimulatedEngine, SimulatedSession
from lmcache_cli.errors import UserError
from lmcache_cli.modes.mode import Sweep
from lmcache_cli.modes.prefix import HitOracle
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.sizes import parse_count, parse_list, parse_size
from reports.sample import Sample
from workloads import GeneratedCorpus, Request, Settings, generate

SETTINGS = Settings(context_tokens=200, documents=2, questions=3, output_tokens=3)


def requests(engine: SimulatedEngine) -> list[Request]:
    corpus = GeneratedCorpus(0)
    return generate("long-context", SETTINGS, corpus, engine.encode, engine.bos)


def cells(**tiers: Sequence[int]) -> list[Cell]:
    sweep = Sweep(BenchOptions(), [16], tiers, "salt")
    return cross([Scenario("long-context", SETTINGS)], [MODES["off"], MODES["prefix"]], sweep)


def run(engine: SimulatedEngine, load: Load, into: Measured, chosen: list[Cell]) -> list[int]:
    order: list[int] = []
    scenario = Scenario("long-context", SETTINGS)
    measure_cells(
        engine,
        scenario,
        requests(engine),
        chosen,
        load,
        range(2),
        into,
        lambda cell, _: order.append(cell.index),
    )
    return order


def test_cells_take_turns_request_by_request() -> None:
    measured = Measured()
    order = run(SimulatedEngine(), Load(1), measured, cells(cpu=[1 << 30]))
    pairs = [tuple(sorted(order[i : i + 2])) for i in range(0, len(order), 2)]
    assert pairs == [(0, 1)] * 12
    assert len({tuple(order[i : i + 2]) for i in range(0, len(order), 2)}) == 2, "always one first"
    assert {s.repeat for s in measured.samples} == {0, 1}


def test_with_several_clients_they_take_turns_run_by_run() -> None:
    order = run(SimulatedEngine(), Load(3), Measured(), cells(cpu=[1 << 30]))
    assert sorted(order[:6]) in ([0] * 6, [1] * 6)


def test_every_repeat_starts_cold_and_hits_what_it_must() -> None:
    measured = Measured()
    run(SimulatedEngine(), Load(1), measured, cells(cpu=[1 << 30]))
    assert not measured.warnings
    for repeat in (0, 1):
        mine = [s for s in measured.samples if s.cell == 1 and s.repeat == repeat]
        assert [s.hits for s in mine] == [0, 0, 192, 192, 192, 192]
        assert all(s.hits == s.expected_hit_tokens for s in mine)
    assert measured.counters[1]["cpu"].read_chunks == 2 * 4 * 12


class Contaminated(SimulatedEngine):
    """Its sessions have seen every prompt before."""

    def open(self, spec: CacheSpec, max_tokens: int) -> SimulatedSession:
        session = super().open(spec, max_tokens)
        clear = session.clear

        def warm_again() -> None:
            clear()
            if spec.reuse and session.cache is not None:
                for request in requests(self):
                    session.cache.store(session._hasher.keys(request.token_ids).prefix, None)

        session.clear = warm_again  # type: ignore[method-assign]
        return session


def test_a_warm_start_is_an_error() -> None:
    with pytest.raises(ContaminationError, match="should start cold"):
        run(Contaminated(), Load(1), Measured(), cells(cpu=[1 << 30]))


def test_a_hit_that_a_cold_cache_cannot_have_is_an_error() -> None:
    class Liar(Contaminated):
        def open(self, spec: CacheSpec, max_tokens: int) -> SimulatedSession:
            session = super().open(spec, max_tokens)
            session.held_chunks = lambda: 0  # type: ignore[method-assign]
            return session

    with pytest.raises(ContaminationError, match="was not cold"):
        run(Liar(), Load(1), Measured(), cells(cpu=[1 << 30]))


def test_lost_chunks_are_a_warning() -> None:
    class Forgetful(SimulatedEngine):
        def open(self, spec: CacheSpec, max_tokens: int) -> SimulatedSession:
            session = super().open(spec, max_tokens)
            serve = session.serve

            def forget(requests: Sequence[Request], load: Load) -> Iterator[Sample]:
                if session.cache is not None:
                    session.cache.clear()
                return serve(requests, load)

            session.serve = forget  # type: ignore[method-assign]
            return session

    measured = Measured()
    run(Forgetful(), Load(1), measured, cells(cpu=[1 << 30]))
    assert any("lost" in warning for warning in measured.warnings)


def test_groups_fit_the_memory_and_each_has_the_base() -> None:
    chosen = cells(cpu=[1, 2, 3, 4])
    groups = groups_that_fit(chosen, 5)
    sizes = [[c.spec.tiers.get("cpu", 0) for c in group] for group in groups]
    assert sizes == [[0, 1, 2], [0, 3], [0, 4]]
    with pytest.raises(UserError, match="lower --cpu-size"):
        groups_that_fit(chosen, 3)


def test_oracle_counts_what_capacity_allows() -> None:
    tokens = np.arange(64, dtype=np.int32)
    request = Request("r", "s", 0.0, tokens, (), 1)
    oracle = HitOracle(CacheSpec(16, {"cpu": 1}), {"cpu": 2})
    assert [oracle.expect(request) for _ in range(2)] == [0, 32]
    oracle = HitOracle(CacheSpec(16, {"cpu": 1}), {"cpu": 9})
    assert [oracle.expect(request) for _ in range(2)] == [0, 48]  # the last token is computed


def test_simulated_times_follow_the_cost_model() -> None:
    cost = CostModel(a=1.0, b=0.1, c=0.0, decode_s=0.5)
    engine = SimulatedEngine(cost)
    session = engine.open(CacheSpec(16), 300)
    [sample] = session.serve(requests(engine)[:1], Load(1))
    new = sample.prompt_tokens
    assert sample.ttft_s == pytest.approx(1 + 0.1 * new)
    assert np.diff(sample.token_s) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 << 20), ("2g", 2 << 30), ("1.5GB", 1_500_000_000), ("0", 0), ("7", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--x") == size


def test_lists_drop_duplicates_and_refuse_nothing_at_all() -> None:
    assert parse_list("16, 64,16", "--x", parse_count) == [16, 64]
    with pytest.raises(UserError, match="--x: no value"):
        parse_list(" ,", "--x", parse_count)


def test_the_engine_is_warmed_up_by_the_longest_prompt() -> None:
    """A GPU's first run of a length is not like its others."""
    warmed: list[int] = []

    class Warmed(SimulatedEngine):
        def warm_up(self, tokens: int) -> None:
            warmed.append(tokens)

    engine = Warmed()
    run(engine, Load(1), Measured(), cells(cpu=[1 << 30]))
    assert warmed == [max(len(request.token_ids) for request in requests(engine))]
