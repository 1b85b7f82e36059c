"""Provides the drop-in KV connector for vLLM (V1 API), the one part of the core that needs vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache_core.adapters.vllm.connector import TieredKVConnector

__all__ = ["TieredKVConnector"]


def __getattr__(name: str) -> Any:
    # Late, so that what needs no vLLM can be used without.
    if name == "TieredKVConnector":
        from cache_core.adapters.vllm.connector import TieredKVConnector

        return TieredKVConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
