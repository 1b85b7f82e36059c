"""What hardware and models cost, and queues."""

from __future__ import annotations

import numpy as np
import pytest

from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.measured_costs import TierCost
from lmcache_cli.errors import UserError
from lmcache_cli.tune import queueing
from lmcache_cli.tune.catalogue import ARCHITECTURES, HARDWARE, find_architecture, find_hardware
from lmcache_cli.tune.cost import RequestCost, catalogue_cost
from lmcache_cli.tune.queueing import Arrival, first_token_times


@pytest.mark.parametrize(
    ("model", "bytes_per_token"),
    [
        ("llama-3.1-8b", 131_072),
        ("llama-3.1-70b", 327_680),
        ("qwen2.5-7b", 57_344),
        ("deepseek-v3", 70_272),  # 61 layers of 512 + 64, two bytes each
        ("smollm2-135m", 23_040),
    ],
)
def test_kv_bytes_are_those_that_are_known(model: str, bytes_per_token: int) -> None:
    assert find_architecture(model).kv_bytes() == bytes_per_token


def test_ranks_beyond_the_heads_keep_copies() -> None:
    model = find_architecture("qwen2.5-7b")
    assert model.kv_bytes(tensor_parallel=4) == model.kv_bytes()
    assert model.kv_bytes(tensor_parallel=8) == 2 * model.kv_bytes()
    latent = find_architecture("deepseek-v3")
    assert latent.kv_bytes(tensor_parallel=8) == 8 * latent.kv_bytes()


def test_every_entry_has_a_source() -> None:
    assert all(hardware.source for hardware in HARDWARE.values())
    assert all(model.source for model in ARCHITECTURES.values())


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"--hardware: 'h1000' is not known.*h100"):
        find_hardware("h1000")
    with pytest.raises(UserError, match="is not in the catalogue"):
        find_architecture("gpt-2")


def test_weights_that_do_not_fit_are_told() -> None:
    cost = catalogue_cost(find_hardware("a40"), find_architecture("llama-2-70b"))
    assert any("don't fit" in note for note in cost.notes)


SIMPLE = RequestCost(PrefillCost(0.0, 1e-3, 0.0), {"cpu": TierCost(1e6)}, 100, 0.0)


def test_an_idle_engine_serves_at_once() -> None:
    arrivals = [Arrival(10.0 * i, 1000, 1, {}) for i in range(5)]
    assert first_token_times(arrivals, SIMPLE, 64) == pytest.approx([1.0] * 5)


def test_requests_queue_behind_each_other() -> None:
    arrivals = [Arrival(0.0, 1000, 1, {}) for _ in range(3)]
    found = first_token_times(arrivals, SIMPLE, 64, budget=1000)
    assert found == pytest.approx([1.0, 2.0, 3.0])


def test_hits_are_loaded_before_they_are_computed_on() -> None:
    [found] = first_token_times([Arrival(0.0, 1000, 1, {"cpu": 900})], SIMPLE, 100)
    assert found == pytest.approx(900 * 100 / 1e6 + 0.1)


def test_loads_of_a_tier_queue() -> None:
    arrivals = [Arrival(0.0, 1001, 1, {"cpu": 1000}) for _ in range(2)]
    found = first_token_times(arrivals, SIMPLE, 100)
    assert found == pytest.approx([0.101, 0.201])


def test_many_steps_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = RequestCost(PrefillCost(0.01, 1e-4, 1e-8), {}, 100, 0.02)
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(0.3, 60))
    arrivals = [Arrival(float(t), 500, int(rng.integers(1, 80)), {}) for t in times]
    quick = first_token_times(arrivals, cost, 64)
    monkeypatch.setattr(queueing, "_skip", lambda decoding, waiting, now, step_s: now)
    slow = first_token_times(arrivals, cost, 64)
    np.testing.assert_allclose(quick, slow, rtol=1e-9, atol=cost.decode_s + cost.prefill.a)


def test_a_closed_loop_waits_for_its_clients() -> None:
    arrivals = [Arrival(0.0, 1000, 11, {}) for _ in range(4)]
    cost = RequestCost(PrefillCost(0.0, 1e-3, 0.0), {}, 100, 0.1)
    # One client: each request finds an idle engine.
    assert first_token_times(arrivals, cost, 64, clients=1) == pytest.approx([1.0] * 4)
    # All at once is an open loop at time 0.
    np.testing.assert_allclose(
        first_token_times(arrivals, cost, 64, clients=4), first_token_times(arrivals, cost, 64)
    )


def test_in_turn_serves_an_answer_to_its_end() -> None:
    cost = RequestCost(PrefillCost(0.0, 1e-3, 0.0), {}, 100, 0.1, serving="in_turn")
    arrivals = [Arrival(0.0, 1000, 11, {}) for _ in range(3)]
    assert first_token_times(arrivals, cost, 64) == pytest.approx([1.0, 3.0, 5.0])
    assert first_token_times(arrivals, cost, 64, clients=1) == pytest.approx([1.0] * 3)
    assert first_token_times(arrivals, cost, 64, clients=2) == pytest.approx([1.0, 3.0, 3.0])
