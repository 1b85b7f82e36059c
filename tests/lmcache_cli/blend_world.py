"""Small models and prompts of segments for the tests of blend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.transformers.blend.session import BlendSession
from lmcache_cli.engines.transformers.engine import TransformersEngine
from reports.sample import Sample
from tests.lmcache_cli.small_model import save_model
from workloads import Request, Segment

CHUNK = 16
ROPES: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def small_engine(folder: Path, family: str = "llama", rope: str = "default") -> TransformersEngine:
    """Four layers with large weights: attention that matters."""
    changes = {"rope_parameters": ROPES[rope], "initializer_range": 0.2}
    return TransformersEngine(str(save_model(folder, family, num_hidden_layers=4, **changes)))


def parts(seed: int = 0, passages: int = 3, length: int = 2 * CHUNK) -> list[np.ndarray]:
    """A system prompt of 10 tokens, passages, a question of 9."""
    rng = np.random.default_rng(seed)
    lengths = [10, *[length] * passages, 9]
    return [rng.integers(0, 256, size).astype(np.int32) for size in lengths]


def asking(texts: Sequence[np.ndarray], name: str = "r", outputs: int = 4) -> Request:
    """A request of a system prompt, passages and a question."""
    kinds = ["system", *["passage"] * (len(texts) - 2), "question"]
    ends = np.cumsum([len(text) for text in texts])
    segments = [
        Segment(int(end) - len(text), int(end), kind)
        for text, end, kind in zip(texts, ends, kinds, strict=True)
    ]
    return Request(name, "s", 0.0, np.concatenate(texts), tuple(segments), outputs)


def blend_session(
    engine: TransformersEngine, beginnings: bool = False, **changes: Any
) -> BlendSession:
    """A session whose cache has room for all; it keeps passages, and ``beginnings`` if asked to."""
    tiers = {"cpu": 100 * CHUNK * engine.token_bytes()}
    spec = CacheSpec(CHUNK, tiers, mode="blend", blend=BlendSettings(**changes))
    session = engine.open(spec, 256)
    assert isinstance(session, BlendSession)
    session.keep_logits = True
    if not beginnings:
        session.prompts.beginnings.most = 0
    return session


def serve(session: BlendSession, request: Request) -> Sample:
    """One request, and its stores."""
    [sample] = session.serve([request], Load())
    return sample


def warm(session: BlendSession, texts: Sequence[np.ndarray]) -> Request:
    """Stores all passages, and has each seen, which needs one full context here, in orders that are
    turned from the reverse; returns the request in the given order."""
    passages = list(texts[-2:0:-1])
    session.prompts.seen.least = 1.0
    for turn in range(len(passages)):
        order = passages[turn:] + passages[:turn]
        serve(session, asking([texts[0], *order, texts[-1]], f"warm{turn}", 1))
        session.settle()
    return asking(texts)
