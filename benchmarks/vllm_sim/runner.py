"""A model runner without a model: KV that names the prefix it belongs to, read in every step.

The KV of a token is a fingerprint of all tokens before it, of the weights' version and of the
request's salt. A step reads the fingerprints of every token that attention would read; if one is
not what it must be, everything that is computed from there on is as wrong as a real model's would
be, and so is the sampled token. Whoever compares outputs with :func:`expected` sees each byte that
was wrong and mattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.vllm_sim.layers import FakeKV, Hashes

VOCABULARY = 2048
FIRST_TOKEN = 3  # what comes before it is special
_POISON = 0xBAD
_MASK = (1 << 64) - 1


def after(state: int, token: int) -> int:
    """The fingerprint, of 48 bits, of a prefix that is one token longer."""
    # SplitMix64 (Steele et al. 2014): nobody chooses tokens to make prefixes collide here.
    mixed = (state * 0x9E3779B97F4A7C15 + token + 1) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed >> 16


def root(version: int, salt: str | None) -> int:
    """The fingerprint of the empty prefix, under some weights and for some salt."""
    return after(version, sum(map(ord, salt or "")))


def sample(state: int) -> int:
    """The token that follows a prefix."""
    return state % (VOCABULARY - FIRST_TOKEN) + FIRST_TOKEN


def expected(prompt: Sequence[int], count: int, start: int) -> list[int]:
    """The ``count`` tokens that must follow ``prompt``; ``start`` is its :func:`root`."""
    state = start
    for token in prompt:
        state = after(state, token)
    tokens = []
    for _ in range(count):
        tokens.append(sample(state))
        state = after(state, tokens[-1])
    return tokens


@dataclass(slots=True)
class _State:
    """What the runner itself knows of a request: its tokens, those that it has sampled too."""

    tokens: list[int]
    start: int
    prompt: int
    tables: list[list[int]]
    computed: int = 0
    states: Hashes = field(default_factory=list)

    def true_states(self) -> Hashes:
        while len(self.states) < len(self.tokens):
            last = self.states[-1] if self.states else self.start
            self.states.append(after(last, self.tokens[len(self.states)]))
        return self.states

    def cut(self, tokens: int) -> None:
        del self.tokens[tokens:]
        del self.states[tokens:]


class FakeRunner:
    """Follows vLLM's model runner: its view of requests, the order of the connector's calls within
    a step, and what it does with tokens that the scheduler takes back. ``connector`` has the
    worker's role."""

    def __init__(self, connector: Any, kv: FakeKV) -> None:
        self.version = 0
        self.salts: dict[str, str | None] = {}
        """Each request's salt: its KV is another's."""
        self.reads_wrong = 0
        """Steps of a request that read KV that was not right (what it led to may be discarded)."""
        self._connector, self._kv = connector, kv
        self._requests: dict[str, _State] = {}

    def execute(self, step: Any) -> Any:
        """Runs a ``SchedulerOutput``; returns a ``ModelRunnerOutput``."""
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        connector = self._connector
        connector.handle_preemptions(step.kv_connector_metadata)
        connector.bind_connector_metadata(step.kv_connector_metadata)
        self._kv.zero(step.new_block_ids_to_zero or ())
        for copied in step.kv_cache_block_copies or ():
            self._kv.copy(copied.src_block_id, copied.dst_block_id)
        self._update(step)
        if step.has_sync_kv_loads:
            connector.start_load_kv(None)
        names = list(step.num_scheduled_tokens)
        sampled = [self._compute(step, name) for name in names]
        if not step.has_sync_kv_loads:
            connector.start_load_kv(None)
        connector.wait_for_save()
        moved = connector.get_transfer_results(step.finished_req_ids)
        told = KVConnectorOutput(
            finished_sending=moved.finished_sending,
            finished_recving=moved.finished_recving,
            failed_recving=moved.failed_recving,
            invalid_block_ids=connector.get_block_ids_with_load_errors(),
            kv_connector_worker_meta=connector.build_connector_worker_meta(),
            kv_connector_stats=connector.get_kv_connector_stats(),
        )
        connector.clear_connector_metadata()
        for name in step.finished_req_ids:
            self._requests.pop(name, None)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=sampled,
            kv_connector_output=told,
        )

    def _update(self, step: Any) -> None:
        for new in step.scheduled_new_reqs:
            tokens = list(new.prompt_token_ids)
            start = root(self.version, self.salts.get(new.req_id))
            self._requests[new.req_id] = _State(
                tokens,
                start,
                len(tokens),
                [list(blocks) for blocks in new.block_ids],
                new.num_computed_tokens,
            )
        cached = step.scheduled_cached_reqs
        for index, name in enumerate(cached.req_ids):
            state = self._requests[name]
            outputs, blocks = cached.num_output_tokens[index], cached.new_block_ids[index]
            state.computed = cached.num_computed_tokens[index]
            state.cut(state.prompt + outputs)
            if name in cached.resumed_req_ids:
                state.tables = [list(table) for table in blocks]
                # The weights may have changed since.
                state.states, state.start = [], root(self.version, self.salts.get(name))
            elif blocks is not None:
                for table, new_blocks in zip(state.tables, blocks, strict=True):
                    table += new_blocks
            if outputs and name in cached.all_token_ids:
                state.cut(state.prompt)
                state.tokens += cached.all_token_ids[name][-outputs:]

    def _compute(self, step: Any, name: str) -> list[int]:
        state = self._requests[name]
        drafts = step.scheduled_spec_decode_tokens.get(name, [])
        begin = state.computed
        end = begin + step.num_scheduled_tokens[name] - len(drafts)
        known = state.true_states()
        last = known[begin - 1] if begin else state.start
        if self._kv.wrong(state.tables, known[:begin]):
            self.reads_wrong += 1
            last = after(last, _POISON)
        states = []
        for token in state.tokens[begin:end]:
            last = after(last, token)
            states.append(last)
        self._kv.write(state.tables, begin, states)
        if end < len(state.tokens):
            return []
        tokens = [sample(last)]
        for place, draft in enumerate(drafts):
            # A draft's KV is written whether or not it is accepted.
            last = after(last, draft)
            self._kv.write(state.tables, end + place, [last])
            if draft != tokens[-1]:
                break
            tokens.append(sample(last))
        state.tokens += tokens
        return tokens
