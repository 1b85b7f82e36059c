"""The connector's counters, in vLLM's log and beside vLLM's own at /metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

_BY_TIER = {
    "hit_tokens": "Prompt tokens whose KV a tier had; device is vLLM's own prefix cache.",
    "promised_chunks": "Chunks that a tier was to give to requests.",
    "delivered_chunks": "Chunks of those that it gave, to all ranks.",
    "read_bytes": "Bytes loaded from a tier.",
    "read_seconds": "Seconds spent loading from a tier.",
    "write_bytes": "Bytes stored in a tier.",
    "write_seconds": "Seconds spent storing in a tier.",
    "dropped_chunks": "Chunks that a tier did not take because too much was queued for it, or"
    " because it did not come back.",
    "suspensions": "Times that a tier was left out of look-ups for a while because it could not be"
    " read.",
}
_BY_REASON = {
    "uncached_requests": "Requests that are neither looked up nor saved, by reason.",
}
_PLAIN = {
    "prompt_tokens": "Prompt tokens of requests that were looked up.",
    "prefill_seconds_saved": "Prefill that loading spared, less the loading (estimated from this"
    " engine's own steps).",
    "blend_reused_tokens": "Tokens of segments whose KV was used away from where it was made.",
    "blend_computed_tokens": "Tokens that were computed on top of reused segments.",
    "failed_loads": "Loads that ended early; their tokens were computed.",
    "failed_saves": "Chunks that a tier did not take.",
    "saves_deferred": "Steps whose saving was put off because too much was on its way.",
}


class ConnectorStats(KVConnectorStats):
    """Counters by name, or by ``name:tier`` or ``name:reason``; they add up."""

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> ConnectorStats:
        for name, amount in other.data.items():
            self.data[name] = self.data.get(name, 0.0) + amount
        return self

    def reduce(self) -> dict[str, int | float]:
        """For vLLM's log: one figure for each counter."""
        return {f"lmcache_{n.replace(':', '_')}": round(v, 4) for n, v in self.data.items()}

    def is_empty(self) -> bool:
        return not self.data


class ConnectorMetrics(KVConnectorPromMetrics):
    """The counters as Prometheus has them, ``lmcache:NAME``."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        labels = list(self._labelnames)
        self._counters: dict[str, Counter] = {}
        for kind, own in ((_BY_TIER, ["tier"]), (_BY_REASON, ["reason"]), (_PLAIN, [])):
            for name, text in kind.items():
                self._counters[name] = self._counter_cls(
                    name=f"lmcache:{name}", documentation=text, labelnames=[*labels, *own]
                )

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        values = self.per_engine_labelvalues[engine_idx]
        for full, amount in transfer_stats_data.items():
            name, _, which = full.partition(":")
            if name in self._counters and amount > 0:
                labels = [*values, which] if which else values
                self._counters[name].labels(*labels).inc(amount)
