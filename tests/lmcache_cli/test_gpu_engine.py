"""The embedded engine and blend on a GPU, as far as that can be proven without one: where tensors
are, what is waited for, and what is never made."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cache_core.blend.rope import Rope
from cache_core.blend.selection import KV, SELECTIONS, Choice, Reused, make_selection
from lmcache_cli.engines import attention
from lmcache_cli.engines.blend import forward as blend_module
from lmcache_cli.engines.blend.forward import blend
from lmcache_cli.engines.blend.runner import LayerRunner
from lmcache_cli.engines.models import LoadedModel
from lmcache_cli.engines.transformers import TransformersEngine
from tests.fake_cuda import CUDA, Recorded, fake_cuda

LAYERS, HEADS, KV_HEADS, DIM = 3, 8, 2, 64
CONTEXT, WIDTH, WORDS = 25_000, HEADS * DIM, 32_000


class Fake:
    """A Llama in bfloat16 on the GPU, and the engine around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flash: bool, dtype: torch.dtype) -> None:
        monkeypatch.setattr(attention, "_has_flash", lambda *_: flash)
        monkeypatch.setattr("lmcache_cli.engines.arena.ways_of", lambda _: None)
        monkeypatch.setattr("lmcache_cli.engines.device.torch.cuda.current_stream", self._stream)
        frequencies = Rope(1e4 ** (-np.arange(DIM // 2) / (DIM // 2)))
        monkeypatch.setattr("lmcache_cli.engines.blend.runner._rope_of", lambda _: frequencies)
        self.waits = 0
        config = transformers.LlamaConfig(
            vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
            head_dim=DIM, max_position_embeddings=32_768,
        )  # fmt: skip
        config.dtype = dtype
        with torch.device(CUDA):
            model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        model.set_attn_implementation(attention.ATTENTION)
        name = str(dtype).removeprefix("torch.")
        self.loaded = LoadedModel("fake", model, None, "", CUDA, name, "")
        self.engine = object.__new__(TransformersEngine)
        self.engine.loaded = self.loaded
        self.engine._arenas, self.engine._layers = [], None
        self.engine.reserve(CONTEXT + 8)

    def _stream(self, device: torch.device) -> Any:
        assert device == CUDA
        fake = self

        class Stream:
            def synchronize(self) -> None:
                fake.waits += 1

        return Stream()


def ids(count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.int32)


@pytest.fixture(params=[(True, torch.bfloat16), (False, torch.float32)], ids=["flash", "none"])
def world(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Fake, Recorded]]:
    with fake_cuda() as recorded:
        fake = Fake(monkeypatch, *request.param)
        recorded.calls.clear()
        recorded.uploads = 0
        yield fake, recorded


PROMPT, EXACT, QUESTION = 8000, 128, 7900
FRESH = np.concatenate([np.arange(4000, 4100), np.arange(QUESTION, PROMPT)])
CHUNKS = ((EXACT, 4000), (4100, QUESTION))


class Chosen:
    """A selection whose first positions were found before tensors became fake."""

    def __init__(self, name: str) -> None:
        empty = torch.empty(0)
        self._inner: Any = make_selection(name, Choice(0.15, 1, 2))
        self._first = self._inner.begin(
            Reused(empty, (0, EXACT, QUESTION), EXACT, CHUNKS, KV(empty, empty))
        ).numpy()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def begin(self, prompt: Reused) -> Any:
        return SimpleNamespace(numpy=lambda: self._first)


SELECTED = {name: Chosen(name) for name in SELECTIONS}


def test_x(world: tuple[Fake, Recorded]) -> None:
    fake, recorded = world
    arena = fake.engine.arena()
    logits = fake.engine.forward(arena, ids(CONTEXT), 0)
    print(logits.shape, recorded.uploads, recorded.largest)
    recorded.clear()
    logits = fake.engine.forward(arena, ids(300), CONTEXT - 300)
    print(sorted({n for n, _ in recorded.calls}), recorded.largest, recorded.uploads)


def test_y(world: tuple[Fake, Recorded], monkeypatch) -> None:
    fake, recorded = world
    runner = LayerRunner(fake.loaded)
    arena = fake.engine.arena().tensor
    for name, selection in SELECTED.items():

        def on_host(chosen):
            assert chosen.device == CUDA and chosen.dtype == torch.bool
            c = np.zeros(len(chosen), dtype=bool)
            c[::7] = True
            return c

        monkeypatch.setattr(blend_module, "on_host", on_host)
        prompt = Reused(
            torch.zeros(PROMPT, dtype=torch.int64, device=CUDA),
            (0, EXACT, QUESTION),
            EXACT,
            CHUNKS,
            KV(arena[:, 0].transpose(1, 2), arena[:, 1].transpose(1, 2)),
        )
        recorded.clear()
        fake.waits = 0
        done = blend(runner, prompt, arena, FRESH, selection)
        print(
            name, done.recomputed, done.token_layers, fake.waits, recorded.largest, recorded.uploads
        )
    print(sorted({n for n, _ in recorded.calls}))
