"""``lmcache probe``: figures that were measured, and none where a call failed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lmcache_cli.engines.measured_costs import load_probe
from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.options.probe import ProbeFlags
from lmcache_cli.probe import media
from lmcache_cli.probe.media import ProbeError, rates, timed_figure
from lmcache_cli.probe.report import run_probe

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "_PER_RUN", 2 * MIB)
    monkeypatch.setattr(media, "SIZES", (256 << 10,))
    monkeypatch.setattr(media, "DEPTHS", (1, 2))


def run(tmp_path: Path, remote: str | None = None) -> int:
    return run_probe(flags(tmp_path, tmp_path, remote), "-", True)


def flags(folder: Path, out: Path, remote: str | None = None) -> ProbeFlags:
    return ProbeFlags(folder, "64MiB", "8MiB", remote, repeat=3, out=out)


def test_every_figure_has_a_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == load_probe(tmp_path / "probe.json")
    disk = document["disk"]
    modes = {(f["mode"], f["direct"]) for f in disk["figures"]}
    assert {("read", False), ("write", False)} <= modes
    if disk["direct"]:
        assert {("read", True), ("write", True), ("mixed", True)} <= modes
    rates = [f["rate"] for f in (*disk["figures"], *document["cpu"])]
    for figure in (*rates, disk["fdatasync"]):
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
        assert figure["n"] >= 3
    assert [p.name for p in tmp_path.iterdir()] == ["probe.json"], "the probe left something behind"


def test_a_failed_write_is_a_failed_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, buffers: object, offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pwritev", broken)
    with pytest.raises(ProbeError, match="Input/output error; nothing was saved"):
        run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_short_read_is_a_failed_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: 100)
    with pytest.raises(ProbeError, match="moved 100 of"):
        run(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="disk probe failed in /proc/nothing"):
        run_probe(flags(Path("/proc/nothing"), tmp_path), None, True)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="--remote"):
        run(tmp_path, "redis://127.0.0.1:1?timeout=0.5")
    assert not (tmp_path / "probe.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "lmcache.bench/1"}', "\x00"])
def test_what_is_no_probe_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(text)
    with pytest.raises(UserError, match="--probe"):
        load_probe(path)


def test_warm_up_does_not_count() -> None:
    calls: list[int] = []
    figure = rates(lambda: calls.append(1) or 8, 4)  # type: ignore[func-returns-value]
    assert len(calls) == 5 and figure.n == 4 and figure.unit == "B/s"
    assert timed_figure(lambda: None, 3).unit == "s"
