"""A Hugging Face causal LM in this process: forward passes over KV buffers that it lends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import cycle
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cache_core.groups import KeptLayer, balanced_groups, slot_layout
from cache_core.keys import Namespace, config_digest
from cache_core.layout import Group, KVLayout
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.capacity import codec_salt
from lmcache_cli.engines.transformers.blend.runner import LayerRunner
from lmcache_cli.engines.transformers.kv_buffer import KvBuffer
from lmcache_cli.engines.transformers.layer_groups import GroupedBuffer, layer_shapes
from lmcache_cli.engines.transformers.models import LoadedModel, load_model

_T = TypeVar("_T")

# A GPU picks, loads and compiles kernels by shape, and its allocator grows to what was asked: there
# a long run's first prompts would pay for that, which a short warm-up would not have seen.
_CPU_WARM_UP_TOKENS = 512
_TAIL_TOKENS = 256
_BUFFERS = 2  # one serves while the other's KV is still being stored


class ModelRunner:
    """A loaded model, and the buffers that requests take turns in. Runs one request at a time."""

    name = "transformers"

    def __init__(
        self, model: str | None, device: str = "cpu", dtype: str = "auto", threads: int = 0
    ) -> None:
        self.loaded: LoadedModel = load_model(model, device, dtype)
        self.model = self.loaded.id
        self.max_context = int(self.loaded.text_config.max_position_embeddings)
        self.bos = self.loaded.bos
        self.encode = self.loaded.encode
        self.frame = self.loaded.frame
        self.decode = self.loaded.decode
        self.threads = threads or min(4, torch.get_num_threads())
        self._shapes = layer_shapes(self.model, self.loaded.model) if self.loaded.grouped else ()
        self._arenas: list[KvBuffer] = []
        self._layers: LayerRunner | None = None
        self._shared: dict[str, object] = {}

    def layout(self, chunk_tokens: int) -> KVLayout:
        """Returns the KV layout of this model for a chunk length. Where layers keep different
        things it is of bytes: of a slot that a chunk of any group fits."""
        loaded = self.loaded
        if self._shapes:
            return slot_layout(self.groups(chunk_tokens), chunk_tokens)
        return KVLayout(
            loaded.config.num_hidden_layers,
            loaded.kv_heads,
            loaded.head_dim,
            loaded.dtype,
            chunk_tokens,
        )

    def groups(self, chunk_tokens: int) -> tuple[Group, ...]:
        """Returns the groups of layers that keep the same thing; one of all layers, where all keep
        everything."""
        if not self._shapes:
            layout = self.layout(chunk_tokens)
            names = tuple(map(str, range(layout.layers)))
            return (Group(0, names, chunk_tokens, layout.chunk_bytes),)
        return balanced_groups(self.kept_layers(), chunk_tokens)

    def kept_layers(self) -> list[KeptLayer]:
        """Returns what each layer keeps, where layers keep different things; else nothing."""
        return [shape.kept(number) for number, shape in enumerate(self._shapes)]

    def token_bytes(self) -> int:
        """Returns the bytes of K and V of one token, over all layers."""
        if self._shapes:
            return sum(shape.token_bytes for shape in self._shapes)
        return self.layout(1).token_bytes

    def state_bytes(self) -> int:
        """Returns the bytes of the states behind a prompt, over all layers."""
        return sum(shape.state_bytes for shape in self._shapes)

    def namespace(self, spec: CacheSpec, loaded: LoadedModel | None = None) -> Namespace:
        """Returns all that must be equal for KV of this engine to be reused; of another model of
        the same layout, if one is given."""
        loaded = loaded or self.loaded
        return Namespace(
            self.layout(spec.chunk_tokens),
            model=loaded.id,
            revision=loaded.revision,
            rope=loaded.rope,
            tokenizer=loaded.tokenizer_digest,
            attention="transformers",
            salt=spec.salt,
            extra={
                "config": config_digest(loaded.config),
                **codec_salt(spec.codec),
                **self._groups_salt(spec.chunk_tokens),
            },
        )

    def _groups_salt(self, chunk_tokens: int) -> dict[str, str]:
        """Returns which layers a chunk has and how, which its bytes alone don't say."""
        return {"groups": repr(self.groups(chunk_tokens))} if self._shapes else {}

    def layers(self) -> LayerRunner:
        """Returns the model by layers. Raises ``UserError`` for one that blend does not know."""
        if self._layers is None:
            self._layers = LayerRunner(self.loaded)
        return self._layers

    def once(self, name: str, make: Callable[[], _T]) -> _T:
        """Returns what sessions share of this model under ``name``: made by the first that asks."""
        if name not in self._shared:
            self._shared[name] = make()
        return cast(_T, self._shared[name])

    def warm_up(self, tokens: int) -> None:
        self.reserve(tokens + 1)
        if self.loaded.device.type == "cpu":
            tokens = min(tokens, _CPU_WARM_UP_TOKENS)
        rng = np.random.default_rng(0)
        ids = rng.integers(0, self.loaded.text_config.vocab_size, tokens).astype(np.int32)
        buffer = self.kv_buffer()
        self.forward(buffer, ids, 0)
        # What comes after a hit, and a step of the answer, take kernels of their own.
        past = max(0, tokens - _TAIL_TOKENS)
        token = self.forward(buffer, ids[past:], past).argmax()
        int(self.forward(buffer, np.array([int(token)], dtype=np.int32), tokens).argmax())

    def facts(self) -> dict[str, object]:
        loaded = self.loaded
        return {
            "engine": self.name,
            "model": self.model,
            "revision": loaded.revision,
            "dtype": loaded.dtype,
            "device": str(loaded.device),
            "torch_threads": torch.get_num_threads(),
            "thread_waiting": os.environ.get("OMP_WAIT_POLICY") or os.environ.get("GOMP_SPINCOUNT"),
            "copy_threads": self.threads,
            "kv_bytes_per_token": self.token_bytes(),
            **({"state_bytes": self.state_bytes()} if self.state_bytes() else {}),
            "max_context": self.max_context,
        }

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        for buffer in self._arenas:
            buffer.wait()
        self._arenas.clear()

    def kv_buffer(self, keep: KvBuffer | None = None) -> KvBuffer:
        """Returns the static KV buffer for the next request, another one than ``keep``; waits if a
        store still reads it."""
        buffer = next(self._next_arena)
        if buffer is keep:
            buffer = next(self._next_arena)
        buffer.wait()
        buffer.lent += 1
        return buffer

    @torch.inference_mode()
    def forward(self, buffer: KvBuffer, ids: NDArray[np.int32], past: int) -> torch.Tensor:
        """Runs ``ids`` after ``past`` tokens of the KV in ``buffer``. Returns the last position's
        logits, ``[vocabulary]``. Writes the new KV into the buffer."""
        buffer.seek(past)
        tokens = torch.from_numpy(ids.astype(np.int64))[None].to(self.loaded.device)
        out = self.loaded.model(
            input_ids=tokens, past_key_values=buffer.cache, use_cache=True, logits_to_keep=1
        )
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    def reserve(self, tokens: int) -> None:
        """Sees to it that the static KV buffers hold requests of ``tokens``, prompt and output."""
        if self._arenas and self._arenas[0].capacity >= tokens:
            return
        self.close()
        device = self.loaded.device
        self._arenas = [
            GroupedBuffer(self._shapes, tokens, device)
            if self._shapes
            else KvBuffer(self.layout(1), tokens, device)
            for _ in range(_BUFFERS)
        ]
        self._next_arena = cycle(self._arenas)
