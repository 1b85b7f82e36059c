"""``lmcache report`` from the outside, on a run of the simulated engine."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from junitparser import JUnitXml

from reports.run_file import read_run, write_run
from tests.lmcache_cli.command_line import lmcache, lmcache_process

BENCH = [
    *("bench", "long-context", "rag", "--engine", "simulated", "--requests", "6", "--quiet"),
    *("--documents", "2", "--questions", "3", "--context-tokens", "300"),
    *("--cpu-size", "8MiB,1GiB", "--chunk-tokens", "16,64"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run.parquet``, and what bench itself said of it."""
    folder = tmp_path_factory.mktemp("report")
    done = lmcache(*BENCH, "--json", "bench.json", "--csv", "bench.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "bench.txt").write_text(done.stdout)
    [run] = (folder / "runs").glob("*.parquet")
    run.rename(folder / "run.parquet")
    return folder


@pytest.mark.parametrize("format", ["text", "json", "csv"])
def test_says_what_bench_said(world: Path, format: str) -> None:
    ask = lmcache_process if format == "text" else lmcache
    done = ask("report", "run.parquet", "--format", format, cwd=world)
    assert done.returncode == 0, done.stderr
    said = (world / {"text": "bench.txt"}.get(format, f"bench.{format}")).read_text()
    if format == "text":
        said = said.rstrip("\n") + "\n"
        done.stdout = done.stdout.rstrip("\n") + "\n"
    assert done.stdout == said


def test_markdown_has_every_row(world: Path) -> None:
    done = lmcache("report", "run.parquet", "--out", "report.md", cwd=world)
    assert done.returncode == 0 and done.stdout == ""
    lines = (world / "report.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 * (2 + 5)
    assert len({line.count("|") for line in rows[:7]}) == 1
    assert "### long-context" in lines and "TTFT ms p90" in rows[0]


def test_junit_fails_where_requests_failed(world: Path) -> None:
    done = lmcache("report", "run.parquet", "--format", "junit", cwd=world)
    suite = next(iter(JUnitXml.fromstring(done.stdout)))
    assert (suite.tests, suite.failures, suite.errors) == (10, 0, 0)
    samples, meta = read_run(world / "run.parquet")
    broken = [
        replace(s, error="refused") if s.cell == 1 and i % 2 else s for i, s in enumerate(samples)
    ]
    write_run(world / "broken.parquet", broken, meta | {"complete": False})
    done = lmcache("report", "broken.parquet", "--out", "junit.xml", cwd=world)
    assert done.returncode == 0, done.stderr
    suite = next(iter(JUnitXml.fromfile(str(world / "junit.xml"))))
    assert (suite.tests, suite.failures, suite.errors) == (11, 1, 1)
    failed = next(case for case in suite if case.is_failure)
    assert "requests failed" in failed.result[0].message


def test_html_by_the_ending_of_out(world: Path) -> None:
    done = lmcache("report", "run.parquet", "--out", "page.html", cwd=world)
    assert done.returncode == 0, done.stderr
    text = (world / "page.html").read_text()
    assert text.startswith("<!doctype html>") and text.count("<figure") >= 8
    assert len(text) < 2_000_000, "small enough to mail"


def test_several_runs(world: Path) -> None:
    (world / "again.parquet").write_bytes((world / "run.parquet").read_bytes())
    both = ["report", "run.parquet", "again.parquet", "--format"]
    document = json.loads(lmcache(*both, "json", cwd=world).stdout)
    assert document["schema"] == "lmcache.report/1"
    assert [one["name"] for one in document["documents"]] == ["run", "again"]
    rows = list(csv.DictReader(lmcache(*both, "csv", cwd=world).stdout.splitlines()))
    assert [row["run"] for row in rows] == ["run"] * 10 + ["again"] * 10
    assert lmcache(*both, "text", cwd=world).stdout.count("long-context") >= 2


def test_what_check_keeps_is_skipped_among_runs_and_refused_alone(world: Path) -> None:
    samples, _ = read_run(world / "run.parquet")
    write_run(world / "check-1.parquet", samples, {"kind": "check", "complete": True})
    done = lmcache("report", "check-1.parquet", "run.parquet", "--format", "json", cwd=world)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == "lmcache.bench/1", "one run is left"
    [line] = done.stderr.splitlines()
    assert line.startswith("warning: check-1.parquet is skipped: the samples of a `lmcache check`")
    for names in (["check-1.parquet"], ["check-1.parquet", "check-1.parquet"]):
        done = lmcache("report", *names, cwd=world)
        assert done.returncode == 2 and done.stdout == ""
        [line] = done.stderr.splitlines()
        assert "check-1.parquet: the samples of a `lmcache check`, no run" in line


def test_without_the_extra_it_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name.startswith("vl-"):
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    done = lmcache("report", "run.parquet", "--format", "html", cwd=world)
    assert done.returncode == 4
    assert "vl-convert-python" in done.stderr and "lmcache-bench[report]" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = lmcache("report", "run.parquet", "--format", "csv", cwd=world)
    assert done.returncode == 0, "the other formats don't need it"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["missing.parquet"], "missing.parquet"),
        (["bench.json"], "give the .parquet run"),
        (["bench.csv"], "neither a run file nor JSON"),
        (["run.parquet", "--format", "pdf"], "text, json, csv, markdown, junit, html"),
        (["run.parquet", "--out", "/proc/no/where"], "can't be written"),
        (["other.json"], "lmcache.other/1"),
        (["cut.parquet"], "damaged or cut short"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(world: Path, args: list[str], words: str) -> None:
    (world / "other.json").write_text('{"schema": "lmcache.other/1"}')
    (world / "cut.parquet").write_bytes((world / "run.parquet").read_bytes()[:-100])
    done = lmcache("report", *args, cwd=world)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
