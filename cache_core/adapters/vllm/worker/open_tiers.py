"""Opens the tiers of one worker."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.tiers import DiskTier, MemoryTier, NullTier, Tier, TierInUse
from cache_core.tiers.memory import Memory, SlabMemory
from cache_core.tiers.plugin import open_plugin
from cache_core.tiers.remote.url import open_remote
from cache_core.tiers.tier import Read
from cache_core.tiers.wrappers import CodedTier, Wrapper
from cache_core.trace_writer import TraceWriter
from cache_core.transfer.chunks import ChunkBuffers
from cache_core.transfer.codec import Codec

logger = logging.getLogger("vllm.lmcache")


def open_tiers(
    options: ConnectorOptions,
    chunk_bytes: int,
    namespace: bytes,
    rank: int,
    ranks: int,
    codec: Codec | None = None,
    memory: Callable[[], Memory] = SlabMemory,
    replica: int = 0,
) -> list[Tier]:
    """Opens the tiers of one worker, fastest first. ``chunk_bytes`` are the engine's; with
    ``codec`` tiers keep coded chunks, and the cpu tier's are in ``memory``. Each data-parallel
    ``replica`` has a disk tier of its own. A disk tier that another engine has open is left out,
    with a warning: it holds nothing. Raises ``TierError``, ``OSError`` or ``MemoryError``, and
    ``ValueError`` for a size that holds no chunk."""
    if codec is not None:
        chunk_bytes = codec.coded_bytes
    tiers: list[Tier] = []
    try:
        for name in options.tier_names:
            if name == "cpu":
                room = options.cpu_size // chunk_bytes
                if room < 1:
                    raise ValueError(
                        f"cpu_size {options.cpu_size} holds no chunk of {chunk_bytes} bytes"
                    )
                tiers.append(MemoryTier("cpu", room, chunk_bytes, memory()))
            elif name == "disk":
                tiers.append(_disk(options, chunk_bytes, namespace, replica, rank))
            else:
                tiers.append(open_remote_tier(options, chunk_bytes, rank, ranks))
    except BaseException:
        for tier in tiers:
            tier.close()
        raise
    return tiers if codec is None else [CodedTier(tier, codec) for tier in tiers]


def of_replica(path: Path, replica: int) -> Path:
    """Returns a file's or folder's name for a data-parallel replica; the first one's is as it
    is."""
    return path.with_name(f"dp-{replica}-{path.name}") if replica else path


def open_recorder(options: ConnectorOptions, model: Any, replica: int) -> TraceWriter | None:
    """Opens what records the requests of ``model``, vLLM's configuration of it; None if that is not
    asked for. Raises ``ValueError`` for a file that can't be made."""
    if not options.trace:
        return None
    name = str(model.served_model_name or model.model)
    path = of_replica(Path(options.trace), replica)
    try:
        return TraceWriter(path, options.chunk_tokens, "vllm", name, time.time())
    except OSError as error:
        raise ValueError(
            f"kv_connector_extra_config: trace {path} can't be made: {error.strerror};"
            " name a new file"
        ) from error


def _disk(
    options: ConnectorOptions, chunk_bytes: int, namespace: bytes, replica: int, rank: int
) -> Tier:
    folder = of_replica(options.folder / f"rank-{rank}", replica)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return DiskTier("disk", folder, options.disk_size, chunk_bytes, namespace=namespace)
    except TierInUse as error:
        logger.warning("%s: this engine goes without; give it another disk_path", error)
        return NullTier("disk", 0)


def open_remote_tier(options: ConnectorOptions, chunk_bytes: int, rank: int, ranks: int) -> Tier:
    """Opens a connection to the remote tier; with several ranks each has names of its own there."""
    tier: Tier
    if "://" in options.remote:
        tier = open_remote(options.remote, chunk_bytes)
    else:
        tier = open_plugin(options.remote, "remote", None, chunk_bytes)
    return tier if ranks == 1 else RankTier(tier, rank)


class RankTier(Wrapper):
    """A shared tier as one rank sees it: the same keys, under other names. A name gives its key
    back, for a tier that tells what it holds from an earlier process."""

    def __init__(self, tier: Tier, rank: int) -> None:
        super().__init__(tier)
        digest = hashlib.blake2b(rank.to_bytes(16, "little"), digest_size=32).digest()
        self._mask = int.from_bytes(digest, "little")

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return self._tier.contains(self._own(keys))

    def read(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[Read]:
        return self._tier.read(self._own(keys), place)

    def write(self, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        return self._tier.write(self._own(keys), place)

    def discard(self, keys: Sequence[bytes]) -> None:
        self._tier.discard(self._own(keys))

    def place(self, keys: Sequence[bytes]) -> ChunkBuffers | None:
        return self._tier.place(self._own(keys))

    def recovered(self) -> list[bytes]:
        """Returns keys from an earlier process, least recently stored first; of a shared tier none:
        other ranks' would be among them, and it is asked for what it has in any case."""
        return [] if self.shared else self._own(self._tier.recovered())

    def _own(self, keys: Sequence[bytes]) -> list[bytes]:
        return [
            (int.from_bytes(key, "little") ^ self._mask).to_bytes(len(key), "little")
            for key in keys
        ]
