"""Keeps what the scheduler side knows of one request, with its keys, which are hashed beside the
scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_core.adapters.vllm.identity import Adapter, Hashers
from cache_core.keys import ChunkHasher
from cache_core.plan import Hit
from cache_core.trace_writer import ServedRequest

# The interpreter lock is held while so many are made an array.
_SLICE_TOKENS = 4096


@dataclass(slots=True)
class RequestState:
    """The scheduler side's state of a request: ``request`` is vLLM's own object, which grows as
    tokens are generated. ``keys`` are those of its leading chunks, as far as they are hashed.
    ``saved`` counts its leading chunks that were given to the Ledger since the last failed load,
    ``used`` since it came, ``ordered`` those that were put in order since. ``epoch`` counts failed
    loads: what was computed on top of one is not saved. ``salt`` is the tenant's: blend gives
    requests another."""

    request: Any
    hasher: ChunkHasher
    adapter: Adapter = field(default_factory=Adapter)
    salt: str = ""
    keys: list[bytes] = field(default_factory=list)
    saved: int = 0
    used: int = 0
    ordered: int = 0
    epoch: int = 0
    blocks: list[int] = field(default_factory=list)
    """The request's blocks in vLLM, from token 0 on."""
    hashing: Future[list[bytes]] | None = None
    """The keys of the prompt, which are being hashed (see :class:`Hashing`)."""
    computed: int = 0
    """The number of tokens that vLLM's own prefix cache had at the latest look-up."""
    found: Hit = field(default_factory=lambda: Hit((), ()))
    """The hit of the latest look-up, after the chunks that ``computed`` covers."""
    awaited: bytes = b""
    """The chunk that the request waits for, which is being stored."""
    hits: dict[str, int] | None = None
    """The prompt tokens by tier, at the request's first scheduling."""
    waiting_since: float | None = None
    tried: frozenset[int] = frozenset()
    """The suspended tiers that the request may try."""
    blend: BlendState | None = None
    reach: int = 0
    """How many leading chunks vLLM and the latest hit have, of groups of layers."""
    branches: frozenset[int] = frozenset()
    """The chunks after which other prompts were seen to go on otherwise."""
    passing: dict[int, list[int]] = field(default_factory=dict)
    """The chunks that are kept only until the request is further, by group."""
    mixed: bool = False
    """Whether weights of more than one generation computed the request's KV: it is not saved."""
    _in_the_way: bool = False

    def lose_load(self) -> None:
        """A load has failed: what was saved and is computed on top of it is to be saved anew."""
        self.epoch += 1
        self.saved = self.ordered = 0
        self._in_the_way = True

    def stands_aside(self) -> bool:
        """Returns, once after each failed load, that the request is to be asked for again.

        vLLM (0.32) frees the blocks of a request whose load failed, but leaves it in the queue of
        those that hold some, which it serves first. If there is no room for it, and all that have
        room taken are behind it, nothing runs any more. It moves only what it has to ask again."""
        aside, self._in_the_way = self._in_the_way, False
        return aside

    def renew(self, hasher: ChunkHasher) -> None:
        """Gives the request other keys; what it has computed so far belongs to the old ones."""
        if self.hashing is not None:
            self.hashing.cancel()
        self.hasher, self.keys, self.hashing, self.awaited = hasher, [], None, b""
        self.saved = self.used = self.ordered = 0
        self.branches, self.passing = frozenset(), {}
        if self.hits is not None:  # it was scheduled
            self.epoch += 1
            self.mixed = True
        if self.blend is not None:
            self.blend.segments, self.blend.spans = [], []

    def hash_upto(self, tokens: int) -> None:
        """Extends ``keys`` to the last full chunk of the first ``tokens`` tokens."""
        self.keys += self.hashed(self.keys[-1:], len(self.keys), tokens)

    def hashed(self, last: Sequence[bytes], have: int, tokens: int) -> list[bytes]:
        """Returns prefix keys of the full chunks from number ``have`` on of the first ``tokens``
        tokens; the chunk before has the key ``last``. Changes nothing: any thread may ask."""
        size, hasher, ids = self.hasher.chunk_tokens, self.hasher, self.request.all_token_ids
        want = tokens // size
        step = max(1, _SLICE_TOKENS // size)
        keys: list[bytes] = []
        after = last[0] if last else None
        for begin in range(have, want, step):
            stop = min(begin + step, want)
            new = np.array(ids[begin * size : stop * size], dtype=np.int32)
            for first, end, beside in self._runs(begin, stop):
                if beside:
                    after = hasher.beside(after, beside)
                part = new[(first - begin) * size : (end - begin) * size]
                keys += hasher.keys(part, after=after).prefix
                after = keys[-1]
        return keys

    def upto(self, tokens: int) -> list[bytes]:
        """Returns prefix keys of the full chunks of the first ``tokens`` tokens."""
        self.hash_upto(tokens)
        return self.keys[: tokens // self.hasher.chunk_tokens]

    def served(self) -> ServedRequest:
        """Returns what a recording keeps of the request."""
        request = self.request
        prompt = int(request.num_prompt_tokens)
        try:
            keys = self.upto(prompt)
        except Exception:  # noqa: BLE001 - whatever its prompt is made of, it shares nothing
            keys = []
        return ServedRequest(
            id=request.request_id,
            arrival_s=request.arrival_time,
            input_tokens=prompt,
            output_tokens=request.num_output_tokens,
            keys=keys,
            hits=self.hits or {},
        )

    def _runs(self, first: int, last: int) -> Iterator[tuple[int, int, bytes]]:
        """Splits chunks ``first`` .. ``last`` into runs of what can be hashed at once. A chunk that
        holds more than tokens is alone, with what that is."""
        begin = first
        for chunk in range(first, min(last, -(-self._text_from() // self.hasher.chunk_tokens))):
            beside = self._beside(chunk)
            if beside:
                if begin < chunk:
                    yield begin, chunk, b""
                yield chunk, chunk + 1, beside
                begin = chunk + 1
        if begin < last:
            yield begin, last, b""

    def _text_from(self) -> int:
        """Returns the token from which on token ids say all."""
        request = self.request
        if getattr(request, "prompt_embeds", None) is not None:
            return int(request.num_prompt_tokens)
        places = [f.mm_position for f in getattr(request, "mm_features", None) or ()]
        return max((place.offset + place.length for place in places), default=0)

    def _beside(self, chunk: int) -> bytes:
        """Returns what placeholders of the chunk stand for, in vLLM's own terms: hashes of images
        and of embeddings."""
        from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys

        request, size = self.request, self.hasher.chunk_tokens
        first, last = chunk * size, (chunk + 1) * size
        found, _ = generate_block_hash_extra_keys(request, first, last, 0)
        kept = [key for key in found or () if key[0] in ("mm", "prompt_embeds")]
        if not kept:
            return b""
        # Where token ids and embeddings take turns: which position is what.
        kinds = getattr(request, "prompt_is_token_ids", None)
        return repr((kept, None if kinds is None else list(kinds[first:last]))).encode()


@dataclass(frozen=True, slots=True)
class BlendSpan:
    """Tokens ``start`` .. ``stop`` of a prompt that are held as ``hit``, whose first chunk belongs
    at token ``first``; ``shift`` is how far K has to be turned. ``lack`` is what each of the tokens
    was seen to lack; None where nothing is to be computed again."""

    start: int
    stop: int
    first: int
    hit: Hit
    shift: int
    lack: NDArray[np.float32] | None = None


@dataclass(slots=True)
class BlendState:
    """The segments of a request, and what of them is reused. ``used``: its KV is blended."""

    segments: list[BlendSegment]
    ratio: float
    spans: list[BlendSpan] = field(default_factory=list)
    exact: int = 0
    used: bool = False


@dataclass(frozen=True, slots=True)
class BlendSegment:
    """A prompt's segment: tokens ``start`` .. ``stop``, and keys of its chunks, encoded alone
    behind ``bos``, which is dropped, and of their averages, over contexts too; the last chunk may
    be shorter than the others."""

    start: int
    stop: int
    keys: tuple[bytes, ...]
    averages: tuple[bytes, ...] = ()
    bos: tuple[int, ...] = ()


# Waiting holds up every request that runs, and none if none does.
_PASS_S, _IDLE_PASS_S = 0.001, 0.02


class Hashing:
    """A thread that hashes prompts in the order in which they come."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pool = ThreadPoolExecutor(1, "lmcache-hash")
        self._left = _IDLE_PASS_S

    def begin(self, state: RequestState) -> None:
        """Begins to hash the prompt of a request that has come, or has other keys from now on."""
        self.ended(state)
        tokens = state.request.num_prompt_tokens
        if tokens >= state.hasher.chunk_tokens:
            state.hashing = self._pool.submit(state.hashed, (), 0, tokens)

    def next_pass(self, busy: bool) -> None:
        """Sets how long the next pass of the scheduler may wait for keys; ``busy``: it has requests
        that run."""
        self._left = _PASS_S if busy else _IDLE_PASS_S

    def ready(self, state: RequestState) -> bool:
        """Returns whether the request's keys are known, after a short wait. Raises what hashing
        did."""
        job = state.hashing
        if job is None:
            return True
        if not job.done() and self._left > 0:
            began = self._clock()
            wait([job], self._left)
            self._left -= self._clock() - began
        if not job.done():
            return False
        state.hashing = None
        state.keys = job.result()
        return True

    def done(self, state: RequestState) -> bool:
        """Returns whether the request's keys are known, without waiting. Raises what hashing
        did."""
        return state.hashing is None or (state.hashing.done() and self.ready(state))

    def ended(self, state: RequestState) -> None:
        """Cancels the hashing of a request that needs no keys any more."""
        if state.hashing is not None:
            state.hashing.cancel()
            state.hashing = None

    def close(self) -> None:
        """Ends the thread: nothing more is hashed."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class RequestBook:
    """The requests that a scheduler side follows, and what it counts. ``clock`` in seconds,
    monotonic."""

    def __init__(self, hashers: Hashers, clock: Callable[[], float]) -> None:
        self.counts: dict[str, float] = {}
        self._hashers, self._clock = hashers, clock
        self._hashing = Hashing(clock)
        self._requests: dict[str, RequestState] = {}
        self._uncached: set[str] = set()

    def take_counts(self) -> dict[str, float]:
        """Returns what was counted since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def _track(self, request: Any) -> RequestState | None:
        name = request.request_id
        if name in self._uncached:
            return None
        if name not in self._requests:
            adapter, salt = self._hashers.adapter(request), request.cache_salt or ""
            self._requests[name] = RequestState(request, self._hashers.of(request), adapter, salt)
        return self._requests[name]

    def _leave_uncached(self, request: Any, reason: str) -> None:
        self._requests.pop(request.request_id, None)
        self._uncached.add(request.request_id)
        self._count(f"uncached_requests:{reason}", 1)

    def _count(self, name: str, amount: float) -> None:
        self.counts[name] = self.counts.get(name, 0.0) + amount
