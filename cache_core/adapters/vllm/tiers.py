"""Opens the tiers of one worker."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cache_core.adapters.vllm.options import ConnectorOptions
from cache_core.place import Place
from cache_core.tiers import DiskTier, MemoryTier, NullTier, Tier, TierInUse
from cache_core.tiers.coded import CodedTier
from cache_core.tiers.memory import Memory, SlabMemory
from cache_core.tiers.plugin import open_plugin
from cache_core.tiers.remote_url import open_remote
from cache_core.tiers.tier import Read
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
    """Fastest first. ``chunk_bytes`` are the engine's; with ``codec`` tiers keep coded chunks,
    and the cpu tier's are in ``memory``. Each data-parallel ``replica`` has a disk tier of its own.
    A disk tier that another engine has open is left out, with a warning: it holds nothing.
    Raises ``TierError``, ``OSError`` or ``MemoryError``, and ``ValueError`` for a size that holds
    no chunk."""
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
    """A file's or folder's name for one data-parallel replica; the first one's is as it is."""
    return path.with_name(f"dp-{replica}-{path.name}") if replica else path


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
    """A connection to the remote tier; with several ranks each has names of its own there."""
    tier: Tier
    if "://" in options.remote:
        tier = open_remote(options.remote, chunk_bytes)
    else:
        tier = open_plugin(options.remote, "remote", None, chunk_bytes)
    return tier if ranks == 1 else RankTier(tier, rank)


class RankTier:
    """A shared tier as one rank sees it: the same keys, under other names."""

    def __init__(self, tier: Tier, rank: int) -> None:
        self.name, self.capacity = tier.name, tier.capacity
        self.shared = getattr(tier, "shared", False)
        self.keeps_time = getattr(tier, "keeps_time", False)
        self._tier, self._salt = tier, rank.to_bytes(16, "little")

    def __len__(self) -> int:
        return len(self._tier)

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        return self._tier.contains(self._own(keys))

    def read(self, keys: Sequence[bytes], place: Place | None) -> list[Read]:
        return self._tier.read(self._own(keys), place)

    def write(self, keys: Sequence[bytes], place: Place | None) -> list[bool]:
        return self._tier.write(self._own(keys), place)

    def discard(self, keys: Sequence[bytes]) -> None:
        self._tier.discard(self._own(keys))

    def place(self, keys: Sequence[bytes]) -> Place | None:
        return self._tier.place(self._own(keys))

    def close(self) -> None:
        self._tier.close()

    def _own(self, keys: Sequence[bytes]) -> list[bytes]:
        return [hashlib.blake2b(key, digest_size=32, salt=self._salt).digest() for key in keys]
