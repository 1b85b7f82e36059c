"""Opens remote tiers by URL."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from cache_core.tiers.remote.mooncake_store import MooncakeClient, MooncakeServer, MooncakeStore
from cache_core.tiers.remote.redis_store import PART_BYTES, RedisServer, RedisStore
from cache_core.tiers.remote.remote_tier import RemoteTier
from cache_core.tiers.remote.store import HEAD_BYTES, Store
from cache_core.tiers.suspensions import CircuitBreaker
from cache_core.tiers.tier import TierError

N = TypeVar("N", int, float)

_COMMON = ("timeout", "connections", "pause")
_OPTIONS = {
    "redis": ("part", "password_file"),
    "rediss": ("part", "password_file", "ca", "cert", "key", "verify"),
    "mooncake": ("segment", "address", "metadata", "protocol", "devices"),
}


def open_remote(
    url: str, chunk_bytes: int, capacity: int | None = None, name: str = "remote"
) -> RemoteTier:
    """Opens a remote tier of ``capacity`` chunks (None: as many as the server likes) by its URL:

        redis://[[user]:password@]host[:port][/database]    rediss:// the same over TLS
        mooncake://host:port

    Options follow as ``?name=value&...``: ``timeout`` and ``pause`` in seconds, ``connections``;
    for Redis ``part`` in bytes and ``password_file``; for TLS ``ca``, ``cert`` and ``key`` (files)
    and ``verify=no``; for Mooncake ``segment`` in bytes, ``address``, ``metadata``, ``protocol``
    and ``devices``. Connects to nothing yet. Raises :class:`TierError` for a URL that makes no
    sense; its text has no password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TierError(f"the remote's URL makes no sense: {error}") from None
    if parts.scheme not in _OPTIONS or not parts.hostname:
        raise TierError(
            f"the remote {redacted(url)} is not known; use redis://host:port,"
            " rediss://host:port or mooncake://host:port"
        )
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = (*_COMMON, *_OPTIONS[parts.scheme])
    for option in options:
        if option not in known:
            raise TierError(
                f"{parts.scheme}:// has no option {option!r}; it has {', '.join(known)}"
            )
    try:
        store: Callable[[], Store]
        if parts.scheme == "mooncake":
            store = _mooncake(parts, port, options)
        else:
            store = _redis(parts, port, options, HEAD_BYTES + chunk_bytes)
        return RemoteTier(
            name,
            capacity,
            chunk_bytes,
            store,
            workers=_number(int, options, "connections", 4),
            timeout_s=_number(float, options, "timeout", 5.0),
            breaker=CircuitBreaker(pause_s=_number(float, options, "pause", 5.0)),
        )
    except (ValueError, OSError) as error:
        raise TierError(f"the remote {redacted(url)} can't be opened: {error}") from error


def redacted(url: str) -> str:
    """Returns the URL without its password and options: fit for a log."""
    before, at, host = url.partition("?")[0].rpartition("@")
    if not at:
        return host
    scheme, _, login = before.partition("://")
    user = login.partition(":")[0]
    return f"{scheme}://{user}:***@{host}" if ":" in login else f"{scheme}://{user}@{host}"


def _redis(
    parts: SplitResult, port: int | None, options: dict[str, str], value_bytes: int
) -> Callable[[], Store]:
    database = parts.path.strip("/") or "0"
    if not database.isdecimal():
        raise ValueError(f"database {database!r} is no number")
    password = unquote(parts.password or "")
    if "password_file" in options:
        password = Path(options["password_file"]).read_text().strip()
    server = RedisServer(
        host=parts.hostname or "",
        port=port or 6379,
        database=int(database),
        username=unquote(parts.username or ""),
        password=password,
        tls=_tls(options) if parts.scheme == "rediss" else None,
    )
    part_bytes = _number(int, options, "part", PART_BYTES)
    return lambda: RedisStore(server, value_bytes, part_bytes)


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    verify = options.get("verify", "yes")
    if verify not in ("yes", "no"):
        raise ValueError(f"verify is {verify!r}; it must be yes or no")
    context = ssl.create_default_context(cafile=options.get("ca"))
    if verify == "no":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "cert" in options:
        context.load_cert_chain(options["cert"], options.get("key"))
    return context


def _mooncake(parts: SplitResult, port: int | None, options: dict[str, str]) -> Callable[[], Store]:
    if port is None:
        raise ValueError("a Mooncake master needs host:port")
    texts = {k: options[k] for k in ("address", "metadata", "protocol", "devices") if k in options}
    client = MooncakeClient(
        MooncakeServer(
            f"{parts.hostname}:{port}",
            segment_bytes=_number(int, options, "segment", 0, least=0),
            **texts,
        )
    )
    return lambda: MooncakeStore(client)


def _number(
    kind: Callable[[str], N], options: dict[str, str], name: str, default: N, least: float = 1e-3
) -> N:
    text = options.get(name)
    if text is None:
        return default
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no number") from None
    if not least <= value < float("inf"):
        raise ValueError(f"{name} is {text}; it must be at least {least:g}")
    return value
