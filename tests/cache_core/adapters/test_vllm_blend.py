"""Blend inside unmodified vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cache_core.adapters.vllm.blend.scheduler_side import BlendScheduler, Segments, alone
from cache_core.adapters.vllm.blend.worker_side import BlendWorkerSide
from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.connector import TieredKVConnector
from cache_core.adapters.vllm.identity import Adapter, Hashers, Unsupported
from cache_core.adapters.vllm.metadata import EncodeSpec, SaveSpec, SeenDone
from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.adapters.vllm.worker.kv_blocks import TensorBlocks
from cache_core.blend.rope import Rope
from cache_core.blend.selection import Contexts
from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.ledger import Ledger
from cache_core.plan import Plan
from tests.cache_core.adapters.conftest import Scenario

pytestmark = pytest.mark.vllm

SEGMENTS = 4 * 160


@pytest.fixture(scope="module")
def blend(scenario: Scenario) -> dict[str, Any]:
    found: dict[str, Any] = scenario("blend")
    return found


def test_computing_every_reused_token_is_full_prefill(blend: dict[str, Any]) -> None:
    plain = blend["plain"]["second"]
    for way in ("ratio 0.9999", "found"):
        assert blend[way]["tokens"] == plain["tokens"], way
        assert blend[way]["logprob"] == pytest.approx(plain["logprob"], abs=1e-3)
        assert blend[way]["cached"] >= SEGMENTS


def test_what_was_seen_is_computed_again(blend: dict[str, Any]) -> None:
    """Passages are reused once they were seen in contexts; then part of them is computed."""
    cached = [asked["cached"] for asked in blend["learning"]]
    assert cached[0] == 0 and cached[-1] >= SEGMENTS - 160
    assert blend["seen"] == SEGMENTS // 32
    plain = blend["plain"]["second"]["logprob"]
    part, none = (abs(blend[f"ratio {r}"]["logprob"] - plain) for r in ("0.3", "0.0"))
    assert blend["ratio 0.3"]["cached"] >= SEGMENTS
    assert part != none


def test_a_question_on_the_same_passages_costs_its_own_tokens(blend: dict[str, Any]) -> None:
    assert blend["followed"]["cached"] >= SEGMENTS


def test_naive_reuse_is_something_else(blend: dict[str, Any]) -> None:
    gap = abs(blend["ratio 0.0"]["logprob"] - blend["plain"]["second"]["logprob"])
    assert blend["ratio 0.0"]["cached"] >= SEGMENTS
    assert gap > 1e-2


def test_requests_without_segments_are_untouched(blend: dict[str, Any]) -> None:
    assert blend["untouched"]["tokens"] == blend["plain"]["second"]["tokens"]
    assert blend["wrong"]["tokens"] == blend["plain"]["other"]["tokens"]
    # Nothing blended was there to be found: neither in vLLM's prefix cache nor in ours.
    assert blend["untouched"]["cached"] < 160


def test_blended_and_plain_requests_in_one_batch(blend: dict[str, Any]) -> None:
    second, other = blend["plain"]["second"]["tokens"], blend["plain"]["other"]["tokens"]
    assert blend["batch"] == [second, other, second]


def test_borrowed_blocks_are_given_back(blend: dict[str, Any]) -> None:
    before, after = blend["blocks"]
    assert before == after


def test_a_lost_chunk_is_computed(blend: dict[str, Any]) -> None:
    plain = blend["plain"]["third"]
    assert blend["lost"]["tokens"] == plain["tokens"]
    assert blend["lost"]["logprob"] == pytest.approx(plain["logprob"], abs=1e-3)


def test_reused_and_computed_tokens_are_counted(blend: dict[str, Any]) -> None:
    assert blend["counts"]["blend_reused_tokens"] > SEGMENTS
    assert blend["counts"]["blend_computed_tokens"] > 0


def test_4000_known_tokens_and_plain_requests_beside_blended_ones(scenario: Scenario) -> None:
    found = scenario("blend_mixed")
    full, whole = found["tokens"]
    assert found["cached"] >= 3840
    assert whole == full
    naive_kl, whole_kl = found["kl"]
    assert abs(whole_kl) < 1e-6 < 1e-3 < naive_kl
    assert found["plain"] == 25
    assert found["differ"] == []


def test_two_ranks(scenario: Scenario) -> None:
    found = scenario("blend_ranks")
    plain, whole, naive = found["plain"], found["whole"], found["naive"]
    assert whole["cached"] >= SEGMENTS
    assert whole["tokens"] == plain["tokens"]
    assert whole["logprob"] == pytest.approx(plain["logprob"], abs=1e-3)
    assert abs(naive["logprob"] - plain["logprob"]) > 1e-2
    assert found["after"]["tokens"] == plain["tokens"]


HASHER = ChunkHasher(Namespace(KVLayout(1, 1, 8, "float32", 32), "model"))


def test_kv_behind_another_bos_is_other_kv() -> None:
    keys = {alone(HASHER, bos).keys(range(32)).prefix[0] for bos in ([], [1], [2])}
    assert len(keys) == 3


def test_a_tenants_averages_are_found_by_no_other() -> None:
    """They carry what passages took from prompts."""
    hashers = Hashers(HASHER.namespace)
    found = []
    for salt in ("a", "b", ""):
        hasher = hashers.hasher(Adapter(), salt)
        [segment] = Segments(32).of([1, *TEXT, *TEXT], [[97, 193]], hasher, [1])
        found += [*segment.keys, *segment.averages]
    assert len(set(found)) == len(found) == 3 * 6


def asked(prompt: list[int], segments: list[list[int]]) -> Any:
    """A request as vLLM has it."""
    return SimpleNamespace(
        request_id="a",
        prompt_token_ids=prompt,
        all_token_ids=prompt,
        num_tokens=len(prompt),
        kv_transfer_params={"lmcache": {"segments": segments}},
        lora_request=None,
        mm_features=[],
        prompt_embeds=None,
        cache_salt=None,
        block_hashes=[],
        update_block_hashes=lambda: None,
    )


@pytest.mark.parametrize(
    ("status", "jobs"), [("STOPPED", 1), ("LENGTH_CAPPED", 1), ("ERROR", 0), ("ABORTED", 0)]
)
def test_what_was_not_computed_to_its_end_teaches_nothing(status: str, jobs: int) -> None:
    """The blocks of a request that failed may hold anything."""
    side, state = ended([1, *TEXT, *TEXT], [[97, 193]], status)
    assert len(side.encode(state, Ledger([8]), 1)) == jobs


def test_a_context_of_other_weights_teaches_nothing() -> None:
    """What vLLM's own prefix cache gave may have been computed with them."""
    side, state = ended([1, *TEXT, *TEXT], [[97, 193]])
    state.mixed = True
    assert side.encode(state, Ledger([8]), 1) == []


