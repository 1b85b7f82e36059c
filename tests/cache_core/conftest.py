"""Servers that many tests share: started when the first one needs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cache_core.tiers.remote.mooncake_store import MooncakeClient, MooncakeServer
from tests.cache_core.servers import MooncakeProcess, RedisProcess


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    yield server.port
    server.kill()


@pytest.fixture(scope="session")
def mooncake_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MooncakeClient]:
    """A client that stays connected: to come and to go takes it a second."""
    server = MooncakeProcess(tmp_path_factory.mktemp("mooncake"))
    client = MooncakeClient(MooncakeServer(f"127.0.0.1:{server.port}"))
    client.open()
    yield client
    client.close()
    server.end()
