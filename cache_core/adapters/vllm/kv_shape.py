"""Reads from vLLM's configuration what KV a model has: which groups of layers, and what each of
them keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.identity import Unsupported, dtype_name
from cache_core.layout import Group, Keeps, KVLayout

_KEEPS: dict[str, Keeps] = {
    "FullAttentionSpec": "all",
    "MLAAttentionSpec": "all",
    "SlidingWindowSpec": "window",
    "SlidingWindowMLASpec": "window",
    "ChunkedLocalAttentionSpec": "local",
    "MambaSpec": "state",
}
_WHOLE = "where layers keep different things, or KV whose bytes are the engine's own affair"
# Chunks that don't fill a tier's slab waste no more than this share of it, on average, ...
_WASTE = 1 / 16
# ... unless so many pieces don't do.
_MOST_PIECES, _MOST_GROUPS = 8, 96


@dataclass(frozen=True, slots=True)
class KvShape:
    """The shape of one worker's KV, all of it in one group of layers whose tokens can be told
    apart. ``whole_blocks``: only blocks of ``block_tokens`` can be moved."""

    layer_names: tuple[str, ...]
    kv_heads: int
    head_dim: int
    dtype: str
    block_tokens: int
    whole_blocks: bool
    on_cpu: bool

    @property
    def format(self) -> str:
        """Returns the order of a chunk's bytes, see
        :mod:`cache_core.adapters.vllm.worker.kv_blocks`."""
        if self.whole_blocks:
            return f"vllm: whole blocks of {self.block_tokens}"
        return "vllm-cpu: K[L][H][D][T] V[L][H][T][D]" if self.on_cpu else "vllm: [L][T][H][C]"

    def layout(self, chunk_tokens: int) -> KVLayout:
        """Returns the layout of a chunk of ``chunk_tokens`` tokens."""
        layers = len(self.layer_names)
        return KVLayout(layers, self.kv_heads, self.head_dim, self.dtype, chunk_tokens)


@dataclass(frozen=True, slots=True)
class GroupedShape:
    """The shape of KV of which whole blocks are moved, for each of vLLM's groups of layers on its
    own. ``groups`` have no bytes yet, see :func:`sized`: only workers know those."""

    groups: tuple[Group, ...]
    chunk_tokens: int
    page_bytes: tuple[int, ...]
    num_blocks: int

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Returns the names of all layers that hold something."""
        return tuple(name for group in self.groups for name in group.layers)

    @property
    def block_tokens(self) -> int:
        """Returns the length of the shortest blocks, in tokens."""
        return min(group.block_tokens for group in self.groups)

    @property
    def format(self) -> str:
        """Returns what chunks of the groups are, in one line: it is a part of their keys."""
        parts = [
            f"{len(group.layers)} layers, {group.keeps} {group.span or ''}, blocks of"
            f" {group.block_tokens} in {page} bytes"
            for group, page in zip(self.groups, self.page_bytes, strict=True)
        ]
        return "vllm: groups: " + "; ".join(parts)

    def layout(self, chunk_tokens: int) -> KVLayout:
        """Returns what stands for the layout of all groups in the keys' namespace: bytes."""
        return KVLayout(max(1, len(self.layer_names)), 1, 1, "int8", chunk_tokens, planes=1)


