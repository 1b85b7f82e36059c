"""Mooncake Store as a remote store. Imports the ``mooncake`` package when it connects."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cache_core.tiers.store import Bytes, StoreError

PREFIX = "lmcache/"
_NOT_FOUND = -704
_INVALID_SIZE = -600
_GONE = (-900, -800)
_LOCAL_BUFFER = 16 << 20


@dataclass(frozen=True, slots=True)
class MooncakeServer:
    """A Mooncake master, and how this process takes part.

    ``segment_bytes`` of this process's memory hold values for everybody, and go with it; 0 makes
    it a mere client, which needs others that give memory. ``address`` is where the others reach
    this process, ``metadata`` is Mooncake's metadata server.
    """

    master: str
    segment_bytes: int = 0
    address: str = "127.0.0.1"
    metadata: str = "P2PHANDSHAKE"
    protocol: str = "tcp"
    devices: str = ""


class MooncakeClient:
    """The process's one client, which all lanes share: it is safe for threads, and large."""

    def __init__(self, server: MooncakeServer) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._client: Any = None
        self._users = 0

    def open(self) -> Any:
        """The connected client, for one more user. Raises :class:`StoreError`."""
        with self._lock:
            if self._client is None:
                self._client = self._set_up()
            self._users += 1
            return self._client

    def close(self) -> None:
        """One user less; the last one disconnects."""
        with self._lock:
            self._users -= 1
            if not self._users and self._client is not None:
                self._client.close()
                self._client = None

    def _set_up(self) -> Any:
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as error:
            raise StoreError(
                f"Mooncake's client can't be loaded ({error}); it needs the package"
                " mooncake-transfer-engine-non-cuda and the system's libibverbs1"
            ) from error
        server = self._server
        client = MooncakeDistributedStore()
        status = client.setup(
            server.address,
            server.metadata,
            server.segment_bytes,
            _LOCAL_BUFFER,
            server.protocol,
            server.devices,
            server.master,
        )
        if status:
            raise StoreError(f"the Mooncake master {server.master} can't be used (error {status})")
        return client


class MooncakeStore:
    """A lane's view of the shared client: its buffer is registered, values go in and out of it
    without a copy."""

    def __init__(self, client: MooncakeClient) -> None:
        self._shared = client
        self._client: Any = None
        self._registered = 0

    def connect(self, buffer: Bytes, timeout_s: float) -> None:
        """``timeout_s`` can't be kept: Mooncake has its own patience, the tier stops waiting."""
        if self._client is None:
            self._client = self._shared.open()
        if buffer.nbytes and not self._registered:
            address = buffer.ctypes.data
            if self._client.register_buffer(address, buffer.nbytes):
                raise StoreError(f"Mooncake can't register {buffer.nbytes} bytes of memory")
            self._registered = address

    def exists(self, names: Sequence[str]) -> list[bool]:
        codes = self._client.batch_is_exist(_keys(names))
        return [code == 1 for code in _alive(codes)]

    def put(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        addresses, sizes = _spans(values)
        codes = self._client.batch_upsert_from(_keys(names), addresses, sizes)
        return [code == 0 for code in _alive(codes)]

    def get_into(self, names: Sequence[str], values: Sequence[Bytes]) -> list[bool]:
        addresses, sizes = _spans(values)
        codes = self._client.batch_get_into(_keys(names), addresses, sizes)
        return [code == size for code, size in zip(_alive(codes), sizes, strict=True)]

    def remove(self, names: Sequence[str]) -> None:
        # Forced: a value that was just looked at has a lease, which would keep it.
        _alive(self._client.batch_remove(_keys(names), True))

    def close(self) -> None:
        if self._client is None:
            return
        with contextlib.suppress(Exception):
            if self._registered:
                self._client.unregister_buffer(self._registered)
            self._shared.close()
        self._client, self._registered = None, 0


def _keys(names: Sequence[str]) -> list[str]:
    return [PREFIX + name for name in names]


def _spans(values: Sequence[Bytes]) -> tuple[list[int], list[int]]:
    return [value.ctypes.data for value in values], [value.nbytes for value in values]


def _alive(codes: list[int]) -> list[int]:
    """Raises :class:`StoreError` if the batch failed because nobody was there."""
    for code in codes:
        if code in _GONE:
            raise StoreError(f"the Mooncake master does not answer (error {code})")
    return codes