TEXT = list(range(3, 99))


def ended(
    prompt: list[int], segments: list[list[int]], status: str = "STOPPED"
) -> tuple[BlendScheduler, RequestState]:
    """A scheduler that may borrow blocks, and a request that has ended."""
    request = asked(prompt, segments)
    request.status = SimpleNamespace(name=f"FINISHED_{status}")
    lent = [SimpleNamespace(block_id=number) for number in range(64)]
    side = BlendScheduler(ConnectorOptions(), [1], 16)
    side.bind(
        SimpleNamespace(
            blocks=lent,
            get_num_free_blocks=lambda: len(lent),
            get_new_blocks=lambda count: lent[:count],
            touch=lambda blocks: None,
        )
    )
    state = RequestState(request, HASHER, blocks=list(range(20, 33)))
    side.prepare(state)
    return side, state


def test_what_was_seen_often_enough_is_saved_as_an_average_and_that_is_reused() -> None:
    side, state = ended([1, *TEXT[::-1], *TEXT, 7], [[97, 193]])
    assert state.blend is not None
    [segment] = state.blend.segments
    ledger = Ledger([64])
    for turn in range(4):  # each counts a half: it stands behind as many tokens as it has
        assert side.plan(state, ledger, 0) is None
        [(encode, plan)] = side.encode(state, ledger, turn)
        ledger.complete_store(plan.moves, stored=True)
        full = turn == 3
        assert encode.full is full and encode.counts == 0.5 and encode.keys == segment.keys
        stored = {0: segment.keys, 3: segment.averages}.get(turn, ())
        assert tuple(move.key for move in plan.moves) == stored
        side.saw([SeenDone(turn, (np.ones(32, dtype=np.float32),) * 3)])
    assert side.plan(state, ledger, 0) == 193
    [span] = state.blend.spans
    assert span.hit.keys == segment.averages and span.lack is not None
    # In its own place it is exact as long as that is held; else the average has to do.
    _, there = ended([1, *TEXT, 7], [[1, 97]])
    assert there.blend is not None
    for held in (True, False):
        assert side.plan(there, ledger, 0) == 97
        [*_, span] = there.blend.spans
        assert span.hit.keys == (segment.keys if held else segment.averages)
        assert (span.lack is None) is held
        for key in segment.keys:
            ledger.forget(key, 0)


