"""Digests of the files that weights are read from."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

import pytest

from cache_core import weights
from cache_core.weights import FileDigests, adapter_files, file_identity, model_files


def files(root: Path, *names: str) -> list[Path]:
    made = [root / name for name in names]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode() * 100)
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read, in order."""
    seen: list[Path] = []
    digest: Callable[[Path, int, int], str] = weights._digest

    def spy(path: Path, size: int, full: int) -> str:
        seen.append(path)
        return digest(path, size, full)

    monkeypatch.setattr(weights, "_digest", spy)
    return seen


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour has passed since anything was written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_600_000_000_000)


def test_weights_configuration_and_code_count_wherever_they_lie(tmp_path: Path) -> None:
    wanted = files(tmp_path, "a.safetensors", "b.bin", "c.pth", "config.json", "m.py", "x/d.gguf")
    files(tmp_path, "README.md", "generation_config.json", ".cache/e.bin", "f.txt")
    assert model_files(tmp_path) == sorted(wanted)
    assert model_files(wanted[0]) == [wanted[0]]
    assert model_files(tmp_path / "none") == []


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path: Path) -> None:
    wanted = files(tmp_path, "x/a.bin")
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    assert len(model_files(tmp_path)) == len(wanted)


def test_of_an_adapter_its_own_files_count(tmp_path: Path) -> None:
    wanted = files(tmp_path, "adapter_config.json", "adapter_model.bin", "new_embeddings.bin")
    files(tmp_path, "optimizer.pt", "checkpoint-1/adapter_model.bin")
    assert adapter_files(tmp_path) == sorted(wanted)
    assert adapter_files(tmp_path / "none") == []


def test_bytes_and_names_decide(tmp_path: Path) -> None:
    one, two = files(tmp_path, "a.bin", "b.bin")
    digests = FileDigests(None)
    first = digests.of([one, two], tmp_path)
    assert len(first) == 64
    one.write_bytes(b"other")
    changed = digests.of([one, two], tmp_path)
    two.rename(tmp_path / "c.bin")
    renamed = digests.of([one, tmp_path / "c.bin"], tmp_path)
    assert len({first, changed, renamed}) == 3
    assert digests.of([], tmp_path) == ""


def test_the_digest_of_one_file_is_what_it_was(tmp_path: Path) -> None:
    # Converted copies of the embedded model are named by it.
    (tmp_path / "m.gguf").write_bytes(b"weights")
    known = "2a3168fc912af057a050c1bd7a6c5d89c29ec8a4b557cae5611e3a23b274311b"
    assert FileDigests(None).of([tmp_path / "m.gguf"], tmp_path / "m.gguf") == known


@pytest.mark.usefixtures("later")
def test_a_file_is_read_once_by_all_processes(tmp_path: Path, reads: list[Path]) -> None:
    shared = tmp_path / "shared"
    made = files(tmp_path / "m", "a.bin", "b.bin")
    first = FileDigests(shared)
    values = {first.of(made, tmp_path / "m"), first.of(made, tmp_path / "m")}
    values.add(FileDigests(shared).of(made, tmp_path / "m"))
    assert len(values) == 1
    assert reads == made
    # Nothing unfinished is left.
    assert [path.name for path in shared.iterdir() if len(path.name) != 64] == []


@pytest.mark.usefixtures("later")
def test_of_processes_that_start_together_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = files(tmp_path, "a.bin")
    both = threading.Barrier(2)
    reads = []

    def slow(path: Path, size: int, full: int) -> str:
        reads.append(path)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # two that read at once meet here
        return "0" * 64

    monkeypatch.setattr(weights, "_digest", slow)

    def ask(_: int) -> str:
        return FileDigests(tmp_path / "shared").of([path], tmp_path)

    with ThreadPoolExecutor(2) as pool:
        values = set(pool.map(ask, range(2)))
    assert len(values) == len(reads) == 1


READER = """
import sys, time
from pathlib import Path
from cache_core.weights import model_digest
now = time.time_ns
time.time_ns = lambda: now() + 3_600_000_000_000  # an hour has passed since the files were written
def read():
    return int(Path("/proc/self/io").read_text().split()[1])
print("ready", flush=True)
sys.stdin.readline()
before = read()
digest = model_digest(Path(sys.argv[1]))
print(digest, read() - before)
"""


def test_a_scheduler_and_its_workers_read_each_byte_once(tmp_path: Path) -> None:
    size = 0
    for number in range(3):
        (tmp_path / "m").mkdir(exist_ok=True)
        data = number.to_bytes(1) * (16 << 20)
        (tmp_path / "m" / f"{number}.safetensors").write_bytes(data)
        size += len(data)
    command = [sys.executable, "-c", READER, str(tmp_path / "m")]
    env = os.environ | {"HOME": str(tmp_path / "home")}
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(3)
    ]
    try:
        for process in started:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in started:  # all at once
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=60)[0].split() for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert len({digest for digest, _ in told}) == 1
    # Notes and modules are read besides, but far less than a file.
    assert size <= sum(int(read) for _, read in told) < size + (4 << 20)


