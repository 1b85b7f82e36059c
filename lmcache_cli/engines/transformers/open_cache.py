"""The cache of one cell, with real tiers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass

import torch

from cache_core.cache import TieredCache
from cache_core.keys import Namespace
from cache_core.layout import KVLayout
from cache_core.policies import POLICIES, make_admission
from cache_core.tiers import DiskTier, MemoryTier, SlabMemory, Tier, TierError
from cache_core.tiers.plugin import open_plugin
from cache_core.tiers.remote.url import open_remote
from cache_core.tiers.tensor import TensorTier
from cache_core.tiers.wrappers import CodedTier, Throttled
from cache_core.transfer.cuda import CudaMissing, PinnedMemory
from cache_core.transfer.gpu import GpuTier
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.capacity import chunks_per_tier, tier_chunk_bytes, tier_codec
from lmcache_cli.engines.transformers.kv_buffer import index_of, ways_of
from lmcache_cli.errors import MissingError, UserError

_WORK = ("syncs", "copied", "absent")


def open_cache(spec: CacheSpec, namespace: Namespace, device: torch.device) -> TieredCache:
    """Opens every tier of the cell. Raises ``UserError`` for one that can't be opened and
    ``MissingError`` for a server that does not answer."""
    layout = namespace.layout
    tiers: list[Tier] = []
    try:
        for name, chunks in chunks_per_tier(spec, layout).items():
            tier = _open(name, chunks, spec, namespace, device)
            if spec.latency_s:
                nbytes = tier_chunk_bytes(name, spec, layout)
                tier = Throttled(tier, nbytes, latency_s=spec.latency_s)
            codec = tier_codec(name, spec, layout)
            tiers.append(tier if codec is None else CodedTier(tier, codec))
        admission = make_admission(
            spec.admission,
            spec.bytes_per_day,
            tier_chunk_bytes("disk", spec, layout),
            time.monotonic,
        )
        return TieredCache(
            layout,
            tiers,
            policy=POLICIES[spec.policy],
            placement=spec.placement,
            admission={"disk": admission} if admission is not None else None,
        )
    except BaseException:
        for tier in tiers:
            tier.close()
        raise


def _memory(device: torch.device) -> SlabMemory:
    """Returns memory for a tier: pinned where a GPU is to reach it, if this build can pin."""
    if device.type != "cuda":
        return SlabMemory()
    try:
        return PinnedMemory(index_of(device))
    except CudaMissing:
        return SlabMemory()


def tier_troubles(tiers: Sequence[Tier]) -> dict[str, dict[str, int]]:
    """Returns what tiers count of their own that is not zero, but plain work, by tier name."""
    found = {}
    for tier in tiers:
        counters = tier.counters
        # Some counters are of plain work.
        if is_dataclass(counters) and not isinstance(counters, type):
            counts = asdict(counters)
            found[tier.name] = {n: c for n, c in counts.items() if c and n not in _WORK}
    return found


def _open(
    name: str, chunks: int | None, spec: CacheSpec, namespace: Namespace, device: torch.device
) -> Tier:
    layout: KVLayout = namespace.layout
    size = tier_chunk_bytes(name, spec, layout)
    if name == "device" and device.type != "cpu":
        try:
            if ways := ways_of(device):
                return GpuTier(name, chunks or 0, size, ways)
            return TensorTier(name, chunks or 0, layout, device)
        except RuntimeError as error:  # CUDA's and torch's, for memory that is not there
            raise UserError(f"--device-size: {str(error).splitlines()[0]}") from error
    if name in ("device", "cpu"):
        # On a CPU the engine's own memory is host memory: both tiers are slabs.
        try:
            return MemoryTier(name, chunks or 0, size, _memory(device))
        except MemoryError as error:
            raise UserError(f"--{name}-size: {error}") from error
    try:
        if name == "disk":
            if spec.folder is None:
                raise TierError("no folder is given; name one with --disk-path")
            spec.folder.mkdir(parents=True, exist_ok=True)
            return DiskTier(
                name,
                spec.folder,
                spec.tiers["disk"],
                size,
                namespace=namespace.digest(),
            )
        if "://" not in spec.remote:
            return open_plugin(spec.remote, name, chunks, size)
        remote = open_remote(spec.remote, size, chunks, name)
    except TierError as error:
        raise UserError(f"--{'disk-path' if name == 'disk' else 'remote'}: {error}") from error
    except OSError as error:
        raise UserError(
            f"--disk-path: {spec.folder} can't be used: {error.strerror or error}"
        ) from error
    try:
        remote.ping()
    except TierError as error:
        remote.close()
        raise MissingError(f"--remote: {error}") from error
    return remote