def test_what_is_pushed_out_while_it_is_learnt_is_forgotten_by_all_and_seen_anew() -> None:
    """No average is saved that lacks a context which was counted."""
    side, state = ended([1, *TEXT[::-1], *TEXT, 7], [[97, 193]])
    assert state.blend is not None
    [segment], side.seen.learning, ledger = state.blend.segments, 96, Ledger([64])
    request = asked([1, *TEXT, *(number + 100 for number in TEXT), 7], [[97, 193]])
    request.status = SimpleNamespace(name="FINISHED_STOPPED")
    other = RequestState(request, HASHER, blocks=list(range(20, 33)))
    side.prepare(other)
    assert other.blend is not None
    for key in segment.keys:
        side.seen.add(key, np.zeros(32, dtype=np.float32), 1.0)
    found = []
    for number, one in enumerate((state, other, state, state)):
        assert side.plan(one, ledger, 0) is None
        [(encode, plan)] = side.encode(one, ledger, number)
        ledger.complete_store(plan.moves, stored=True)
        found.append((encode.forget, encode.full))
        side.saw([SeenDone(number, (np.ones(32, dtype=np.float32),) * 3)])
    others = other.blend.segments[0].keys
    assert found == [((), False), ((), False), (segment.keys, False), (others, False)]


def test_what_a_passages_first_chunks_push_out_of_itself_is_not_forgotten_when_seen_again() -> None:
    """Its table counts this context, so workers keep it."""
    side, state = ended([1, *TEXT[::-1], *TEXT, 7], [[97, 193]])
    assert state.blend is not None
    [segment], side.seen.learning, ledger = state.blend.segments, 64, Ledger([64])
    sums: set[bytes] = set()
    for number in range(3):
        side.plan(state, ledger, 0)
        [(encode, plan)] = side.encode(state, ledger, number)
        ledger.complete_store(plan.moves, stored=True)
        sums = (sums - set(encode.forget)) | set(encode.keys)
        side.saw([SeenDone(number, (np.ones(32, dtype=np.float32),) * 3)])
        learnt = {key for key in segment.keys if key in side.seen._known}
        assert learnt <= sums - set(side._gone) and len(learnt) == 2


@pytest.mark.parametrize("exact", [0, 129])
def test_of_what_a_prefix_had_no_average_is_saved(exact: int) -> None:
    """It is not known in this context: what would be saved is the passage alone."""
    side, state = ended([1, *TEXT[::-1], *TEXT, 7], [[97, 193]])
    assert state.blend is not None
    [segment] = state.blend.segments
    first = exact // 129
    for key in segment.keys[first:]:
        side.seen.add(key, np.zeros(32, dtype=np.float32), 1.5)
    ledger = Ledger([8])
    assert side.plan(state, ledger, exact) is None
    [(encode, plan)] = side.encode(state, ledger, 1)
    assert encode.full and encode.rows == (0, 1, 2)[first:]
    assert tuple(move.key for move in plan.moves) == segment.averages[first:]
    # Moves count from the first of them, behind the BOS and what is left out.
    assert [move.index for move in plan.moves] == [0, 1, 2][: 3 - first]
    assert encode.save.offset == 1 + 32 * first


@pytest.mark.parametrize(("ratio", "jobs"), [(0.14, 0), (0.0, 1)])
def test_a_passage_that_is_reused_as_an_average_is_not_encoded_again(
    ratio: float, jobs: int
) -> None:
    """Alone it may have been evicted: only plain reuse wants it elsewhere."""
    side, state = ended([1, *TEXT[::-1], *TEXT, 7], [[97, 193]])
    assert state.blend is not None
    [segment], state.blend.ratio = state.blend.segments, ratio
    ledger = Ledger([8])
    ledger.complete_store(ledger.prepare_store(segment.averages).moves, stored=True)
    for key in segment.keys:
        side.seen.add(key, np.zeros(32, dtype=np.float32), 2.0)
    assert side.plan(state, ledger, 0) == (193 if ratio else None)
    assert len(side.encode(state, ledger, 1)) == jobs