@pytest.mark.usefixtures("later")
def test_a_process_that_reads_for_ever_is_not_waited_for(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = files(tmp_path, "a.bin")
    held = lock_of(path, tmp_path / "shared")
    reads.clear()
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    value = FileDigests(tmp_path / "shared").of([path], tmp_path)
    assert value == FileDigests(None).of([path], tmp_path)
    assert 5 <= now < 6 and len(reads) == 2
    assert held.name in [str(file) for file in (tmp_path / "shared").iterdir()]  # not ours
    held.close()


@pytest.mark.usefixtures("later")
def test_who_waits_takes_what_is_left_at_once(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = files(tmp_path, "a.bin")
    shared = tmp_path / "shared"
    held = lock_of(path, shared)
    reads.clear()

    def sleep(seconds: float) -> None:
        (shared / Path(held.name).stem).write_text("a" * 64)

    monkeypatch.setattr(time, "sleep", sleep)
    FileDigests(shared).of([path], tmp_path)
    assert reads == []
    held.close()


def lock_of(path: Path, shared: Path) -> IO[bytes]:
    """The lock of who reads the file now."""
    FileDigests(shared).of([path], path.parent)
    (note,) = shared.iterdir()
    note.unlink()
    lock = (shared / f"{note.name}.lock").open("ab")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


@pytest.mark.usefixtures("later")
def test_writers_do_not_lose_each_others_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = files(tmp_path / "m", "a.bin", "b.bin")
    shared = tmp_path / "shared"
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        # What another process writes beside is there in one moment, and gone in the next.
        yield from [*listed(folder), folder / "tmp-of-another"]

    monkeypatch.setattr(Path, "iterdir", iterdir)
    FileDigests(shared).of(made, tmp_path / "m")
    assert len(list(listed(shared))) == len(made)


@pytest.mark.usefixtures("later")
def test_a_file_of_one_model_does_not_hold_up_another(tmp_path: Path, reads: list[Path]) -> None:
    one, two = files(tmp_path, "a.bin", "b.bin")
    held = lock_of(one, tmp_path / "shared")
    reads.clear()
    FileDigests(tmp_path / "shared").of([two], tmp_path)
    assert reads == [two]
    held.close()


def test_without_a_home_nothing_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    assert weights._shared() is None


@pytest.mark.usefixtures("later")
def test_other_bytes_of_the_same_length_and_time_are_read_again(
    tmp_path: Path, reads: list[Path]
) -> None:
    (path,) = files(tmp_path, "a.bin")
    digests = FileDigests(tmp_path / "shared")
    first = digests.of([path], tmp_path)
    stamp = path.stat()
    time.sleep(0.02)  # the clock that stamps files moves in steps
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    assert digests.of([path], tmp_path) != first
    assert len(reads) == 2


def test_what_was_just_written_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    (path,) = files(tmp_path, "a.bin")
    digests = FileDigests(tmp_path / "shared")
    digests.of([path], tmp_path)
    digests.of([path], tmp_path)
    assert len(reads) == 2


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("text", ["", "short", "g" * 64, "\xff"])
def test_a_damaged_note_is_read_anew(tmp_path: Path, reads: list[Path], text: str) -> None:
    shared = tmp_path / "shared"
    (path,) = files(tmp_path, "a.bin")
    value = FileDigests(shared).of([path], tmp_path)
    (note,) = shared.iterdir()
    note.write_bytes(text.encode("latin1"))
    assert FileDigests(shared).of([path], tmp_path) == value
    assert len(reads) == 2


@pytest.mark.usefixtures("later")
def test_a_place_that_can_not_be_used_costs_time_only(tmp_path: Path, reads: list[Path]) -> None:
    (path,) = files(tmp_path, "a.bin")
    (tmp_path / "file").write_text("no folder")
    digests = FileDigests(tmp_path / "file")
    assert digests.of([path], tmp_path) == FileDigests(None).of([path], tmp_path)
    assert len(reads) == 2


@pytest.mark.usefixtures("later")
def test_notes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_MOST_KNOWN", 4)
    shared = tmp_path / "shared"
    made = files(tmp_path / "m", *(f"{i}.bin" for i in range(9)))
    digests = FileDigests(shared)
    digests.of(made, tmp_path / "m")
    assert len(list(shared.iterdir())) in (3, 4)  # the latest lock counts, while it is there
    assert len(digests._known) <= 4


def test_of_large_files_samples_over_all_of_it_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_FULL_BYTES", 1 << 20)
    path = tmp_path / "a.bin"
    size = 200 << 20
    values = set()
    for place in (None, 0, size // 2, size - 1):
        with path.open("wb") as file:
            file.truncate(size)
            if place is not None:
                for start in range(max(0, place - (4 << 20)), place + 1, 1 << 12):
                    file.seek(start)
                    file.write(b"x")
        values.add(FileDigests(None).of([path], tmp_path))
    assert len(values) == 4


def test_identity_follows_a_replacement(tmp_path: Path) -> None:
    one, two = files(tmp_path, "a.bin", "b.bin")
    before = file_identity(one)
    two.replace(one)
    assert file_identity(one) != before
