"""The scheduler's saves beside a stand-in for vLLM's block pool. Prints one JSON object."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

from cache_core.adapters.vllm.blend.scheduler_side import BlendScheduler
from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.metadata import StepMeta
from cache_core.adapters.vllm.scheduler.lookup import TierLookup
from cache_core.adapters.vllm.scheduler.request_state import BlendSegment, BlendState, RequestState
from cache_core.adapters.vllm.scheduler.saver import Saver
from cache_core.adapters.vllm.scheduler.transfer_state import TransferState
from cache_core.ledger import Ledger
from tests.cache_core.memory_engine import key

SIZE = BLOCK = 16
OPTIONS = ConnectorOptions.parse({"cpu_size": "1GiB", "chunk_tokens": SIZE})


class World:
    """A saver of one request with ``chunks`` chunks, in blocks of as many tokens."""

    def __init__(self, chunks: int) -> None:
        self.ledger = Ledger([64])
        self.transfers = TransferState(1)
        tokens = list(range(chunks * SIZE))
        request = SimpleNamespace(
            request_id="first",
            prompt_token_ids=tokens,
            all_token_ids=tokens,
            num_tokens=len(tokens),
            status=SimpleNamespace(name="FINISHED_STOPPED"),
        )
        hasher = cast(Any, SimpleNamespace(chunk_tokens=SIZE))
        self.state = RequestState(request, hasher, keys=[key(n) for n in range(chunks)])
        self.state.blocks = list(range(1, chunks + 1))
        hashers = cast(Any, SimpleNamespace(adapter=lambda request: self.state.adapter))
        lookup = TierLookup(OPTIONS, self.ledger, None, BLOCK, lambda plan: None, lambda: 0.0)
        self.saver = Saver(
            self.ledger, lookup, hashers, self.transfers, BLOCK, 1 << 20, lambda name, amount: None
        )


def lent_blocks() -> dict[str, Any]:
    """vLLM lends blocks for encoding that a save still reads, and others."""
    world = World(4)
    save = world.saver.save(world.state, 4)
    assert save is not None
    free = [SimpleNamespace(block_id=number) for number in (2, 3, 9, 10, 11, 12)]
    kept: list[Any] = []
    pool = SimpleNamespace(
        get_num_free_blocks=lambda: len(free),
        get_new_blocks=lambda count: [free.pop(0) for _ in range(count)],
        free_blocks=free.extend,
        blocks=[SimpleNamespace(block_id=number) for number in range(16)],
        touch=kept.extend,
    )
    blend_scheduler = BlendScheduler(OPTIONS, (), BLOCK)
    blend_scheduler.bind(pool)
    segments = [
        BlendSegment(first * SIZE, (first + 1) * SIZE, (key(100 + first),)) for first in (0, 1)
    ]
    world.state.blend = BlendState(segments, 0.1)
    meta = StepMeta(1)
    world.saver.encode(world.state, blend_scheduler, meta)
    first = sorted(meta.after)
    world.saver.free(save.id)
    world.state.blend = BlendState([BlendSegment(0, SIZE, (key(200),))], 0.1)
    later = StepMeta(2)
    world.saver.encode(world.state, blend_scheduler, later)
    blocks = [encode.save.blocks.tolist() for encode in meta.encodes]
    seen = [(encode.rows, encode.context.tolist()) for encode in meta.encodes]
    return {
        "save": save.id,
        "after": first,
        "blocks": blocks,
        "freed": sorted(later.after),
        "seen": seen,
        "kept": [block.block_id for block in kept],
    }


def behind_blend() -> list[bool]:
    """Whether a request with segments is saved that computed all of its KV, and one whose start
    vLLM's own prefix cache had, where it is found under a salt of blend's."""
    saved = []
    for computed in (0, SIZE):
        world = World(4)
        world.state.blend, world.state.computed = BlendState([], 0.1), computed
        saved.append(world.saver.save(world.state, 4) is not None)
    return saved


def counted() -> dict[str, Any]:
    """What each admission says that the request has used before: saved in parts, and once more
    from the start, since a load failed."""
    world = World(8)
    said: list[tuple[int, int, int]] = []
    admit = world.ledger.prepare_store

    def admits(keys: Any, counted: int = 0, **where: Any) -> Any:
        said.append((where["depth"], len(keys), counted))
        return admit(keys, counted, **where)

    cast(Any, world.ledger).prepare_store = admits
    world.saver.save(world.state, 3)
    world.saver.save(world.state, 5)
    world.state.saved = world.state.ordered = 0
    world.saver.save(world.state, 4)
    world.saver.save(world.state, 8)
    return {"said": said}


if __name__ == "__main__":
    print(json.dumps({"lent": lent_blocks(), "counted": counted(), "blend": behind_blend()}))
