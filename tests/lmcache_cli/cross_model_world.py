"""A small base model, fine-tunes of it whose weights were moved a little, and prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from lmcache_cli.engines.cache_spec import CacheSpec, SharedSettings
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.transformers.cross_model.session import CrossModelSession
from lmcache_cli.engines.transformers.engine import TransformersEngine
from reports.sample import Sample
from tests.lmcache_cli.small_model import save_model
from workloads import Request

CHUNK = 16
LAYERS = 4


def base_model(folder: Path, family: str = "llama", **changes: object) -> Path:
    """Four layers with large weights: attention that matters."""
    sizes: dict[str, object] = {"num_hidden_layers": LAYERS, "initializer_range": 0.2}
    return save_model(folder, family, **(sizes | changes))


def fine_tune_of(base: Path, folder: Path, seed: int = 1, moved: float = 0.1) -> Path:
    """All weights of ``base`` moved by ``moved`` of their own spread; the same tokenizer."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights += moved * weights.std() * torch.randn(weights.shape, generator=noise)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def shared_session(engine: TransformersEngine, base: Path, layers: str) -> CrossModelSession:
    """A session whose cache has room for all."""
    spec = CacheSpec(
        CHUNK,
        {"cpu": 100 * CHUNK * engine.token_bytes()},
        mode="shared",
        shared=SharedSettings(str(base), layers),
    )
    session = engine.open(spec, 256)
    assert isinstance(session, CrossModelSession)
    session.keep_logits = True
    return session


def prompt(seed: int = 0, tokens: int = 90, outputs: int = 4) -> Request:
    """Five full chunks of random tokens, and ten tokens more."""
    ids = np.random.default_rng(seed).integers(0, 256, tokens).astype(np.int32)
    return Request(f"r{seed}", "s", 0.0, ids, (), outputs)


def serve(session: CrossModelSession, request: Request) -> Sample:
    """One request, and its stores."""
    [sample] = session.serve([request], Load())
    session.settle()
    return sample
