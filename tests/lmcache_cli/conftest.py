"""Servers that several files of tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmcache_cli.engines.http import clients as saturation
from lmcache_cli.machine import CpuMeter
from tests.lmcache_cli.vllm_world import VllmAddress, running_vllm


@pytest.fixture(scope="session")
def vllm_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmAddress]:
    """One vLLM for the whole session: it takes half a minute to start."""
    with running_vllm(tmp_path_factory.mktemp("vllm")) as address:
        yield address


@pytest.fixture
def patient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the client kept up is no matter: a busy machine delays a thread by anything."""
    monkeypatch.setattr(saturation, "FLOOR_S", 3600.0)


@pytest.fixture(autouse=True)
def quiet_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else has the cores, whoever runs beside the tests; but for tests of just that."""
    if request.path.name != "test_busy.py":
        monkeypatch.setattr(CpuMeter, "read", lambda self: (1.0, 0.0))
