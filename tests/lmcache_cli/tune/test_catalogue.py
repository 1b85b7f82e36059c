"""Models and accelerators by name, and models by their configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmcache_cli.errors import UserError
from lmcache_cli.tune.catalogue import (
    ARCHITECTURES,
    HARDWARE,
    Architecture,
    Hardware,
    architecture_of,
    find_architecture,
    find_hardware,
)


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
    assert found.kv_bytes() == 131_072 and found.hit_bytes(4096) == 131_072 * 511
    assert found.pair_flops() == 0 and found.token_flops() > 2 * found.active
    unused = architecture_of(inner | {"use_sliding_window": False}, "wide")
    assert unused.hit_bytes(4096) == 131_072 * 4096 and unused.pair_flops() > 0
    late = inner | {"use_sliding_window": True, "max_window_layers": 28}
    assert [(k.layers, k.keeps) for k in architecture_of(late, "late").kept] == [
        (28, "all"),
        (4, "window"),
    ]


PUBLISHED = {
    "gpt-oss-20b": 20.91, "gpt-oss-120b": 116.83, "gemma-4-31b": 30.7, "qwen3-next-80b-a3b": 80,
    "granite-4.0-h-small": 32, "nvidia-nemotron-3-nano-30b-a3b": 31.6, "kimi-k2": 1026,
    "ai21-jamba-1.5-mini": 52, "ai21-jamba-1.5-large": 398, "glm-4.5-air": 106, "llama-4-maverick":
    400, "deepseek-v3.2": 671, "gemma-3-27b": 27, "nemotron-h-8b": 8.1,
}  # fmt: skip
"""Billions of parameters as their makers say."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_fields_of_the_catalogue_give_what_makers_say(name: str) -> None:
    [found] = [found for key, found in ARCHITECTURES.items() if key.startswith(name)]
    assert found.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.02)
    assert found.active <= found.parameters and "on Hugging Face (not read; " in found.source


@pytest.mark.parametrize(
    ("name", "all_bytes", "span_bytes", "span", "state_bytes"),
    [
        ("gpt-oss-20b", 12 * 2048, 12 * 2048, 128, 0),
        ("gemma-3-27b-it", 10 * 8192, 52 * 8192, 1024, 0),
        ("gemma-4-31b-it", 10 * 8192, 50 * 16384, 1024, 0),
        ("llama-4-scout-17b-16e", 12 * 4096, 36 * 4096, 8192, 0),
        ("deepseek-v3.2", 61 * (1152 + 132), 0, None, 0),
        # 32 heads of 128 x 128 and 3 rows of 8,192, in 16 bits.
        ("qwen3-next-80b-a3b-instruct", 12 * 2048, 0, None, 36 * 2 * (32 * 128 * 128 + 3 * 8192)),
        # The same in 24 layers, the heads' in 32 bits.
        ("qwen3.5-9b", 8 * 4096, 0, None, 24 * (4 * 32 * 128 * 128 + 2 * 3 * 8192)),
        ("ai21-jamba-1.5-mini", 4 * 4096, 0, None, 28 * 2 * 8192 * (16 + 3)),
    ],
)
def test_what_layers_keep(
    name: str, all_bytes: int, span_bytes: int, span: int | None, state_bytes: int
) -> None:
    found = find_architecture(name)
    everything = [kind for kind in found.kept if kind.keeps == "all"]
    assert sum(kind.layers * kind.token_bytes() for kind in everything) == all_bytes
    spans = [kind for kind in found.kept if kind.keeps in ("window", "local")]
    assert sum(kind.layers * kind.token_bytes() for kind in spans) == span_bytes
    assert {kind.span for kind in spans} == ({span} if span else set())
    assert found.state_bytes() == state_bytes == found.state_bytes(item_bytes=1)
    assert found.kv_bytes() == all_bytes + span_bytes
    # 20,000 tokens: spans of Llama 4 begin at 16,384.
    seen = 0 if span is None else 20_000 % span if span == 8192 else span - 1
    assert found.hit_bytes(20_000) == 20_000 * all_bytes + seen * span_bytes + state_bytes
    layers = found.kept_layers()
    assert sum(layer.token_bytes for layer in layers) == found.kv_bytes()
    assert sum(layer.state_bytes for layer in layers) == found.state_bytes()


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


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Llama-3.3-70B", "llama-3.3-70b-instruct"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1"),
        ("DeepSeek-V3.2", "deepseek-v3.2"),
        ("openai/gpt-oss-120b", "gpt-oss-120b"),
        ("google/gemma-3-27b", "gemma-3-27b-it"),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4-scout-17b-16e"),
        ("moonshotai/Kimi-K2-Instruct-0905", "kimi-k2-instruct"),
        ("Qwen3-Next-80B-A3B-Thinking", "qwen3-next-80b-a3b-instruct"),
    ],
)
def test_a_tuned_model_is_its_base(said: str, name: str) -> None:
    assert find_architecture(said) is ARCHITECTURES[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_size": None}, "has no hidden_size"),
        ({"num_experts": 8}, "has no num_experts_per_tok or experts_per_token"),
        ({"linear_num_key_heads": 16}, "has linear_num_key_heads, which can't be sized"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "has no mamba_d_state"),
        ({"layer_types": ["full_attention", "retention"]}, "has layers of retention"),
        ({"layer_types": ["sliding_attention"]}, "has no sliding_window"),
        ({"attn_layer_period": 8}, "has no attn_layer_offset"),
        ({"sliding_window": 512, "lru_width": 2560}, "has lru_width"),
        ({"compress_ratios": [4, 128]}, "has compress_ratios"),
        ({"moe_num_experts": 64, "moe_k": 6}, "has moe_k, moe_num_experts"),
        ({"lru_width": 2560}, "has lru_width"),
        (
            {
                "kv_lora_rank": 512,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "qk_nope_head_dim": 128,
                "index_head_dim": 128,
            },
            "has no index_n_heads",
        ),
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


def test_every_entry_says_what_it_was_compared_with() -> None:
    entries: list[Hardware | Architecture] = [*HARDWARE.values(), *ARCHITECTURES.values()]
    for found in entries:
        source, _, how = found.source.partition(" (not read; compared with ")
        assert source and how.endswith(")"), found.name


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"--hardware: 'h1000' is not known.*h100"):
        find_hardware("h1000")
    with pytest.raises(UserError, match="is not in the catalogue"):
        find_architecture("gpt-2")
    with pytest.raises(UserError, match=r"; did you mean llama-3\.1-8b\? Else use one of"):
        find_architecture("llama3.1-8b")
    with pytest.raises(UserError, match=r"; did you mean h100\? Else use one of"):
        find_hardware("h1000")
    with pytest.raises(UserError, match=r"here; use one of"):
        find_architecture("zzzz")


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
        ("tflops = 400\n", "needs link_gb_s, memory_gb_s, memory_gib, numbers above 0, as in link"),
        (text + "cores = 7\n", "has cores"),
        ("= 3", "can't be read"),
    ):
        mine.write_text(change)
        with pytest.raises(UserError, match=words):
            find_hardware(str(mine))


def test_a_price_has_a_source() -> None:
    assert all(bool(card.price) == bool(card.price_source) for card in HARDWARE.values())
    assert sum(card.price > 0 for card in HARDWARE.values()) >= 7
