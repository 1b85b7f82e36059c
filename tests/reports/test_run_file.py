from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.run_file import RunFileError, read_run, write_run
from reports.sample import TIERS, Sample

Make = Callable[..., Sample]

times = st.floats(-1e6, 1e9)
counts = st.integers(0, 2**62)
samples_strategy = st.builds(
    Sample,
    cell=st.integers(0, 2**31 - 1),
    repeat=st.integers(0, 1000),
    request_id=st.text(),
    session=st.text(),
    workload=st.text(),
    prompt_tokens=counts,
    output_tokens=counts,
    scheduled_s=times,
    sent_s=times,
    first_token_s=times,
    finished_s=times,
    token_s=st.lists(times, max_size=4).map(tuple),
    hit_tokens=st.dictionaries(st.sampled_from(TIERS), counts),
    expected_hit_tokens=st.none() | counts,
    bytes_loaded=counts,
    bytes_stored=counts,
    load_s=times,
    lookup_s=times,
    prefill_s=times,
    output_ids=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    error=st.none() | st.text(),
)


@settings(deadline=None)  # the first call imports pyarrow
@given(samples=st.lists(samples_strategy, max_size=4))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, samples: list[Sample]) -> None:
    path = tmp_path_factory.mktemp("run") / "run.parquet"
    meta = {"seed": 7, "note": "Zürich 東京 🚀", "nested": {"cells": [1, None, 2.5]}}
    write_run(path, samples, meta)
    assert read_run(path) == (samples, meta | {"schema": "lmcache.run/1"})


def test_other_tools_can_read_it(tmp_path: Path, make_sample: Make) -> None:
    pandas: Any = importlib.import_module("pandas")
    path = tmp_path / "deep" / "er" / "run.parquet"
    write_run(path, [make_sample("é", hit_tokens={"cpu": 64}), make_sample("b")], {})
    frame = pandas.read_parquet(path)
    assert list(frame.request_id) == ["é", "b"]
    assert frame.hit_cpu[0] == 64
    assert list(frame.token_s[0]) == [1.0, 1.5]


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, make_sample: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.parquet"
    write_run(path, [make_sample("old")], {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFileError, match=r"run\.parquet: can't be written: No space left"):
        write_run(path, [make_sample("new")], {})
    assert [sample.request_id for sample in read_run(path)[0]] == ["old"]
    assert [file.name for file in tmp_path.iterdir()] == ["run.parquet"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(RunFileError, match="can't be written"):
        write_run(tmp_path / "runs" / "run.parquet", [], {})


def test_meta_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_run(tmp_path / "run.parquet", [], {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_a_run_cut_short_anywhere_is_refused(tmp_path: Path, make_sample: Make) -> None:
    path = tmp_path / "run.parquet"
    write_run(path, [make_sample(str(i)) for i in range(20)], {})
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        _refused(path)


def test_a_flipped_byte_never_changes_the_samples(tmp_path: Path, make_sample: Make) -> None:
    path = tmp_path / "run.parquet"
    samples = [make_sample(str(i), ttft=1.0 + i) for i in range(20)]
    write_run(path, samples, {"seed": 1})
    whole = path.read_bytes()
    refused = 0
    # the pages, which come first; the footer has no checksum of its own
    for position in range(4, len(whole) // 2, 31):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            found, _ = read_run(path)
        except RunFileError:
            refused += 1
        else:
            assert found == samples
    assert refused > 20


@pytest.mark.parametrize("content", [b"", b"PAR1", b"request,ttft\n1,2\n", b"PAR1" * 50])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.parquet"
    path.write_bytes(content)
    _refused(path)


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "No such file" in _refused(tmp_path / "none.parquet")
    assert "Is a directory" in _refused(tmp_path)


def test_parquet_of_another_tool(tmp_path: Path) -> None:
    assert "not a run" in _refused(_parquet(tmp_path, None))


def test_newer_and_strange_schemas(tmp_path: Path) -> None:
    newer = _refused(_parquet(tmp_path, {"schema": "lmcache.run/2"}))
    assert "newer lmcache-bench" in newer
    assert "upgrade" in newer
    for strange in ({"schema": "lmcache.tune/1"}, {"schema": "lmcache.run/x"}, {}, [1]):
        assert "schema" in _refused(_parquet(tmp_path, strange))


def test_a_run_without_its_columns(tmp_path: Path) -> None:
    assert "damaged" in _refused(_parquet(tmp_path, {"schema": "lmcache.run/1"}))


def test_importing_loads_no_pyarrow() -> None:
    code = "import sys, reports.run_file; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def _refused(path: Path) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(RunFileError) as caught:
        read_run(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 150
    return message


def _parquet(folder: Path, meta: object) -> Path:
    pyarrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    table = pyarrow.table({"a": [1, 2]})
    if meta is not None:
        table = table.replace_schema_metadata({b"lmcache": json.dumps(meta).encode()})
    path = folder / "other.parquet"
    parquet.write_table(table, path)
    return path


def test_reading_starts_no_threads(tmp_path: Path, make_sample: Make) -> None:
    """Arrow's pool, just started when the process ends, at times aborts it."""
    write_run(tmp_path / "run.parquet", [make_sample()], {})
    code = (
        "import os, sys, pyarrow.parquet; from reports.run_file import read_run\n"
        "threads = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = threads(); read_run('run.parquet'); print(before, threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=True,
        timeout=60,
    )
    before, after = done.stdout.split()
    assert before == after
