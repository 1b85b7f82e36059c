"""What is refused by name, what salts the keys, and what Prometheus is shown."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def found(scenario: Scenario) -> dict[str, Any]:
    outcome: dict[str, Any] = scenario("identity")
    return outcome


KEPT = {
    "full": "all, token by token",
    "hybrid": "all, window 64; chunks of 64",
    "window": "window 64; chunks of 64",
    "local": "all, local 96; chunks of 64",
    "mla": "all; chunks of 64",
    "mla, amx": "all; chunks of 64",
    "mla window": "window 64; chunks of 64",
    "quantised": "all; chunks of 64",
    "padded": "all; chunks of 64",
    "mamba": "all, state; chunks of 64",
}
REFUSED = {
    "mamba, not aligned": "--mamba-cache-mode align",
    "mamba, drafts": "with speculative decoding",
    "cross": "CrossAttentionSpec is not supported; these kinds are: FullAttentionSpec, ",
    "replayed": "SlidingWindowMLASpec whose window vLLM computes again",
    "not causal": "FullAttentionSpec that is not causal",
    "on the host": "HiSparse",
    "mla, cpu": "MLA on vLLM's CPU backend without AMX",
    "context": "decode_context_parallel_size > 1 is not supported",
    "layerwise": '"layerwise" is not supported where layers keep different things',
    "codec": 'codec "int8" is not supported where layers keep different things',
    "sync": 'load "sync" is not supported where layers keep different things',
    "blend": '"blend" is not supported where layers keep different things',
}


@pytest.mark.parametrize("kind", KEPT)
def test_kv_is_kept_by_what_its_layers_need(found: dict[str, Any], kind: str) -> None:
    """In chunks that are whole blocks of each group, where tokens can't be told apart."""
    assert found["kinds"][kind] == KEPT[kind]


@pytest.mark.parametrize("kind", REFUSED)
def test_the_rest_is_refused_by_name(found: dict[str, Any], kind: str) -> None:
    assert REFUSED[kind] in found["kinds"][kind]


def test_no_kind_is_left_out(found: dict[str, Any]) -> None:
    assert found["kinds"].keys() == KEPT.keys() | REFUSED.keys()


def test_tenants_adapters_and_formats_have_keys_of_their_own(found: dict[str, Any]) -> None:
    keys, again, other = found["keys"][:5], found["keys"][5:10], found["keys"][10]
    assert keys == again
    assert len({*keys, other}) == 6


@pytest.mark.parametrize("what", ["default", "yarn", "llama3", "weights", "its own place"])
def test_a_certificate_from_transformers_is_taken(found: dict[str, Any], what: str) -> None:
    assert found["certificates"][what] == "taken"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("dtype", "dtype differ"),
        ("rope", "rope differ"),
        ("failed", "failed 'a gate'"),
        ("none", "is not verified yet"),
    ],
)
def test_without_a_certificate_blend_is_refused(
    found: dict[str, Any], what: str, words: str
) -> None:
    text = found["certificates"][what]
    assert words in text and "run: lmcache verify blend --model" in text


def test_counters_are_exposed(found: dict[str, Any]) -> None:
    lines = found["metrics"].splitlines()
    assert 'lmcache:hit_tokens_total{engine="0",tier="cpu"} 100.0' in lines
    assert 'lmcache:read_bytes_total{engine="0",tier="disk"} 5.0' in lines
    assert 'lmcache:uncached_requests_total{engine="0",reason="adapter_unknown"} 2.0' in lines
    assert 'lmcache:prefill_seconds_saved_total{engine="0"} 1.5' in lines


def test_the_latest_gauge_counts_and_is_no_sum(found: dict[str, Any]) -> None:
    lines = found["metrics"].splitlines()
    assert 'lmcache:held_chunks{engine="0",tier="disk"} 4.0' in lines
    assert 'lmcache:pinned_chunks{engine="0"} 3.0' in lines
    assert 'lmcache:evictions_total{engine="0",tier="disk"} 2.0' in lines


def test_histograms_lose_no_observation_of_any_rank(found: dict[str, Any]) -> None:
    lines = found["metrics"].splitlines()
    bucket = 'lmcache:load_seconds_bucket{engine="0",le="%s",tier="disk"} %s'
    for bound, count in (("0.01", 0.0), ("0.03", 3.0), ("0.1", 6.0), ("30.0", 6.0), ("+Inf", 7.0)):
        assert bucket % (bound, count) in lines
    sums = [line for line in lines if line.startswith("lmcache:load_seconds_sum")]
    assert float(sums[0].split()[-1]) == pytest.approx(99.36)
    # On the bound itself, which belongs to the bucket.
    assert 'lmcache:lookup_seconds_bucket{engine="0",le="1e-05"} 1.0' in lines
    log = found["histories"]["log"]
    assert log["lmcache_load_seconds_disk_count"] == 7
    assert log["lmcache_load_seconds_disk_sum"] == pytest.approx(99.36)
    assert log["lmcache_held_chunks_disk"] == 4


def test_what_a_step_carries_of_a_histogram_is_bounded(found: dict[str, Any]) -> None:
    assert found["histories"]["carried"] == 2 * 15
