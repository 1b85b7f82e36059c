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
from lmcache_cli.engines.transformers import attention
from lmcache_cli.engines.transformers.blend.forward import blend
from lmcache_cli.engines.transformers.blend.quality import forced_logits
from lmcache_cli.engines.transformers.engine import TransformersEngine
from lmcache_cli.engines.transformers.models import LoadedModel
from tests.fake_cuda import CUDA, Recorded, fake_cuda

pytestmark = pytest.mark.engine

LAYERS, HEADS, KV_HEADS, DIM = 3, 8, 2, 64
CONTEXT, WIDTH, WORDS = 25_000, HEADS * DIM, 32_000
INNER = 2 * WIDTH
FLASH = "_scaled_dot_product_flash_attention"


class Fake:
    """A Llama in bfloat16 on the GPU, and the engine around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, flash: bool, dtype: torch.dtype) -> None:
        monkeypatch.setattr(attention, "_has_flash", lambda *_: flash)
        monkeypatch.setattr("lmcache_cli.engines.transformers.kv_buffer.ways_of", lambda _: None)
        monkeypatch.setattr(
            "lmcache_cli.engines.transformers.kv_buffer.torch.cuda.current_stream", self._stream
        )
        frequencies = Rope(1e4 ** (-np.arange(DIM // 2) / (DIM // 2)))
        monkeypatch.setattr(
            "lmcache_cli.engines.transformers.blend.runner._rope_of", lambda _: frequencies
        )
        self.flash, self.waits = flash, 0
        config = transformers.LlamaConfig(
            vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=INNER,
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
        self.engine._arenas, self.engine._layers, self.engine._shapes = [], None, ()
        self.engine.reserve(CONTEXT + 8)

    def _stream(self, device: torch.device) -> Any:
        assert device == CUDA
        fake = self

        class Stream:
            def synchronize(self) -> None:
                fake.waits += 1

        return Stream()


def outputs(recorded: Recorded, kernel: str) -> list[tuple[int, ...]]:
    return [shape for shape in recorded.named(kernel) if len(shape) == 4]


def ids(count: int) -> np.ndarray:
    return np.zeros(count, dtype=np.int32)


@pytest.fixture(params=[(True, torch.bfloat16), (False, torch.float32)], ids=["flash", "none"])
def world(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Fake, Recorded]]:
    with fake_cuda() as recorded:
        fake = Fake(monkeypatch, *request.param)
        recorded.clear()
        yield fake, recorded


PROMPT, EXACT, QUESTION = 8000, 128, 7900
FRESH = np.concatenate([np.arange(4000, 4100), np.arange(QUESTION, PROMPT)])
CHUNKS = ((EXACT, 4000), (4100, QUESTION))


RATIOS = {
    name: np.union1d(FRESH, np.concatenate([np.arange(*chunk, step) for chunk in CHUNKS]))
    for name, step in (("all", 1), ("some", 7))
} | {"none": FRESH}


def tokens() -> torch.Tensor:
    return torch.zeros(PROMPT, dtype=torch.int64, device=CUDA)


def test_a_cold_prompt_makes_no_mask_and_no_logits_of_all_its_tokens(
    world: tuple[Fake, Recorded],
) -> None:
    fake, recorded = world
    logits = fake.engine.forward(fake.engine.kv_buffer(), ids(CONTEXT), 0)
    assert logits.shape == (WORDS,) and logits.device == CUDA
    assert recorded.largest == CONTEXT * INNER, "the inside of an MLP"
    assert recorded.named("scaled_dot_product_attention")[0][-2:] == (CONTEXT, DIM)
    assert recorded.uploads == 1, "the tokens"


@pytest.mark.parametrize("rows", [2, 300])
def test_a_hit_makes_nothing_of_the_contexts_length(
    rows: int, world: tuple[Fake, Recorded]
) -> None:
    fake, recorded = world
    fake.engine.forward(fake.engine.kv_buffer(), ids(rows), CONTEXT - rows)
    assert recorded.largest == max(rows * INNER, WORDS), "no mask, no copy of K and V"
    assert recorded.uploads == 1 and fake.waits == 0
    if fake.flash:
        assert outputs(recorded, FLASH) == [(1, HEADS, rows, DIM)] * LAYERS


def test_transformers_own_attention_would(world: tuple[Fake, Recorded]) -> None:
    """What the test before is there for."""
    fake, recorded = world
    fake.loaded.model.set_attn_implementation("sdpa")
    fake.engine.forward(fake.engine.kv_buffer(), ids(300), CONTEXT - 300)
    assert recorded.largest == HEADS * CONTEXT * DIM, "K for every query head"
    assert (1, 1, 300, CONTEXT) in recorded.named("expand", "where", "bitwise_and", "__and__", "le")


@pytest.mark.parametrize("name", RATIOS)
def test_blend_runs_on_the_device_and_waits_for_nothing(
    name: str, world: tuple[Fake, Recorded]
) -> None:
    fake, recorded = world
    buffer = fake.engine.kv_buffer().tensor
    logits = blend(fake.engine.layers(), tokens(), buffer, RATIOS[name])
    assert logits.shape == (WORDS,) and logits.device == CUDA
    assert fake.waits == 0
    assert recorded.uploads <= 20, "positions and rows of masks, not per layer"
    repeated = HEADS * PROMPT * DIM
    assert recorded.largest < (2 * repeated if name == "all" else repeated)


@pytest.mark.parametrize("name", ["all", "none"])
def test_rows_that_follow_one_another_take_the_causal_kernel(
    name: str, world: tuple[Fake, Recorded]
) -> None:
    fake, recorded = world
    buffer = fake.engine.kv_buffer().tensor
    blend(fake.engine.layers(), tokens(), buffer, RATIOS[name])
    assert not recorded.named("masked_fill_")
    if fake.flash:
        assert not recorded.named("_scaled_dot_product_efficient_attention")
        runs = [100, 100] if name == "none" else [PROMPT - EXACT]
        assert outputs(recorded, FLASH) == [(1, HEADS, rows, DIM) for rows in runs] * LAYERS


def test_chunks_are_turned_encoded_and_judged_on_the_device(world: tuple[Fake, Recorded]) -> None:
    fake, recorded = world
    runner, buffer = fake.engine.layers(), fake.engine.kv_buffer().tensor
    with torch.inference_mode():
        for start in (256, 512, 768):
            runner.rope.rotate(buffer[:, 0, :, start : start + 256], start, in_place=True)
        assert recorded.uploads == 1, "frequencies, once"
        recorded.clear()
        lead, chunks = (torch.zeros(n, dtype=torch.int64, device=CUDA) for n in (100, 12 * 256))
        hidden = runner.behind(lead, buffer, 0)
        assert hidden.shape == (100, WIDTH)
        runner.apart(chunks.view(12, 256).unbind(), buffer, 100)
        assert recorded.largest < WORDS * 100, "no logits of tokens whose KV is all that is wanted"
        forced = forced_logits(runner, runner.logits(hidden[-1:])[0], lead[:5], buffer, 100)
        assert forced.shape == (5, WORDS) and forced.device == CUDA
    assert recorded.uploads == 0
    if fake.flash:
        apart = [shape for shape in outputs(recorded, FLASH) if shape[2] == 256]
        assert apart == [(1, HEADS, 256, DIM)] * LAYERS * 12, "each segment to its own keys"


@pytest.mark.parametrize(("device", "longest"), [("cpu", 512), ("cuda", CONTEXT)])
def test_a_gpu_is_warmed_up_by_a_prompt_of_the_runs_own_length(
    device: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = object.__new__(TransformersEngine)
    config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(vocab_size=WORDS))
    monkeypatch.setattr(LoadedModel, "config", config)
    engine.loaded = LoadedModel("m", None, None, "", torch.device(device), "bfloat16", "")
    ran: list[tuple[int, int]] = []

    def forward(buffer: Any, tokens: np.ndarray, past: int) -> torch.Tensor:
        ran.append((len(tokens), past))
        return torch.zeros(WORDS)

    monkeypatch.setattr(engine, "forward", forward)
    monkeypatch.setattr(engine, "kv_buffer", lambda: None)
    monkeypatch.setattr(engine, "reserve", lambda tokens: ran.append((tokens, -1)))
    engine.warm_up(CONTEXT)
    assert ran == [(CONTEXT + 1, -1), (longest, 0), (256, longest - 256), (1, longest)]
