"""Which engines there are, and which ways to reuse each can measure."""

from __future__ import annotations

from collections.abc import Sequence

from lmcache_cli.errors import UserError
from lmcache_cli.sizes import parse_list

ENGINES = {
    "transformers": ("off", "prefix", "blend", "shared"),
    "vllm": ("off", "vllm", "prefix", "blend", "offload", "lmcache"),
    "openai": ("server",),
    "simulated": ("off", "prefix"),
}
"""Engine to its reuse modes."""
DEFAULT_MODES = {"openai": "server", "vllm": "off,vllm,prefix"}
"""Where they are not ``off,prefix``."""
MODE_USES = {
    "blend": (
        "blend_ratio",
        "blend_selection",
        "blend_check_layer",
        "blend_narrow",
        "blend_encoding",
        "blend_certificate",
        "unverified",
    ),
    "shared": ("recompute_layers",),
}
"""Flags of one mode alone."""


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


def one_of(flag: str, value: str, known: Sequence[str]) -> str:
    """The value, if it is one of ``known``; else ``UserError`` listing them."""
    if value not in known:
        raise UserError(f"{flag}: {value!r} is not known; use one of {', '.join(known)}")
    return value
