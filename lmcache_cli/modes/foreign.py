"""The modes of caches that are not ours, and the flags of engines with a server."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.http.settings import api_key, server_root
from lmcache_cli.errors import UserError
from lmcache_cli.modes.mode import Mode, Sweep
from lmcache_cli.options.bench import BenchOptions


class Plain(Mode):
    """A mode with one cache of no tier of ours: none at all (``off``), or what a server has."""

    def __init__(self, name: str, order: int, foreign: bool) -> None:
        super().__init__(name)
        self.order, self.foreign = order, foreign

    def specs(self, sweep: Sweep) -> list[CacheSpec]:
        return [self.spec(sweep, {})]

    def spec(self, sweep: Sweep, tiers: Mapping[str, int]) -> CacheSpec:
        """Returns a cache with tiers of these sizes, of which only the server knows."""
        chunk = sweep.chunk_tokens[0]
        return CacheSpec(chunk, tiers, salt=sweep.salt, mode=self.name, foreign=self.foreign)


class ForeignOffload(Plain):
    """A mode with another's cache in DRAM, of each ``--cpu-size``."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 2, foreign=True)

    def specs(self, sweep: Sweep) -> list[CacheSpec]:
        return [self.spec(sweep, {"cpu": size}) for size in sweep.tier_sizes["cpu"] if size]


def check_server_flags(options: BenchOptions) -> tuple[str, ...]:
    """Returns the words of ``--vllm-args``. Raises ``UserError`` for a flag that the engine does
    not have."""
    engine = options.engine
    if (options.url is not None) != (engine == "openai"):
        raise UserError("--engine openai and --url URL go together")
    if options.url is not None:
        server_root(options.url)
        api_key()
    if options.vllm_args is not None and engine != "vllm":
        raise UserError("--vllm-args: only --engine vllm starts a server; leave it out")
    for flag, seconds in (
        ("--request-timeout", options.request_timeout),
        ("--start-timeout", options.start_timeout),
    ):
        if not seconds > 0:
            raise UserError(f"{flag}: {seconds} must be above 0 seconds")
    if engine in ("openai", "vllm") and options.admission != "none":
        raise UserError(f"--admission: --engine {engine} has none; leave it out")
    if engine == "openai" and options.codec != "none":
        raise UserError("--codec: with --engine openai the cache is the server's; leave it out")
    if engine in ("openai", "vllm") and options.device_size != "0":
        raise UserError(
            f"--device-size: with --engine {engine} the device's memory is the server's; leave it"
            " out" + (" and use --vllm-args" if engine == "vllm" else "")
        )
    if engine == "openai" and (options.cache_name or options.remote or options.disk_size != "0"):
        raise UserError(
            "--disk-size, --remote, --cache-name: with --engine openai the cache is the server's;"
            " leave them out"
        )
    try:
        return tuple(shlex.split(options.vllm_args or ""))
    except ValueError as error:
        raise UserError(f"--vllm-args: {error}; quote it as for a shell") from error