def test_passages_that_are_reused_outlive_those_that_are_not() -> None:
    ledger, other = Ledger([6]), [bytes([number]) * 32 for number in range(3)]
    side, state = ended([1, *TEXT[::-1], *TEXT, 7], [[97, 193]])
    assert state.blend is not None
    [segment] = state.blend.segments
    for keys in (segment.averages, other):
        ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
    for key in segment.keys:
        side.seen.add(key, np.zeros(32, dtype=np.float32), 2.0)
    assert side.plan(state, ledger, 0) == 193
    side.message(state, ledger)
    assert set(ledger.keys(0)[:3]) == set(other)


def test_a_worker_leaves_the_average_in_lent_blocks() -> None:
    torch.manual_seed(0)
    caches = [torch.randn(8, 2, 16, 8) for _ in range(3)]
    blocks, rope = TensorBlocks(caches, 32), Rope([1.0, 0.1])

    def kv(table: list[int], start: int) -> torch.Tensor:
        """[layers, K and V, heads, 40 tokens, 4]"""
        flat = torch.stack([c[table].transpose(1, 2).flatten(0, 1) for c in caches])
        k, v = flat[:, start : start + 40].transpose(1, 2).chunk(2, dim=-1)
        return torch.stack([k, v], 1)

    side = object.__new__(BlendWorkerSide)
    side.forward = SimpleNamespace(rope=rope)  # type: ignore[assignment]
    side._block_tokens, side._size, side._contexts = 16, 32, Contexts()
    context, lent = np.array([5, 6, 7, 4], dtype=np.int32), np.array([0, 1, 2], dtype=np.int32)
    alone, seen = kv([0, 1, 2], 1), kv([5, 6, 7, 4], 20)
    seen[:, 0] = rope.rotate(seen[:, 0], 1 - 20)
    tokens = np.zeros(41, dtype=np.int32)
    first = [cache.clone() for cache in caches]
    keys = (b"a", b"b")
    for forget, contexts in ((), 2), (keys, 1):
        for turn, full in enumerate((False, True)):
            save = SaveSpec(turn, "a", 0, Plan(()), lent, 1)
            look = (20, 40, (0, 1), keys, 1.0, full, forget if full else ())
            done = side._see(EncodeSpec(save, tokens, context, *look), blocks)
            assert [len(lack) for lack in done.lacks] == [32, 8]
            wanted = (alone + contexts * seen) / (1 + contexts) if full else alone
            torch.testing.assert_close(kv([0, 1, 2], 1), wanted, rtol=1e-4, atol=1e-4)
        for cache, before in zip(caches, first, strict=True):
            cache.copy_(before)  # as it is encoded alone again


@pytest.mark.parametrize(("held", "stop"), [(3, 193), (1, None)])
def test_nothing_before_a_question_is_computed_but_what_lacks(held: int, stop: int | None) -> None:
    """A BOS is held too, but is no reason by itself to blend a prompt, which would not be saved."""
    ledger = Ledger([64])
    side, state = ended([1, *TEXT, *TEXT[::-1], 7, 8], [[1, 97], [97, 193]])
    assert state.blend is not None
    for segment in state.blend.segments[:held]:
        for keys in (segment.keys, segment.averages):
            ledger.complete_store(ledger.prepare_store(keys).moves, stored=True)
        for key in segment.keys:
            side.seen.add(key, np.zeros(32, dtype=np.float32), 2.0)
    assert side.plan(state, ledger, 0) == stop
    if stop is not None:
        state.blend.ratio = 0.001  # of 96 tokens that is none
        assert list(side.message(state, ledger).positions) == []


def test_the_connector_of_another_engine_is_refused() -> None:
    """vLLM hands a process's first connector to a second engine, whose model it does not run."""
    connector: Any = object.__new__(TieredKVConnector)
    connector._options, connector.worker = ConnectorOptions(blend=True), SimpleNamespace()
    with pytest.raises(Unsupported, match="end that first"):
        connector.register_kv_caches({})
    connector.worker = None
