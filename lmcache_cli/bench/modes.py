"""Which engines there are, which reuse each can measure, and the flags of those with a server."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmcache_cli.engines.between.layers import layer_groups
from lmcache_cli.engines.engine import CacheSpec
from lmcache_cli.engines.serving import api_key, server_root
from lmcache_cli.errors import UserError
from lmcache_cli.sizes import parse_list

if TYPE_CHECKING:
    from lmcache_cli.bench.plan import BenchOptions

ENGINES = {
    "transformers": ("off", "prefix", "blend", "shared"),
    "vllm": ("off", "vllm", "prefix", "blend", "offload", "lmcache"),
    "openai": ("server",),
    "simulated": ("off", "prefix"),
}
"""Engine to its reuse modes."""
BLEND_SELECTIONS = ("hkvd", "query", "first", "random", "none", "full")
VLLM_SELECTIONS = ("first", "random")
"""Those that choose before any layer has run: vLLM's model is run as it is."""
_MANY_LAYERS = 10_000
BLEND_ENCODINGS = ("auto", "system", "bos", "none")
DEFAULT_MODES = {"openai": "server", "vllm": "off,vllm,prefix"}
"""Where they are not ``off,prefix``."""


def reuse_modes(engine: str, text: str | None) -> list[str]:
    """The modes in a comma-separated list; None is the engine's default. Raises ``UserError``."""
    known = ENGINES[engine]
    modes = parse_list(
        text or DEFAULT_MODES.get(engine, "off,prefix"), "--reuse", lambda mode, _: mode
    )
    for mode in modes:
        if engine == "openai" and mode in ("off", "prefix"):
            raise UserError(
                f"--reuse: {mode!r} can't be set from outside a running server; leave --reuse out"
                " (server: as it is), and measure servers that were started differently one by one"
            )
        if mode not in known:
            raise UserError(
                f"--reuse: {mode!r} is not known; use one of {', '.join(known)} (--engine {engine})"
            )
    return modes


def check_server_flags(options: BenchOptions) -> tuple[str, ...]:
    """The words of --vllm-args. Raises ``UserError`` for a flag that the engine does not have."""
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


def blend_variants(options: BenchOptions) -> list[CacheSpec]:
    """Every ratio under every selection and check layer. Raises ``UserError``."""
    default = CacheSpec(chunk_tokens=1)
    ratios = parse_list(options.blend_ratio or str(default.ratio), "--blend-ratio", _share)
    layers = parse_list(
        options.blend_check_layer or str(default.check_layer), "--blend-check-layer", _layer
    )
    selections = parse_list(
        options.blend_selection or default.selection,
        "--blend-selection",
        lambda name, flag: one_of(flag, name, BLEND_SELECTIONS),
    )
    if options.engine == "vllm" and "blend" in (options.reuse or ""):
        # What chooses by layers can't be asked of vLLM; the default is none of the user's wishes.
        selections = selections if options.blend_selection else ["first"]
        for name in selections:
            if name not in VLLM_SELECTIONS:
                known = ", ".join(VLLM_SELECTIONS)
                raise UserError(f"--blend-selection: with --engine vllm it is one of {known}")
    encoding = options.blend_encoding or default.encoding
    one_of("--blend-encoding", encoding, BLEND_ENCODINGS)
    if options.blend_narrow < 1:
        raise UserError(f"--blend-narrow: {options.blend_narrow} is too small; at least 1 layer")
    return [
        CacheSpec(
            chunk_tokens=1,
            ratio=ratio,
            selection=selection,
            check_layer=layer,
            narrow_layers=options.blend_narrow,
            encoding=encoding,
        )
        for selection in selections
        for layer in layers
        for ratio in ratios
    ]


def shared_variants(options: BenchOptions, modes: Sequence[str]) -> list[CacheSpec]:
    """Every set of layers to recompute. Raises ``UserError``, also for a base without the mode:
    another model's KV is taken only where both are asked for."""
    if (options.shared_from is not None) != ("shared" in modes):
        raise UserError("--reuse shared and --shared-from MODEL go together")
    if options.shared_from is None:
        return []
    return [
        CacheSpec(chunk_tokens=1, shared_from=options.shared_from, recompute_layers=layers)
        for layers in parse_list(options.recompute_layers, "--recompute-layers", layer_set)
    ]


def layer_set(text: str, flag: str) -> str:
    """The text, if it is spelt as a set of layers; whether a model has them all is seen later."""
    try:
        layer_groups(text, _MANY_LAYERS)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error
    return text


def _share(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a number from 0 to 1") from None
    if not 0 <= value <= 1:
        raise UserError(f"{flag}: {text} is not from 0 to 1")
    return value


def _layer(text: str, flag: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{flag}: {text!r} is not a layer's number, from 0 on")
    return int(text)


def one_of(flag: str, value: str, known: Sequence[str]) -> str:
    """The value, if it is one of ``known``; else ``UserError`` listing them."""
    if value not in known:
        raise UserError(f"{flag}: {value!r} is not known; use one of {', '.join(known)}")
    return value
