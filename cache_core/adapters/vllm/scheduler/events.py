"""Makes KV events for routers that look at caches: which of vLLM's blocks each tier can serve."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_events import (
    MEDIUM_CPU,
    MEDIUM_STORAGE,
    BlockRemoved,
    BlockStored,
    KVCacheEvent,
)
from vllm.v1.core.kv_cache_utils import (
    generate_block_hash_extra_keys,
    maybe_convert_block_hash,
    to_event_extra_keys,
)
from vllm.v1.kv_offload.base import Locality

from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.ledger import NOWHERE, Hit, Ledger, Plan

# As vLLM's own offloading names its tiers.
_MEDIA: dict[str, tuple[str, str | None]] = {
    "cpu": (MEDIUM_CPU, None),
    "disk": (MEDIUM_STORAGE, Locality.LOCAL.value),
    "remote": (MEDIUM_STORAGE, Locality.REMOTE.value),
}
_GROUP, _KIND = 0, "full_attention"


@dataclass(slots=True, eq=False)
class _Block:
    """One of vLLM's blocks, number ``index`` of its prompt; routers know it as ``name``. ``chains``
    are the runs of chunks any of which its KV can be loaded from, by their last chunk; ``told``
    the tiers that it was announced in, as bits."""

    hash: bytes
    name: Any
    parent: bytes | None
    index: int
    tokens: array[int]
    lora: Any
    extra: tuple[Any, ...] | None
    chains: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    told: int = 0


class Events:
    """Reports what of ``ledger`` can be served, in vLLM's own blocks of ``block_tokens``.

    The Ledger is the only source: a block is in a tier if each of its chunks is there or in a
    faster one, and one of them is there. It is announced once, however many chunks hold it, and
    removed when the last is gone. What an earlier process or another engine stored is known by
    chunk alone, and announced when a request first loads it: only that says which blocks it is.
    """

    def __init__(
        self, ledger: Ledger, tiers: Sequence[str], chunk_tokens: int, block_tokens: int
    ) -> None:
        self._ledger = ledger
        self._media = [_MEDIA[name] for name in tiers]
        self._chunk, self._block = chunk_tokens, block_tokens
        self._blocks: dict[bytes, _Block] = {}
        self._of_chunk: dict[bytes, list[_Block]] = {}
        self._found: list[_Block] = []
        self._cleared = False
        ledger.follow()

    def saving(self, state: RequestState, plan: Plan) -> None:
        """Remembers the request's blocks whose chunks the plan stores: keys and tokens are
        known."""
        if state.blend is not None:
            return  # vLLM knows its blocks by a salt that no other request has
        stored = {move.index for move in plan.moves if move.target != NOWHERE and move.index >= 0}
        for chunk in stored:
            first, last = chunk * self._chunk, (chunk + 1) * self._chunk
            # Those that end in it: whoever saves it has what they begin in.
            for block in range(first // self._block, last // self._block):
                self._describe(state, block)

    def found(self, state: RequestState, first: int, hit: Hit) -> None:
        """Remembers the blocks that the request loads from this hit, which begins with its chunk
        ``first``: it may be of chunks that nobody has described."""
        if state.blend is not None:
            return
        begin, end = first * self._chunk, (first + len(hit)) * self._chunk
        for block in range(-(-begin // self._block), end // self._block):
            described = self._describe(state, block)
            if described is not None:
                self._found.append(described)

    def cleared(self) -> None:
        """Has :meth:`take` announce anew what tiers still hold: vLLM tells routers that everything
        is gone (``AllBlocksCleared``)."""
        self._cleared = True

    def take(self) -> list[KVCacheEvent]:
        """Returns events of what changed since the last call: stored blocks, then removed ones."""
        touched: Iterable[_Block] = dict.fromkeys(
            block for key in self._ledger.changed() for block in self._of_chunk.get(key, ())
        ) | dict.fromkeys(self._found)
        if self._cleared:
            touched = list(self._blocks.values())
            for block in touched:
                block.told = 0
        self._cleared, self._found = False, []
        stored: list[list[_Block]] = [[] for _ in self._media]
        removed: list[list[_Block]] = [[] for _ in self._media]
        for block, now in self._where(touched):
            for tier in range(len(self._media)):
                bit = 1 << tier
                if (now ^ block.told) & bit:
                    (stored if now & bit else removed)[tier].append(block)
            block.told = now
        events: list[KVCacheEvent] = []
        for tier, blocks in enumerate(stored):
            events += [self._stored(tier, run) for run in _runs(blocks)]
        events += [self._removed(tier, blocks) for tier, blocks in enumerate(removed) if blocks]
        return events

    def _describe(self, state: RequestState, number: int) -> _Block | None:
        """Remembers and returns the request's block ``number``; None if known, or without a
        hash."""
        request, size = state.request, self._block
        hashes = request.block_hashes
        if number >= len(hashes):
            return None
        start, stop = number * size, (number + 1) * size
        first, last = start // self._chunk, -(-stop // self._chunk)
        chain = tuple(state.keys[first:last])
        block = self._blocks.get(hashes[number])
        if block is None:
            extra, _ = generate_block_hash_extra_keys(request, start, stop, 0)
            block = _Block(
                hashes[number],
                maybe_convert_block_hash(hashes[number]),
                hashes[number - 1] if number else None,
                number,
                array("i", request.all_token_ids[start:stop]),
                request.lora_request,
                extra,
            )
            self._blocks[block.hash] = block
        elif chain[-1] in block.chains:
            return None
        block.chains[chain[-1]] = chain
        for key in chain:
            blocks = self._of_chunk.setdefault(key, [])
            if block not in blocks:
                blocks.append(block)
        return block

    def _where(self, blocks: Iterable[_Block]) -> list[tuple[_Block, int]]:
        """Returns each block, and the tiers that can serve it, as bits. Forgets those that none
        will."""
        blocks = list(blocks)
        keys = list(
            dict.fromkeys(key for b in blocks for chain in b.chains.values() for key in chain)
        )
        at = dict(zip(keys, self._ledger.where(keys), strict=True))
        found = []
        for block in blocks:
            now = 0
            for last, chain in list(block.chains.items()):
                if at[last] == (0, 0):
                    self._forget(block, last)
                else:
                    now |= _servable([at[key][0] for key in chain])
            found.append((block, now))
        return found

    def _forget(self, block: _Block, last: bytes) -> None:
        chain = block.chains.pop(last)
        kept = {key for other in block.chains.values() for key in other}
        for key in chain:
            if key not in kept:
                blocks = self._of_chunk[key]
                blocks.remove(block)
                if not blocks:
                    del self._of_chunk[key]
        if not block.chains:
            del self._blocks[block.hash]

    def _stored(self, tier: int, run: Sequence[_Block]) -> BlockStored:
        medium, locality = self._media[tier]
        first, lora = run[0], run[0].lora
        return BlockStored(
            block_hashes=[block.name for block in run],
            parent_block_hash=first.parent and maybe_convert_block_hash(first.parent),
            token_ids=[token for block in run for token in block.tokens],
            block_size=self._block,
            lora_id=lora.adapter_id if lora else None,
            medium=medium,
            lora_name=lora.name if lora else None,
            extra_keys=to_event_extra_keys(block.extra for block in run),
            group_idx=_GROUP,
            kv_cache_spec_kind=_KIND,
            locality=locality,
        )

    def _removed(self, tier: int, blocks: Sequence[_Block]) -> BlockRemoved:
        medium, locality = self._media[tier]
        return BlockRemoved(
            [block.name for block in blocks], medium, group_idx=_GROUP, locality=locality
        )


def _servable(held: Sequence[int]) -> int:
    """Returns, as bits, the tiers that a run of chunks is in as a whole, if need be with the help
    of faster ones. ``held`` are each chunk's tiers, as bits."""
    if 0 in held:
        return 0
    slowest = max(tiers & -tiers for tiers in held)
    some = 0
    for tiers in held:
        some |= tiers
    return some & -slowest


def _runs(blocks: Iterable[_Block]) -> list[list[_Block]]:
    """Groups blocks into runs that continue each other, parents first: a router must know those."""
    runs: list[list[_Block]] = []
    ending: dict[bytes, list[_Block]] = {}
    for block in sorted(blocks, key=lambda block: block.index):
        run = ending.pop(block.parent, None) if block.parent is not None else None
        if run is None:
            runs.append(run := [])
        run.append(block)
        ending[block.hash] = run
    return runs
