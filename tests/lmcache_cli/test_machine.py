"""The description of the machine: complete, ready for JSON, and steady where it must be."""

from __future__ import annotations

import json
import os
import platform
import sys
from types import SimpleNamespace

import psutil
import pytest

from lmcache_cli import machine
from lmcache_cli.machine import versions


def test_facts_are_complete_and_ready_for_json() -> None:
    facts = machine.machine()
    keys = "arch cpu cpu_features cores memory_bytes gpus kernel python fingerprint"
    assert list(facts) == keys.split()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"] and facts["cores"] >= 1 and facts["memory_bytes"] > 2**28


def test_the_fingerprint_is_of_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint() -> str:
        return str(machine.machine()["fingerprint"])

    def memory(nbytes: int) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=nbytes))

    memory(24_105 << 20)
    first = fingerprint()
    assert fingerprint() == first and len(first) == 12
    memory(24_101 << 20)
    monkeypatch.setattr(platform, "release", lambda: "99.0")
    monkeypatch.setattr(platform, "python_version", lambda: "9.9")
    assert fingerprint() == first
    memory(48_000 << 20)
    assert fingerprint() != first
    memory(24_105 << 20)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    one = fingerprint()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(99)))
    assert one != fingerprint()


def test_torch_names_the_gpus_that_the_driver_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver_gpus", list)
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda i: f"GPU {i}"
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    before = machine.machine()
    assert before["gpus"] == ["GPU 0", "GPU 1"]
    monkeypatch.delitem(sys.modules, "torch")
    after = machine.machine()
    assert after["gpus"] == []
    assert after["fingerprint"] == before["fingerprint"]


def test_versions_are_of_what_is_installed() -> None:
    found = versions()
    assert {"numpy", "pyarrow"} <= found.keys()
    assert all(found.values())


def test_a_cpu_without_a_name_still_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", dict)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert machine.cpu_model() == "aarch64"
