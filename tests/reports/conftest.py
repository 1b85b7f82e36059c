"""Samples and cells as the tests need them: plain ones, with what matters given by the test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from reports.sample import Sample
from reports.summary import CellMeta

MakeSample = Callable[..., Sample]
MakeMeta = Callable[..., CellMeta]


@pytest.fixture
def make_sample() -> MakeSample:
    """``make_sample("r0", ttft=2.0, at=10.0)``: two output tokens, half a second apart."""

    def make(request_id: str = "r0", ttft: float = 1.0, at: float = 0.0, **other: Any) -> Sample:
        first = at + ttft
        values: dict[str, Any] = {
            "request_id": request_id,
            "session": "s",
            "prompt_tokens": 100,
            "output_tokens": 2,
            "scheduled_s": at,
            "sent_s": at,
            "first_token_s": first,
            "finished_s": first + 0.5,
            "token_s": (first, first + 0.5),
            "output_ids": (7, 8),
        }
        return Sample(**(values | other))

    return make


@pytest.fixture
def make_meta() -> MakeMeta:
    """``make_meta("prefix", cpu=2**29)``"""

    def make(
        reuse: str = "prefix", chunk_tokens: int | None = 64, other: Any = None, **tiers: int
    ) -> CellMeta:
        meta: dict[str, Any] = {
            "workload": "long-context",
            "engine": "transformers",
            "model": "SmolLM2-135M-Instruct",
            "reuse": reuse,
            "chunk_tokens": chunk_tokens,
            "tiers": tiers,
        }
        return cast(CellMeta, meta | (other or {}))

    return make
