"""A model's architecture: what its layers keep of a prompt, and the work of a token."""

from __future__ import annotations

from dataclasses import dataclass

from cache_core.groups import KeptLayer
from cache_core.layout import Keeps

_LEAST_STATE_ITEM = 2
"""Bytes of a state's item: states stay in 16 bits where KV is FP8."""


@dataclass(frozen=True, slots=True)
class LayerKind:
    """``layers`` layers that keep the same: ``items`` values of K and V a token over ``heads`` KV
    heads (0: one latent that every rank has), with ``extra_bytes`` a token of the values' dtype
    apart; or a state of ``convolution_items`` values and ``state_items`` of ``state_item_bytes``
    each (0: as wide as KV, but 16 bits at least). ``keeps`` and ``span`` are those of
    :class:`cache_core.layout.Group`."""

    layers: int
    keeps: Keeps = "all"
    span: int | None = None
    items: int = 0
    heads: int = 1
    extra_bytes: int = 0
    convolution_items: int = 0
    state_items: int = 0
    state_item_bytes: int = 0

    def token_bytes(self, item_bytes: int = 2, tensor_parallel: int = 1) -> int:
        """Returns the bytes of one token in one of the layers, over all ranks."""
        if not self.heads:
            return (self.items * item_bytes + self.extra_bytes) * tensor_parallel
        copies = max(1.0, tensor_parallel / self.heads)
        return round(self.items * item_bytes * copies)

    def stored_bytes(self, item_bytes: int = 2, tensor_parallel: int = 1) -> int:
        """Returns the bytes of one token in one of the layers in tiers below the device: a latent,
        which all ranks have, once."""
        return self.token_bytes(item_bytes, tensor_parallel if self.heads else 1)

    def state_bytes(self, item_bytes: int = 2) -> int:
        """Returns the bytes of the state of one of the layers, over all ranks."""
        own = max(item_bytes, _LEAST_STATE_ITEM)
        return self.convolution_items * own + self.state_items * (self.state_item_bytes or own)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's architecture. ``active`` parameters are those that one token passes. ``qk_dim`` and
    ``v_dim`` are a query head's. ``latent`` is MLA's compressed width with its RoPE part (0: GQA,
    whose KV is ``kv_heads`` of ``head_dim``). ``source`` says where its fields are from. ``kinds``
    are what layers keep; without any, all keep all KV."""

    name: str
    parameters: float
    active: float
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    source: str
    latent: int = 0
    qk_dim: int = 0
    v_dim: int = 0
    kinds: tuple[LayerKind, ...] = ()

    @property
    def kept(self) -> tuple[LayerKind, ...]:
        """Returns what the layers keep."""
        if self.kinds:
            return self.kinds
        if self.latent:
            return (LayerKind(self.layers, items=self.latent, heads=0),)
        return (
            LayerKind(self.layers, items=2 * self.kv_heads * self.head_dim, heads=self.kv_heads),
        )

    def splits(self) -> tuple[int, ...]:
        """Returns the sizes of tensor parallelism that vLLM takes, ascending: those that divide the
        query heads, and of whose ranks each has as many KV heads, or all of a head as many ranks.
        Empty where no heads are known."""
        each = {kind.heads for kind in self.kept if kind.heads}
        return tuple(
            size
            for size in range(1, self.heads + 1)
            if not self.heads % size and all(not n % size or not size % n for n in each)
        )

    def kv_bytes(self, item_bytes: int = 2, tensor_parallel: int = 1) -> int:
        """Returns the bytes of KV of one token in every layer that has any, over all ranks: GQA
        ``2 L h d b`` times max(1, TP / h), since ranks beyond the heads hold copies; MLA ``L (c +
        r) b`` on every rank. Layers with a window keep theirs for as long as it is in sight."""
        return sum(
            kind.layers * kind.token_bytes(item_bytes, tensor_parallel) for kind in self.kept
        )

    def stored_bytes(self, item_bytes: int = 2, tensor_parallel: int = 1) -> int:
        """Returns the bytes of KV of one token in tiers below the device: a latent, which all ranks
        have, once."""
        return sum(
            kind.layers * kind.stored_bytes(item_bytes, tensor_parallel) for kind in self.kept
        )

    def state_bytes(self, item_bytes: int = 2) -> int:
        """Returns the bytes of all layers' states behind a prompt; 0 without recurrent layers."""
        return sum(kind.layers * kind.state_bytes(item_bytes) for kind in self.kept)

    def hit_bytes(self, tokens: int, item_bytes: int = 2, tensor_parallel: int = 1) -> int:
        """Returns the bytes that a hit of ``tokens`` tokens has to have: all KV of layers that keep
        it, of the others what is in sight behind the hit, and the states."""
        total = self.state_bytes(item_bytes)
        for kind in self.kept:
            seen = tokens
            if kind.keeps == "window" and kind.span:
                seen = min(tokens, kind.span - 1)
            elif kind.keeps == "local" and kind.span:
                seen = tokens % kind.span
            total += kind.layers * seen * kind.token_bytes(item_bytes, tensor_parallel)
        return total

    def mixed(self) -> bool:
        """Returns whether any layer keeps something else than all KV."""
        return any(kind.keeps != "all" for kind in self.kept)

    def kept_layers(self, item_bytes: int = 2, tensor_parallel: int = 1) -> list[KeptLayer]:
        """Returns what each layer keeps over all ranks in tiers below the device, one entry a layer
        that keeps anything."""
        return [
            KeptLayer(
                f"{kind.keeps} {number}",
                kind.stored_bytes(item_bytes, tensor_parallel),
                kind.state_bytes(item_bytes),
                kind.keeps,
                kind.span,
            )
            for kind in self.kept
            for number in range(kind.layers)
        ]

    def token_flops(self) -> float:
        """Returns the work of one token apart from attention over all that was before it: two
        operations per active parameter (Kaplan et al. 2020, section 2.1), and attention over the
        windows (half of the spans of local attention)."""
        seen = sum(
            kind.layers * (kind.span or 0) / (2 if kind.keeps == "local" else 1)
            for kind in self.kept
            if kind.keeps in ("window", "local")
        )
        return 2 * self.active + self._pair() * seen

    def pair_flops(self) -> float:
        """Returns attention's work per pair of tokens, in the layers that see all of them: a
        product of Q and K and one with V."""
        return self._pair() * sum(kind.layers for kind in self.kept if kind.keeps == "all")

    def _pair(self) -> float:
        qk, v = self.qk_dim or self.head_dim, self.v_dim or self.head_dim
        return 2.0 * self.heads * (qk + v)