def shape_of(
    config: Any, kv_cache_config: Any, options: ConnectorOptions
) -> KvShape | GroupedShape:
    """Reads the KV's shape from vLLM's configuration: plain where all layers keep all KV of all
    tokens in one group and items have a dtype of their own, else grouped. Raises
    :class:`~cache_core.adapters.vllm.identity.Unsupported` naming what can't be kept."""
    parallel = config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Unsupported(f"{name} > 1 is not supported: tokens are spread over ranks")
    on_cpu = config.device_config.device_type == "cpu"
    latent_on_cpu = on_cpu and getattr(config.model_config, "use_mla", False)
    if latent_on_cpu and not config.cache_config.enable_prefix_caching:
        raise Unsupported(
            "MLA on vLLM's CPU backend without AMX, where vLLM turns its own prefix cache off:"
            " behind KV of an earlier request it computes other tokens"
        )
    kv_groups = kv_cache_config.kv_cache_groups
    for group in kv_groups:
        for spec in _specs(group.kv_cache_spec):
            _require_known(spec, group, config)
    if len(kv_groups) == 1 and _is_plain(kv_groups[0].kv_cache_spec):
        return _plain(config, kv_cache_config, options.chunk_tokens)
    _require_possible(options)
    blocks = math.lcm(*(group.kv_cache_spec.block_size for group in kv_groups))
    chunk_tokens = -(-options.chunk_tokens // blocks) * blocks
    groups, pages = [], []
    for number, group in enumerate(kv_groups):
        layers = tuple(holding(group.layer_names, kv_cache_config))
        specs = list(_specs(group.kv_cache_spec))
        keeps, span = _kept(specs[0])
        groups.append(Group(number, layers, specs[0].block_size, 0, keeps, span))
        pages.append(max(spec.page_size_bytes for spec in specs))
    return GroupedShape(tuple(groups), chunk_tokens, tuple(pages), kv_cache_config.num_blocks)


def _plain(config: Any, kv_cache_config: Any, chunk_tokens: int) -> KvShape:
    group = kv_cache_config.kv_cache_groups[0]
    spec = group.kv_cache_spec
    on_cpu = config.device_config.device_type == "cpu"
    whole = on_cpu and not _plain_cpu(config, spec)
    if whole and chunk_tokens % spec.block_size:
        raise Unsupported(
            f"chunk_tokens {chunk_tokens} is no multiple of vLLM's block of {spec.block_size},"
            " and this CPU's attention keeps blocks that can only be moved whole"
        )
    return KvShape(
        tuple(holding(group.layer_names, kv_cache_config)),
        spec.num_kv_heads,
        spec.head_size,
        dtype_name(spec.dtype),
        spec.block_size,
        whole,
        on_cpu,
    )


def holding(names: Iterable[str], kv_cache_config: Any) -> list[str]:
    """Returns those of the layers that hold KV: one that shares another layer's holds nothing."""
    owners = {name for tensor in kv_cache_config.kv_cache_tensors for name in tensor.layers}
    return [name for name in names if not owners or name in owners]


def sized(
    shape: GroupedShape, layer_bytes: Mapping[str, int], pieces: bool
) -> tuple[tuple[Group, ...], tuple[int, ...]]:
    """Returns the groups with the bytes of their chunks, and vLLM's numbers for them.
    ``layer_bytes`` are those of a layer in one chunk of its group.

    Tiers have slabs of one size. So with ``pieces`` a group with much longer chunks than others is
    cut into several, each of some of its layers: with the same blocks, and chunks of about one
    size. Pipeline stages, whose layers differ, must not: all are to have the same groups.
    """
    whole = [[layer_bytes[name] for name in group.layers] for group in shape.groups]
    slab = max(map(sum, whole), default=0)
    if pieces:
        slab = _best_slab([sizes for sizes in whole if sizes])
    groups: list[Group] = []
    tables: list[int] = []
    for group, sizes in zip(shape.groups, whole, strict=True):
        first = 0
        for count in _cut(sizes, slab):
            layers = group.layers[first : first + count]
            nbytes = sum(sizes[first : first + count])
            groups.append(replace(group, number=len(groups), layers=layers, chunk_bytes=nbytes))
            tables.append(group.number)
            first += count
    return tuple(groups), tuple(tables)


def _best_slab(groups: Sequence[Sequence[int]]) -> int:
    """Returns the size of slabs in which the groups' chunks, in pieces of whole layers, waste
    little: the largest that wastes little enough, or else the one that wastes least."""
    longest = max((size for sizes in groups for size in sizes), default=0)
    tried = {-(-sum(sizes) // n) for sizes in groups for n in range(1, _MOST_PIECES + 1)}
    total = sum(map(sum, groups))
    best, least = max(map(sum, groups), default=0), math.inf
    for slab in sorted(tried, reverse=True):
        count = sum(len(_cut(sizes, slab)) for sizes in groups)
        if slab < longest or count > _MOST_GROUPS:
            continue
        waste = (count * slab - total) / total
        if waste < least:
            best, least = slab, waste
        if waste <= _WASTE:
            break
    return best


def _cut(sizes: Sequence[int], slab: int) -> list[int]:
    """Returns how many layers in a row are in each piece of at most ``slab`` bytes; of a group
    without layers (another pipeline stage has them) one piece."""
    counts, room = [0], slab
    for size in sizes:
        if size > room and counts[-1]:
            counts.append(0)
            room = slab
        counts[-1] += 1
        room -= size
    return counts


def _specs(spec: Any) -> Iterable[Any]:
    """Returns the specs of a group's layers: one for all, or one of each."""
    return getattr(spec, "kv_cache_specs", {"": spec}).values()


def _kept(spec: Any) -> tuple[Keeps, int | None]:
    keeps = _KEEPS[type(spec).__name__]
    if keeps == "window":
        return keeps, int(spec.sliding_window) + int(getattr(spec, "extra_retained_tokens", 0))
    return keeps, int(spec.attention_chunk_size) if keeps == "local" else None


def _is_plain(spec: Any) -> bool:
    return (
        type(spec).__name__ == "FullAttentionSpec"
        and getattr(spec.kv_quant_mode, "name", "NONE") == "NONE"
        and spec.page_size_padded is None
        and spec.num_head_slots in (None, spec.num_kv_heads)
        and spec.head_size_v in (None, spec.head_size)
    )


def _require_known(spec: Any, group: Any, config: Any) -> None:
    kind = type(spec).__name__
    if kind not in _KEEPS:
        known = ", ".join(_KEEPS)
        raise Unsupported(f"KV of the kind {kind} is not supported; these kinds are: {known}")
    if getattr(group, "host_resident", False) or not getattr(group, "enable_kv_transfer", True):
        raise Unsupported(f"{kind} whose KV vLLM itself keeps on the host (HiSparse)")
    if not getattr(spec, "prefix_cacheable", True):
        raise Unsupported(f"{kind} whose window vLLM computes again after each hit")
    if getattr(spec, "non_causal", False):
        raise Unsupported(f"{kind} that is not causal: what stands behind a prefix changes its KV")
    if kind == "MambaSpec":
        if spec.mamba_cache_mode != "align":
            raise Unsupported(
                "recurrent states (MambaSpec) are kept at the ends of blocks alone: start vLLM with"
                " --enable-prefix-caching --mamba-cache-mode align"
            )
        if spec.num_speculative_blocks or getattr(config, "speculative_config", None):
            raise Unsupported(
                "recurrent states (MambaSpec) with speculative decoding, which changes them after"
                " a step"
            )


def _require_possible(options: ConnectorOptions) -> None:
    """Raises ``Unsupported`` for options that need one group of plain KV."""
    for name in ("layerwise", "blend"):
        if getattr(options, name):
            raise Unsupported(f'"{name}" is not supported {_WHOLE}')
    if options.codec != "none":
        raise Unsupported(f'codec "{options.codec}" is not supported {_WHOLE}')
    if options.load == "sync":
        raise Unsupported(f'load "sync" is not supported {_WHOLE}: use "auto"')


def _plain_cpu(config: Any, spec: Any) -> bool:
    """Returns whether the CPU backend keeps K as ``[head_dim][tokens]`` and V as
    ``[tokens][head_dim]``."""
    try:
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        isa = _get_attn_isa(
            config.model_config.dtype,
            spec.block_size,
            spec.head_size,
            config.cache_config.cache_dtype,
        )
    except (ImportError, TypeError, AttributeError):
        return False
    return bool(isa == "vec")
