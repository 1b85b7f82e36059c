"""What hardware and models cost, and queues."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.measured_costs import TierCost
from lmcache_cli.errors import UserError
from lmcache_cli.tune.catalogue import (
    ARCHITECTURES,
    HARDWARE,
    architecture_of,
    find_architecture,
    find_hardware,
)
from lmcache_cli.tune.cost import DeviceRoom, RequestCost, catalogue_cost, devices_needed
from lmcache_cli.tune.queueing import Arrivals, serve_requests


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


LLAMA: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": LLAMA,
    "llama-3.2-1b": LLAMA | {
        "hidden_size": 2048, "num_hidden_layers": 16, "head_dim": 64, "intermediate_size": 8192,
        "tie_word_embeddings": True,
    },
    "mixtral-8x7b": LLAMA | {
        "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "qwen3-30b-a3b": {
        "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
        "vocab_size": 151936, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "deepseek-v3": {
        "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3,
        "vocab_size": 129280,
    },
}  # fmt: skip
"""What decides, of the config.json on each maker's page."""


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_says_what_the_catalogue_does(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    known, found = ARCHITECTURES[name], find_architecture(str(folder))
    assert found.parameters == pytest.approx(known.parameters, rel=0.01)
    assert found.active == pytest.approx(known.active, rel=0.02)
    assert found.kv_bytes() == known.kv_bytes() and found.pair_flops() == known.pair_flops()
    assert (found.name, found.layers, found.heads) == (name, known.layers, known.heads)
    assert find_architecture(str(folder / "config.json")) == found


def test_a_model_inside_another_and_a_window() -> None:
    inner = LLAMA | {"sliding_window": 512}
    found = architecture_of({"text_config": inner, "tie_word_embeddings": True}, "seer")
    assert found.kv_bytes() == 131_072 and "window of 512 tokens counts as full" in found.source


def test_gemma_ties_without_saying_so() -> None:
    given = {**LLAMA, "model_type": "gemma2"}
    apart = architecture_of({**given, "tie_word_embeddings": False}, "x").parameters
    assert apart - architecture_of(given, "x").parameters == LLAMA["vocab_size"] * 4096


def test_a_path_gives_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.chdir(folder)
    assert {find_architecture(name).name for name in (".", "config.json")} == {"my-model"}
    for odd in ("x" * 5000, "~nobody-of-this-name/model"):
        with pytest.raises(UserError, match="is not in the catalogue"):
            find_architecture(odd)


def test_a_tuned_model_is_its_base() -> None:
    assert find_architecture("meta-llama/Llama-3.1-8B-Instruct") is ARCHITECTURES["llama-3.1-8b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_experts": 8}, "has no num_experts_per_tok or experts_per_token"),
        ({"num_experts": 8, "decoder_sparse_step": 2}, "has decoder_sparse_step, which can't"),
        ({"linear_num_key_heads": 16}, "has linear_num_key_heads, which can't be sized"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of linear_attention"),
        ({"interleave_moe_layer_step": 2}, "has interleave_moe_layer_step"),
        ({"moe_num_experts": 64, "moe_k": 6}, "has moe_k, moe_num_experts"),
        ({"lru_width": 2560}, "has lru_width"),
        ({"num_kv_shared_layers": 20}, "has num_kv_shared_layers"),
        ({"index_head_dim": 128}, "has index_head_dim"),
        ({"model_type": "starcoder2"}, "has model_type starcoder2"),
        ({"num_key_value_heads": [8, 4]}, "has no num_key_value_heads"),
        ({"kv_lora_rank": 512}, "has no qk_rope_head_dim"),
    ],
)
def test_what_a_configuration_lacks_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        architecture_of(LLAMA | change, "odd")


def test_a_configuration_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="no model's configuration"):
        find_architecture(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="can't be read"):
        find_architecture(str(tmp_path))


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


def test_every_entry_has_a_source() -> None:
    assert all(hardware.source for hardware in HARDWARE.values())
    assert all(model.source for model in ARCHITECTURES.values())


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"--hardware: 'h1000' is not known.*h100"):
        find_hardware("h1000")
    with pytest.raises(UserError, match="is not in the catalogue"):
        find_architecture("gpt-2")


@pytest.mark.parametrize(
    ("said", "name"),
    [("A100", "a100-80g"), ("5090", "rtx-5090"), ("H100-SXM5", "h100"), ("NVIDIA L40S", "l40s")],
)
def test_a_card_may_be_called_what_most_people_call_it(said: str, name: str) -> None:
    assert find_hardware(said) is HARDWARE[name]


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        "tflops = 400\nmemory_gb_s = 2000\nmemory_gib = 64\nlink_gb_s = 60\nprice = 1.5\n"
    )
    found = find_hardware(str(mine))
    assert (found.name, found.flops, found.memory_bytes) == ("mine", 4e14, 64 * 2**30)
    assert (found.memory_bytes_s, found.link_bytes_s, found.price) == (2e12, 6e10, 1.5)
    text = mine.read_text()
    for change, words in (
        (text.replace("tflops = 400", ""), "needs tflops"),
        (text.replace("2000", "-1"), "needs memory_gb_s"),
        (text.replace("1.5", "nan"), "needs price"),
        (text + "cores = 7\n", "has cores"),
        ("= 3", "can't be read"),
    ):
        mine.write_text(change)
        with pytest.raises(UserError, match=words):
            find_hardware(str(mine))


def test_a_price_has_a_source() -> None:
    assert all(bool(card.price) == bool(card.price_source) for card in HARDWARE.values())
    assert sum(card.price > 0 for card in HARDWARE.values()) >= 7


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
