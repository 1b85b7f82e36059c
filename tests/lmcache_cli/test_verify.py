"""``lmcache verify hits``: passes on a right cache and fails on a wrong one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache_core import _native
from cache_core.tiers import MemoryTier
from cache_core.transfer.chunks import ChunkBuffers
from lmcache_cli.errors import UserError
from lmcache_cli.options.verify import HitsFlags
from lmcache_cli.verify.hits import verify_hits
from tests.cache_core.servers import RedisProcess
from tests.lmcache_cli.small_model import save_model

pytestmark = pytest.mark.engine


def options(folder: Path, context: str = "100", chunk: str = "16") -> HitsFlags:
    return HitsFlags(str(folder), chunk_tokens=chunk, context_tokens=context, output_tokens=4)


def test_every_tier_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path, "qwen3")
    assert verify_hits(options(folder, "60,100", "16,32"), "-", True) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "lmcache.verify/1" and document["passed"] is True
    assert len(document["checks"]) == 2 * 2 * 3
    assert {c["tier"] for c in document["checks"]} == {"device", "cpu", "disk"}
    assert all(c["hit_tokens"] >= 32 and c["tokens_identical"] for c in document["checks"])


def test_the_cost_of_a_codec_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_model(tmp_path, "llama")
    given = replace(options(folder, "60,100"), codec="fp8,int8")
    assert verify_hits(given, "-", True) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    found = {(c["tier"], c["codec"]) for c in checks}
    assert found == {("device", "none"), ("cpu", "none"), ("disk", "none"), ("cpu", "fp8"),
                     ("cpu", "int8")}  # fmt: skip
    errors = {c["codec"]: c["logit_error"] for c in checks if c["tier"] == "cpu"}
    # Lossy, each in its own way, and far more than rounding.
    assert errors["fp8"] != errors["int8"]
    assert min(errors["fp8"], errors["int8"]) > 10 * errors["none"]
    assert all(c["kl"] >= 0 and c["hit_tokens"] >= 48 for c in checks)
    with pytest.raises(UserError, match="--codec: 'fp4' is not known; use one of fp8, int8"):
        verify_hits(replace(given, codec="fp4"), None, True)


def test_a_tier_that_serves_wrong_bytes_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path, "llama")
    right = MemoryTier.write

    def wrong(self: MemoryTier, keys: Sequence[bytes], place: ChunkBuffers | None) -> list[bool]:
        done = right(self, keys, place)
        # One chunk holds another's KV: what a cache without checks serves from a damaged file.
        slots = [self._slots[key] for key in keys]
        sizes = np.array([self._chunk_bytes], dtype=np.uint64)
        _native.copy(self._addresses[slots[:1]], self._addresses[slots[1:2]], sizes, 1)
        return done

    monkeypatch.setattr(MemoryTier, "write", wrong)
    assert verify_hits(options(folder), None, True) == 1
    assert "FAIL" in capsys.readouterr().out


def test_prompt_shorter_than_a_chunk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no full chunk"):
        verify_hits(options(tmp_path, "10", "16"), None, True)


def test_prompt_longer_than_the_context_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    with pytest.raises(UserError, match="context is 256"):
        verify_hits(options(folder, "250"), None, True)


def test_a_remote_is_verified_where_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "model", "llama")
    server = RedisProcess(tmp_path)
    try:
        url = f"redis://127.0.0.1:{server.port}"
        chosen = replace(options(folder), remote=url)
        assert verify_hits(chosen, None, True) == 0
    finally:
        server.kill()
    assert "remote" in capsys.readouterr().out
