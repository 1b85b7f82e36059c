"""LMCache's cache server: a process of its own, which a ``vllm serve`` is pointed to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lmcache_cli.engines.engine import CacheSpec
from lmcache_cli.engines.server_process import ServerProcess, free_port

# Not the command, whose name is also ours.
_MODULE = "lmcache.v1.multiprocess.http_server"
_SEGMENTS = Path("/dev/shm")


class LMCacheServer(ServerProcess):
    """The server of one cell: ``spec``'s CPU tier is its size, ``chunk_tokens`` its chunk."""

    name = "LMCache's server"
    health = "/healthcheck"
    late = "; give it longer with --start-timeout"

    def __init__(self, spec: CacheSpec, environment: Mapping[str, str], log: Path) -> None:
        size = f"{spec.tiers['cpu'] / 2**30:g}"
        # All of it at once: growing would be measured.
        flags = ["--l1-size-gb", size, "--no-l1-use-lazy", "--eviction-policy", "LRU"]
        flags += ["--chunk-size", str(spec.chunk_tokens)]
        super().__init__([sys.executable, "-m", _MODULE, *flags], environment, log)
        self._port = 0
        self._segments: set[Path] = set()

    def address(self) -> list[str]:
        """Of its HTTP side, which tells its health, and of the one that vLLM speaks to."""
        health = free_port()
        self._port = free_port()
        self.url = f"http://127.0.0.1:{health}"
        http = ["--http-host", "127.0.0.1", "--http-port", str(health)]
        return [*http, "--host", "127.0.0.1", "--port", str(self._port)]

    def connector(self) -> list[str]:
        """The flags by which ``vllm serve`` uses the server that is up."""
        extra = {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": self._port,
            # The one that the server offers by default; on a CPU through shared memory. There,
            # the connector's own choice is another.
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",
        }
        config = {
            "kv_role": "kv_both",
            "kv_connector": "LMCacheMPConnector",
            "kv_connector_extra_config": extra,
        }
        return ["--kv-transfer-config", json.dumps(config)]

    def note_segments(self, group: int | None) -> None:
        """Notes the shared memory of that process group's vLLM, for :meth:`stop`. On a CPU LMCache
        moves vLLM's KV there, and it stays when vLLM is ended."""
        for path in _SEGMENTS.glob("lmcache_kv_*"):
            pid = path.name.split("_")[2]
            with suppress(ProcessLookupError):
                if pid.isdecimal() and os.getpgid(int(pid)) == group:
                    self._segments.add(path)

    def stop(self) -> None:
        """Ends it and frees the shared memory that was noted: vLLM must have ended before."""
        try:
            super().stop()
        finally:
            while self._segments:
                self._segments.pop().unlink(missing_ok=True)
