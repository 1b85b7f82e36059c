"""The drop-in KV connector for vLLM (V1 API). Needs vLLM; nothing else of the core does."""

from cache_core.adapters.vllm.connector import TieredKVConnector

__all__ = ["TieredKVConnector"]
