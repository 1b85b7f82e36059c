"""The settings of the engines that drive a server, besides model and device."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lmcache_cli.errors import UserError

KEYS = ("LMCACHE_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the API key; the first that is set counts."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The settings of an engine with a server. ``url`` is the endpoint's (engine openai),
    ``base_url`` that of a second one, ``args`` further flags of ``vllm serve`` (engine vllm), whose
    logs go into ``folder`` and which may take ``start_s`` to be ready. ``silence_s``: how long an
    answer may be silent. ``say`` shows what is going on."""

    url: str = ""
    base_url: str = ""
    args: tuple[str, ...] = ()
    silence_s: float = 300.0
    folder: Path = Path("runs")
    start_s: float = 600.0
    say: Callable[[str], None] = lambda _: None


def server_root(url: str) -> str:
    """Returns the URL without the ``/v1`` at its end. Raises ``UserError`` for one that is none, or
    that holds what should not be shown: a run file keeps the URL."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"--url: not a URL ({error}); give http://host:port") from error
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(
            "--url: has a login, a query or a fragment; give http://host:port, and the key in"
            f" the environment as {KEYS[0]}"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(f"--url: {url!r} is not a URL; give http://host:port")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def api_key() -> str:
    """Returns the key in the environment, or ``""``. Raises ``UserError``, without the key, for one
    that can be no HTTP header."""
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable()):
                raise UserError(f"{name}: has characters that no key has; set it again")
            return key
    return ""
