"""A way to reuse KV as an object, and which of them each engine can measure. The modes of
caches that are not ours, and the flags of engines with a server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.http.settings import api_key, server_root
from lmcache_cli.errors import UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.sizes import parse_list, shell_words
from workloads.request import Request

ENGINES = {
    "transformers": ("off", "prefix", "blend", "shared"),
    "vllm": ("off", "vllm", "prefix", "blend", "offload", "lmcache"),
    "openai": ("off", "base", "server"),
    "simulated": ("off", "prefix"),
}
"""The reuse modes that each engine can measure."""
DEFAULT_MODES = {"openai": "off,server", "vllm": "off,vllm,prefix"}
"""The default reuse modes of the engines that have others than ``off,prefix``."""
TIER_ORDER = ("device", "cpu", "disk", "remote")


class Oracle(Protocol):
    """A prediction of each request's hit tokens from a cold start. A real cache that hits more was
    not cold; one that hits less lost chunks."""

    def expect(self, request: Request) -> int:
        """Returns the hit tokens of the next request and remembers it."""

    def share(self, request: Request) -> None:
        """Notes that another model, whose KV the cell reuses, serves the request."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The values that are crossed by lists, and what all caches have in common. Sizes are in bytes;
    0 leaves a tier out."""

    options: BenchOptions
    chunk_tokens: Sequence[int]
    tier_sizes: Mapping[str, Sequence[int]]
    salt: str
    disk_path: Path | None = None
    bytes_per_day: int = 0

    def tiers(self, mode: str) -> Iterator[dict[str, int]]:
        """Yields every stack of tiers. Raises ``UserError`` naming the mode for one without a
        tier."""
        names = [name for name in TIER_ORDER if self.tier_sizes.get(name)]
        for sizes in product(*(self.tier_sizes[name] for name in names)):
            tiers = {n: s for n, s in zip(names, sizes, strict=True) if s}
            if self.options.remote:
                tiers["remote"] = 0
            if not tiers:
                raise UserError(
                    f"--reuse {mode} needs a tier; give --cpu-size, --device-size or"
                    " --disk-size above 0, or --remote"
                )
            yield tiers

    def spec(self, chunk: int, tiers: Mapping[str, int]) -> CacheSpec:
        """Returns the settings of a cache of ours."""
        # One process owns a disk tier's folder, and a cell is one cache: a folder for each.
        name = "_".join([f"chunk-{chunk}", *(f"{tier}-{size}" for tier, size in tiers.items())])
        options = self.options
        return CacheSpec(
            chunk,
            tiers,
            options.policy,
            options.placement,
            self.salt,
            self.disk_path / name if self.disk_path else None,
            options.remote or "",
            options.admission,
            self.bytes_per_day,
            lasting=options.cache_name is not None,
            latency_s=options.tier_latency,
            codec=options.codec,
        )


class Mode(ABC):
    """A way to reuse KV, which ``--reuse`` names: what it crosses, what its rows say, and which
    hits are to be expected."""

    uses: tuple[str, ...] = ()
    """The flags that this mode alone uses."""
    order = 3
    """The number by which this mode stands in the table; equal ones stand as they are given."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def specs(self, sweep: Sweep) -> list[CacheSpec]:
        """Returns the caches to measure. Raises ``UserError`` for flags that don't make one."""

    def facts(self, spec: CacheSpec) -> Mapping[str, Any]:
        """Returns what a row's description has of this mode alone: keys of ``CellMeta``."""
        return {}

    def warming(
        self, requests: Sequence[Request], spec: CacheSpec, capacities: Mapping[str, int | None]
    ) -> Sequence[Request]:
        """Returns what a warm cell, whose tiers hold so many chunks, serves first, of requests that
        show each part once."""
        return requests

    def oracle(
        self, spec: CacheSpec, capacities: Mapping[str, int | None], bos: int | None
    ) -> Oracle | None:
        """Returns the oracle for a cold cache whose tiers hold so many chunks (None: any number);
        None where hits can't be foretold."""
        return None


def reuse_modes(engine: str, text: str | None, base_url: str | None = None) -> list[str]:
    """Returns the modes in a comma-separated list; None is the engine's default, which a second
    server changes. Raises ``UserError``."""
    known = ENGINES[engine]
    default = DEFAULT_MODES.get(engine, "off,prefix")
    if engine == "openai" and base_url is not None:
        default = "base,server"
    modes = parse_list(text or default, "--reuse", lambda mode, _: mode)
    if engine == "openai" and (base_url is not None) != ("base" in modes):
        raise UserError(
            "--base-url URL and the reuse mode base go together: --reuse base,server, or leave"
            " --reuse out"
        )
    if "base" in modes and "off" in modes:
        raise UserError("--reuse: off and base are both what is compared with; leave one out")
    for mode in modes:
        if engine == "openai" and mode == "prefix":
            raise UserError(
                f"--reuse: {mode!r} can't be set from outside a running server; leave --reuse out"
                " (off: prompts that share nothing, server: as it is)"
            )
        if mode not in known:
            raise UserError(
                f"--reuse: {mode!r} is not known; use one of {', '.join(known)} (--engine {engine})"
            )
    return modes


def one_of(flag: str, value: str, known: Sequence[str]) -> str:
    """Returns the value, if it is one of ``known``; else raises ``UserError`` listing them."""
    if value not in known:
        raise UserError(f"{flag}: {value!r} is not known; use one of {', '.join(known)}")
    return value


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
        roots = [server_root(url) for url in (options.url, options.base_url) if url is not None]
        if len(set(roots)) < len(roots):
            raise UserError("--base-url: is the same as --url; without it a server has two rows")
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
    return shell_words(options.vllm_args, "--vllm-args")
