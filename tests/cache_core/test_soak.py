"""The soak finds what it looks for, and a short one finds nothing."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soaking import faults
from cache_core.cache import TieredCache
from cache_core.tiers import MemoryTier
from cache_core.tiers.wrappers import Wrapper

ROOT = Path(__file__).parents[2]


def test_a_few_seconds_of_all_faults(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/soak.py", "--minutes", "0.2", "--threads", "4"]
    done = subprocess.run(
        [*command, "--directory", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations       0" in done.stdout
    if shutil.which("redis-server") is not None and os.geteuid() == 0:
        assert "left out" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [], "it cleans up"


def test_a_wrong_byte_is_found() -> None:
    class Lying(Wrapper):
        def write(self, keys: object, place: object) -> list[bool]:
            return self._tier.write(list(keys)[::-1], place)  # type: ignore[call-overload, arg-type]

    findings = soak.Findings()
    cache = TieredCache(soak.LAYOUT, [Lying(MemoryTier("cpu", 8, soak.CHUNK))])
    engine = soak.Engine(cache, findings)
    engine.serve([1, 2])
    assert findings.wrong == []
    engine.serve([1, 2])
    cache.close()
    assert [text.partition(",")[0] for text in findings.wrong] == [
        "chunk 1 came with wrong bytes",
        "chunk 2 came with wrong bytes",
    ]
    assert findings.proven == 2 and findings.asked == 4


def test_a_call_that_takes_too_long_is_found() -> None:
    findings = soak.Findings()
    findings.took("load", soak.LIMITS_S["load"] - 1)
    assert findings.wrong == []
    findings.took("load", soak.LIMITS_S["load"] + 1)
    assert findings.wrong == ["load took 17.0 s, of 16 s that it may"]
    assert findings.longest_s["load"] == soak.LIMITS_S["load"] + 1


@pytest.mark.parametrize(("name", "step"), [("RSS", 2 << 20), ("descriptors", 1), ("threads", 1)])
def test_what_grows_is_found(name: str, step: int) -> None:
    levels, findings = soak.Levels(), soak.Findings()
    for _ in range(100):
        levels.sample()
    assert threading.active_count() > 0 and all(levels.samples.values())
    levels.blame(findings)
    assert findings.wrong == []
    # Not on top of what was sampled: a process that has run other tests is large, and a step small.
    levels.samples[name] = [n * step for n in range(100)]
    levels.blame(findings)
    assert [text.split()[:2] for text in findings.wrong] == [[name, "grew"]]


def test_a_thread_that_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak.Engine, "serve", lambda *_: 1 // 0)
    findings = soak.Findings()
    with pytest.raises(ZeroDivisionError):
        soak.work(None, findings, 0, threading.Event())  # type: ignore[arg-type]
    assert findings.wrong == [
        "a thread ended: ZeroDivisionError('integer division or modulo by zero')"
    ]


def test_a_process_that_lost_something_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = soak.Findings()
    kills = soak.Kills(tmp_path, None, findings, random.Random(0))

    def child(said: str) -> None:
        command = [sys.executable, "-c", f"print({said!r})"]
        monkeypatch.setattr(
            soak.Kills,
            "_child",
            lambda *_: subprocess.Popen(command, stdout=subprocess.PIPE, text=True),
        )
        kills.look()

    child("verified 5 0")
    assert findings.wrong == [] and kills.verified == 5
    child("verified 5 2")
    child("no such thing")
    assert findings.wrong == [
        "2 violations in a process that was killed",
        "a process that was killed can't be started again",
    ]


def test_faults_end_where_they_began(tmp_path: Path) -> None:
    folder = tmp_path / "tier"
    folder.mkdir()
    seen: list[bool] = []
    faults.move_away(folder, lambda _: seen.append(folder.exists()))
    assert seen == [False] and folder.exists()

    def no_file(_: float) -> None:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(tmp_path, os.O_RDONLY)

    faults.no_descriptors(no_file)
    (tmp_path / "x").write_text("")
