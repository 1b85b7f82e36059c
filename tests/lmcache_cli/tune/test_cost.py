"""What hardware and models cost, and queues."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.architecture import LayerKind
from lmcache_cli.engines.measured_costs import TierCost
from lmcache_cli.tune.candidates import Prices, TierConfiguration
from lmcache_cli.tune.catalogue import (
    find_architecture,
    find_hardware,
)
from lmcache_cli.tune.cost import DeviceRoom, RequestCost, catalogue_cost, devices_needed
from lmcache_cli.tune.queueing import Arrivals, serve_requests
from lmcache_cli.tune.search import replayed
from lmcache_cli.tune.study import Study
from workloads.traces import TraceArrays


def test_ranks_beyond_the_heads_keep_copies() -> None:
    model = find_architecture("qwen2.5-7b")
    assert model.kv_bytes(tensor_parallel=4) == model.kv_bytes()
    assert model.kv_bytes(tensor_parallel=8) == 2 * model.kv_bytes()
    latent = find_architecture("deepseek-v3")
    assert latent.kv_bytes(tensor_parallel=8) == 8 * latent.kv_bytes()
    # Below the device all ranks' KV of MLA, which is the same, is stored once.
    assert latent.stored_bytes(tensor_parallel=8) == latent.kv_bytes()
    assert model.stored_bytes(tensor_parallel=8) == model.kv_bytes(tensor_parallel=8)
    cost = catalogue_cost(find_hardware("h200"), latent, devices=8, item_bytes=1)
    assert cost.device is not None and cost.device.token_bytes == 8 * cost.token_bytes


def test_every_card_loads_all_of_a_latent() -> None:
    card = find_hardware("h200")
    for name, share in (("deepseek-v3", 1), ("llama-3.1-70b", 8)):
        cost = catalogue_cost(card, find_architecture(name), devices=8, item_bytes=1)
        seconds = 1000 * cost.token_bytes / (share * card.link_bytes_s)
        assert cost.load_s("cpu", 1000, 100) == pytest.approx(seconds), name


def test_the_room_of_a_card_is_what_the_weights_leave() -> None:
    card, model = find_hardware("h100"), find_architecture("llama-3.1-8b")
    room = catalogue_cost(card, model).device
    assert room is not None and room.weights == model.parameters * 2
    left = 80 * 2**30 * 0.92 - room.weights - room.activations
    assert room.nbytes == int(left) and room.tokens == int(left) // 131_072
    for part in ("80 GiB x 0.92", "weights 15 GiB", "56.5 GiB for KV", f"{room.tokens:,} tokens"):
        assert part in room.text()
    # The weights are split between the cards; experts that rest are weights too.
    two = catalogue_cost(card, model, devices=2).device
    assert two is not None and two.weights == room.weights and two.nbytes > 2 * room.nbytes
    experts = find_architecture("qwen3-30b-a3b")
    sparse = catalogue_cost(card, experts).device
    assert sparse is not None and sparse.weights == experts.parameters * 2


def test_types_of_eight_bits_leave_more_room_and_compute_faster() -> None:
    card, model = find_hardware("h200"), find_architecture("llama-3.1-70b")
    wide = catalogue_cost(card, model, devices=2)
    narrow = catalogue_cost(card, model, devices=2, item_bytes=1)
    assert wide.device is not None and narrow.device is not None
    assert narrow.device.weights == wide.device.weights / 2
    assert narrow.prefill.b == pytest.approx(wide.prefill.b * card.flops / card.fp8_flops)
    kv = catalogue_cost(card, model, devices=2, kv_item_bytes=1)
    assert kv.token_bytes * 2 == wide.token_bytes and kv.prefill == wide.prefill
    assert catalogue_cost(card, model, token_bytes=777).token_bytes == 777
    given = catalogue_cost(card, model, device_kv=10**9).device
    assert given is not None and given.nbytes == 10**9 and "as given" in given.text()


def test_as_many_cards_as_the_weights_take() -> None:
    model = find_architecture("llama-3.1-405b")
    assert devices_needed(find_hardware("h100"), model, 2, 0.92) == 16
    assert devices_needed(find_hardware("h200"), model, 2, 0.92) == 8
    assert devices_needed(find_hardware("h200"), model, 1, 0.92) == 4
    assert devices_needed(find_hardware("h100"), find_architecture("llama-3.2-1b"), 2, 0.92) == 1
    # 28 heads, 4 of KV: not over 8 cards, nor over 7 or 14.
    tall = replace(find_architecture("qwen2.5-7b"), parameters=300e9)
    assert tall.splits() == (1, 2, 4, 28)
    assert devices_needed(find_hardware("h100"), tall, 2, 0.92) == 28
    assert devices_needed(find_hardware("h100"), replace(tall, parameters=1e13), 2, 0.92) is None
    assert find_architecture("deepseek-v3").splits() == (1, 2, 4, 8, 16, 32, 64, 128)


SIMPLE = RequestCost(PrefillCost(0.0, 1e-3, 0.0), {"cpu": TierCost(1e6)}, 100, 0.0)
CHUNK = 100


def come(*at_s: float, prompt: int = 1000, output: int = 1, shared: int = 0) -> Arrivals:
    """Requests of ``prompt`` tokens, the first ``shared`` chunks of which are the same in all."""
    count, each = len(at_s), prompt // CHUNK
    own = itertools.count(shared)
    chunks = [[*range(shared), *(next(own) for _ in range(each - shared))] for _ in at_s]
    return Arrivals(
        np.array(at_s, np.float64),
        np.full(count, prompt, np.int64),
        np.full(count, output, np.int64),
        np.array(chunks, np.int64).ravel(),
        np.arange(count + 1, dtype=np.int64) * each,
        CHUNK,
    )


def ttft(
    arrivals: Arrivals, cost: RequestCost = SIMPLE, hits: int | None = None, **changes: Any
) -> Any:
    """Returns the TTFT, where the cpu tier has ``hits`` chunks of each prompt (None: no tier)."""
    table = np.full((len(arrivals), int(hits is not None)), hits or 0, np.int32)
    return serve_requests(arrivals, table, () if hits is None else ("cpu",), cost, **changes).ttft


def test_an_idle_engine_serves_at_once() -> None:
    assert ttft(come(*(10.0 * i for i in range(5)))) == pytest.approx([1.0] * 5)


def test_requests_queue_behind_each_other() -> None:
    assert ttft(come(0.0, 0.0, 0.0), budget=1000) == pytest.approx([1.0, 2.0, 3.0])


def test_a_step_has_no_more_requests_than_may_run() -> None:
    held = come(0.0, 0.0, 0.0, output=3)
    cost = replace(SIMPLE, decode_s=1.0)
    assert ttft(held, cost, most=1) == pytest.approx([1.0, 4.0, 7.0])
    found = serve_requests(held, np.zeros((3, 0), np.int32), (), cost, most=2)
    assert found.most_running == 2


def test_requests_that_run_have_no_more_kv_than_there_is_room() -> None:
    held = come(0.0, 0.0, output=11)
    cost = replace(SIMPLE, decode_s=1.0)
    for tokens, second in ((1999, 12.0), (2000, 2.0)):
        device = DeviceRoom(1, given=tokens)
        found = ttft(held, replace(cost, device=device), budget=2000)
        assert found[1] == pytest.approx(second)
    # One that is larger than the room still runs, alone.
    assert ttft(come(0.0), replace(cost, device=DeviceRoom(1, given=10)))[0] == pytest.approx(1.0)


def test_hits_are_loaded_before_they_are_computed_on() -> None:
    # The first makes the chunks; the second comes when they are there.
    found = ttft(come(0.0, 10.0, shared=9), hits=9)
    assert found[1] == pytest.approx(900 * 100 / 1e6 + 0.1)


def test_loads_of_a_tier_queue() -> None:
    made = come(0.0, 10.0, 10.0, prompt=1001, shared=10)
    hits = np.array([[0], [10], [10]], np.int32)
    found = serve_requests(made, hits, ("cpu",), SIMPLE).ttft
    assert found[1:] == pytest.approx([0.101, 0.201])


def test_what_is_still_being_computed_is_no_hit() -> None:
    together, hits = come(0.0, 0.0, 5.0, shared=9), np.array([[0], [9], [9]], np.int32)
    found = serve_requests(together, hits, ("cpu",), SIMPLE, budget=2000)
    assert found.ttft == pytest.approx([2.0, 2.0, 0.19])
    assert found.hits[:, 0].tolist() == [0, 0, 900]
    # The device has it from the step on that computes it; other tiers when the prompt is done.
    own = serve_requests(together, hits, ("device",), SIMPLE, budget=2000)
    assert own.hits[:, 0].tolist() == [0, 900, 900]
    assert own.ttft == pytest.approx([1.1, 1.1, 0.1])
    # A prompt of several steps: what the later ones make is not there yet.
    long = come(0.0, 0.0, shared=30, prompt=3000)
    table = np.array([[0], [29]], np.int32)
    parts = serve_requests(long, table, ("device",), replace(SIMPLE, decode_s=0.0), budget=2900)
    assert parts.hits[:, 0].tolist() == [0, 2900], "the first takes a step alone"
    cpu = serve_requests(long, table, ("cpu",), SIMPLE, budget=2900)
    assert cpu.hits[:, 0].tolist() == [0, 0]


def test_steps_of_many_requests_have_the_gaps_that_they_take() -> None:
    cost = RequestCost(PrefillCost(0.0, 1e-3, 0.0), {}, 100, 0.1)
    found = serve_requests(come(0.0, output=11), np.zeros((1, 0), np.int32), (), cost)
    assert found.counts.sum() == 10 and found.gaps[found.counts > 0] == pytest.approx(0.1, rel=5e-3)
    assert found.e2e == pytest.approx([2.0]) and found.busy_s == pytest.approx(2.0)


def test_a_closed_loop_waits_for_its_clients() -> None:
    held = come(0.0, 0.0, 0.0, 0.0, output=11)
    cost = RequestCost(PrefillCost(0.0, 1e-3, 0.0), {}, 100, 0.1)
    # One client: each request finds an idle engine.
    assert ttft(held, cost, clients=1) == pytest.approx([1.0] * 4)
    # All at once is an open loop at time 0.
    np.testing.assert_allclose(ttft(held, cost, clients=4), ttft(held, cost))


def test_in_turn_serves_an_answer_to_its_end() -> None:
    cost = RequestCost(PrefillCost(0.0, 1e-3, 0.0), {}, 100, 0.1, serving="in_turn")
    held = come(0.0, 0.0, 0.0, output=11)
    assert ttft(held, cost) == pytest.approx([1.0, 3.0, 5.0])
    assert ttft(held, cost, clients=1) == pytest.approx([1.0] * 3)
    assert ttft(held, cost, clients=2) == pytest.approx([1.0, 3.0, 3.0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hits": np.full((2, 1), 11, np.int32)}, "are more than its chunks"),
        ({"hits": np.full((2, 1), -1, np.int32)}, "are negative"),
        ({"hits": np.zeros((3, 1), np.int32)}, "hits has 3 entries"),
        ({"chunks": np.full(20, 20, np.int64)}, "is no number below their count"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], words: str) -> None:
    arrivals = come(0.0, 0.0)
    if "chunks" in changes:
        arrivals = replace(arrivals, chunks=changes["chunks"])
    hits = changes.get("hits", np.zeros((2, 1), np.int32))
    with pytest.raises(ValueError, match=words):
        serve_requests(arrivals, hits, ("cpu",), SIMPLE)


def test_a_hit_of_a_mixed_model_has_a_fixed_part() -> None:
    plain = catalogue_cost(find_hardware("h100"), find_architecture("llama-3.1-8b"))
    assert not plain.kept and plain.tiers["cpu"].call_s == 0
    mixed = catalogue_cost(find_hardware("h100"), find_architecture("qwen3-next-80b-a3b-instruct"))
    states = find_architecture("qwen3-next-80b-a3b-instruct").state_bytes()
    assert mixed.token_bytes == 12 * 2048 and len(mixed.kept) == 48
    rate = mixed.tiers["cpu"].bytes_per_s
    assert mixed.load_s("cpu", 4096, 64) == pytest.approx((4096 * 12 * 2048 + states) / rate)
    assert any("the Ledger is replayed" in note for note in mixed.notes)


def test_a_study_of_a_mixed_model_replays_the_ledger() -> None:
    rng = np.random.default_rng(3)
    base = list(range(6))
    prompts = [[*base, *rng.integers(100, 200, 4).tolist()] for _ in range(12)]
    ids = AccessTrace.of(prompts, 64, "content").prefixes()
    count = len(prompts)
    arrays = TraceArrays(
        ids.ids, ids.offsets, np.arange(count, dtype=np.float64), np.full(count, 10 * 64 + 1),
        np.full(count, 5), np.full(count, -1), (), 64,
    )  # fmt: skip
    studies = {
        name: Study(
            arrays, catalogue_cost(find_hardware("h100"), find_architecture(name)), Prices()
        )
        for name in ("glm-4.5-air", "gpt-oss-20b")
    }
    large = TierConfiguration((("cpu", 1 << 40),), 64)
    hits = {name: study.hits(large).sum(axis=1).tolist() for name, study in studies.items()}
    # All of what is shared, or what two prompts before have shown to be a place to go on from.
    assert hits["glm-4.5-air"] == [0, *[6 * 64] * 11]
    assert hits["gpt-oss-20b"] == [0, 0, *[6 * 64] * 10]
    assert [study.plain(large) for study in studies.values()] == [True, False]
    mixed = studies["gpt-oss-20b"]
    assert mixed.ceiling(64) == pytest.approx(10 * 6 * 64 / arrays.input_tokens.sum())
    # A slot is half of a chunk's bytes: two groups.
    assert mixed.cost.chunk_bytes(64) == 12 * 2048 * 64 and len(mixed.cost.groups(64)) == 2
    small = TierConfiguration((("cpu", 4 * mixed.cost.chunk_bytes(64)),), 64)
    assert mixed.hits(small).sum() < sum(hits["gpt-oss-20b"])
    # The device has slots like theirs, and what it lacks a tier below has.
    own = (("device", 4 * mixed.cost.chunk_bytes(64)),)
    assert mixed.device_chunk == 64 and mixed.rooms(replace(small, tiers=own)) == [4]
    few = mixed.hits(replace(small, tiers=own))[:, 0]
    assert few.tolist() == mixed.hits(small)[:, 0].tolist() and mixed.device > 0
    both = mixed.hits(replace(large, tiers=own + large.tiers))
    assert both[:, 0].tolist() == few.tolist() and both.sum(axis=1).tolist() == hits["gpt-oss-20b"]
    # One tier at sizes up to all that it can use: the last is the ceiling.
    sizes, rates = zip(*replayed(mixed, 64), strict=True)
    assert rates[-1] == pytest.approx(mixed.ceiling(64)) and list(rates) == sorted(rates)
    assert sizes[-1] == mixed.most_chunks(64) * mixed.cost.chunk_bytes(64)


def test_latents_of_mixed_models_are_stored_once_and_on_every_card() -> None:
    card, kinds = (
        find_hardware("h200"),
        (
            LayerKind(12, items=576, heads=0),
            LayerKind(36, "state", state_items=8192),
        ),
    )
    model = replace(find_architecture("qwen3-next-80b-a3b-instruct"), kinds=kinds)
    one, eight = (catalogue_cost(card, model, devices=n) for n in (1, 8))
    assert model.stored_bytes(tensor_parallel=8) == model.kv_bytes() == one.token_bytes
    assert eight.token_bytes == one.token_bytes and eight.device is not None
    assert eight.device.token_bytes == 8 * one.token_bytes
    given = catalogue_cost(card, model, token_bytes=777)
    assert given.token_bytes == 777 and not given.kept
    assert any("777 bytes a token are taken" in note for note in given.notes)
