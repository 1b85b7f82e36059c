"""The disk tier: finds everything again, keeps to its cap, and never serves a wrong byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_core.cache import TieredCache
from cache_core.ledger import Placement
from cache_core.tiers import DiskTier, MemoryTier, TierError
from cache_core.tiers.tier import Read
from tests.cache_core.disk_world import MOST, DiskWorld, du, fast_folder
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine, key

CHUNK_BYTES = 5000
ROOT = Path(__file__).parents[2]
WORLD = DiskWorld(CHUNK_BYTES)


def opened(directory: Path, cap_bytes: int = 1 << 20, **settings: object) -> DiskTier:
    return DiskTier("disk", directory, cap_bytes, CHUNK_BYTES, **settings)  # type: ignore[arg-type]


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[DiskTier]:
    made = opened(tmp_path / "tier")
    yield made
    made.close()


def keys(numbers: list[int]) -> list[bytes]:
    return [key(number) for number in numbers]


@pytest.mark.parametrize("chunk_bytes", [1, 4095, 4096, 4097, 100_000])
@pytest.mark.parametrize("shift", [0, 8])
@pytest.mark.parametrize("folder", ["disk", "memory"])
def test_bytes_come_back(chunk_bytes: int, shift: int, folder: str, tmp_path: Path) -> None:
    """With O_DIRECT where there is a disk, without it in a tmpfs; memory aligned or not."""
    world = DiskWorld(chunk_bytes, shift)
    directory = fast_folder(tmp_path) if folder == "memory" else tmp_path
    directory = directory / f"lmcache-test-{os.getpid()}-{chunk_bytes}-{shift}"
    tier = DiskTier("disk", directory, 4 << 20, chunk_bytes)
    try:
        assert world.put(tier, [1, 2, 3]) == [True] * 3
        assert world.get(tier, [3, 1, 4, 2]) == [3, 1, 2]
        tier.close()
        tier = DiskTier("disk", directory, 4 << 20, chunk_bytes)
        assert world.get(tier, [1, 2, 3]) == [1, 2, 3]
    finally:
        tier.close()
        subprocess.run(["rm", "-r", str(directory)], check=True)


class Model:
    """What a tier must hold: the plainest thing that could be right."""

    def __init__(self, directory: Path, cap_bytes: int, segment_bytes: int | None) -> None:
        self.directory = directory
        self.cap_bytes = cap_bytes
        self.segment_bytes = segment_bytes
        self.held: dict[int, int] = {}  # number -> what its content is like
        self.tier = self.open()

    def open(self) -> DiskTier:
        return opened(self.directory, self.cap_bytes, segment_bytes=self.segment_bytes)

    def write(self, numbers: list[int], like: int) -> None:
        room = (self.tier.capacity or 0) - len(self.held)
        expected = []
        for number in numbers:
            fits = number in self.held or room > 0
            room -= fits and number not in self.held
            if fits:
                self.held.pop(number, None)
                self.held[number] = like
            expected.append(fits)
        assert WORLD.put(self.tier, numbers, like) == expected

    def check(self) -> None:
        assert len(self.tier) == len(self.held)
        assert du(self.directory) <= self.cap_bytes
        for like in set(self.held.values()):
            numbers = [number for number, other in self.held.items() if other == like]
            assert WORLD.get(self.tier, numbers, like) == numbers


operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"),
            st.lists(st.integers(0, 150), min_size=1, max_size=60, unique=True),
            st.sampled_from([0, 1000, 2000]),
        ),
        st.tuples(st.just("discard"), st.lists(st.integers(0, 150), max_size=60)),
        st.tuples(st.just("reopen")),
        st.tuples(st.just("sync")),
    ),
    min_size=3,
    max_size=30,
)


@settings(max_examples=200, deadline=None)
@given(operations, st.sampled_from([None, 30_000, 60_000, 150_000]), st.integers(600_000, 1 << 20))
def test_holds_what_a_dictionary_would(
    sequence: list[tuple[object, ...]], segment_bytes: int | None, cap_bytes: int
) -> None:
    with tempfile.TemporaryDirectory(dir=fast_folder(Path("/tmp"))) as name:
        directory = Path(name) / "tier"
        model = Model(directory, cap_bytes, segment_bytes)
        try:
            for operation, *arguments in sequence:
                if operation == "write":
                    model.write(*arguments)  # type: ignore[arg-type]
                elif operation == "discard":
                    (numbers,) = arguments
                    assert isinstance(numbers, list)
                    model.tier.discard(keys(numbers))
                    model.held = {n: v for n, v in model.held.items() if n not in numbers}
                elif operation == "reopen":
                    model.tier.close()
                    model.tier = model.open()
                    assert model.tier.recovered() == keys(list(model.held))
                else:
                    assert model.tier.sync()
                model.check()
        finally:
            model.tier.close()


def test_copies_make_room_when_holes_are_everywhere(tmp_path: Path) -> None:
    """Chunks leave at random, so that no segment empties by itself."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(dir=fast_folder(tmp_path)) as name:
        model = Model(Path(name) / "tier", 1 << 20, 60_000)
        fresh = 1000
        for _ in range(200):
            surplus = len(model.held) + 5 - (model.tier.capacity or 0)
            gone = rng.sample(sorted(model.held), max(0, surplus))
            model.tier.discard(keys(gone))
            model.held = {n: v for n, v in model.held.items() if n not in gone}
            model.write(list(range(fresh, fresh + 5)), 0)
            fresh += 5
        model.check()
        assert model.tier.counters.copied > 100
        model.tier.close()


def test_a_full_tier_refuses_new_chunks_and_takes_held_ones(tier: DiskTier) -> None:
    capacity = tier.capacity or 0
    numbers = list(range(capacity + 3))
    stored = [
        ok for at in range(0, len(numbers), MOST) for ok in WORLD.put(tier, numbers[at : at + MOST])
    ]
    assert stored == [True] * capacity + [False] * 3
    assert WORLD.put(tier, [0, capacity], like=1000) == [True, False]
    assert WORLD.get(tier, [0], like=1000) == [0]
    tier.discard([key(5), key(10_000)])
    assert WORLD.put(tier, [capacity]) == [True]


def test_a_chunk_given_twice_in_one_call_is_one_chunk(tier: DiskTier) -> None:
    assert WORLD.put(tier, [7, 7]) == [True, True]
    assert len(tier) == 1
    assert WORLD.get(tier, [7, 7]) == [7, 7]


def test_a_smaller_cap_keeps_the_newest(tmp_path: Path) -> None:
    tier = opened(tmp_path / "tier", 2 << 20)
    for at in range(0, 100, 10):
        WORLD.put(tier, list(range(at, at + 10)))
    tier.close()
    tier = opened(tmp_path / "tier", 700_000)
    held = tier.recovered()
    assert 0 < len(held) <= (tier.capacity or 0) < 100
    assert held == keys(list(range(100 - len(held), 100)))
    assert du(tmp_path / "tier") <= 700_000
    assert len(WORLD.get(tier, list(range(100)))) == len(held)
    tier.close()


@pytest.mark.parametrize("change", [{"namespace": b"n" * 32}, {"chunk_bytes": 6000}])
def test_chunks_of_another_shape_wait_until_room_is_needed(
    change: dict[str, object], tmp_path: Path
) -> None:
    directory = tmp_path / "tier"
    tier = opened(directory)
    first = list(range(40))
    assert all(WORLD.put(tier, first))
    tier.close()
    other = DiskTier("disk", directory, 1 << 20, **({"chunk_bytes": CHUNK_BYTES} | change))  # type: ignore[arg-type]
    world = DiskWorld(int(str(change.get("chunk_bytes", CHUNK_BYTES))))
    assert len(other) == 0
    assert world.get(other, first) == []
    assert world.put(other, [1]) == [True]
    other.close()
    tier = opened(directory)
    assert WORLD.get(tier, first) == first
    tier.close()
    other = DiskTier("disk", directory, 1 << 20, **({"chunk_bytes": CHUNK_BYTES} | change))  # type: ignore[arg-type]
    numbers = list(range(other.capacity or 0))
    for at in range(0, len(numbers), MOST):
        assert all(world.put(other, numbers[at : at + MOST]))
    assert du(directory) <= 1 << 20
    other.close()
    tier = opened(directory)
    assert len(tier) < len(first)
    tier.close()


def test_namespaces_share_a_directory_and_nothing_else(tmp_path: Path) -> None:
    """By turns: neither one's discards, nor its numbers, touch the other's chunks."""
    numbers = list(range(10))
    for turn in range(3):
        for name, gone in ((b"a" * 32, 3), (b"b" * 32, 7)):
            tier = opened(tmp_path / "tier", namespace=name)
            left = [n for n in numbers if n != gone]
            assert WORLD.get(tier, numbers) == (left if turn else [])
            WORLD.put(tier, numbers)
            tier.discard([key(gone)])
            tier.close()


def test_demotion_to_another_tier_and_damage_on_the_way(tier: DiskTier) -> None:
    cpu = MemoryTier("cpu", 8, CHUNK_BYTES)
    WORLD.put(tier, [1, 2, 3])
    assert all(cpu.write(keys([1, 3]), tier.place(keys([1, 3]))))
    WORLD.rows[:] = 0
    assert cpu.read(keys([1, 3]), WORLD.place(2)) == Read.of([True, True])
    assert (WORLD.rows[0] == WORLD.content(1)).all() and (WORLD.rows[1] == WORLD.content(3)).all()
    with pytest.raises(TierError, match="1 of 2 chunks can't be read"):
        cpu.write(keys([1, 9]), tier.place(keys([1, 9])))
    cpu.close()


def test_a_closed_tier_answers_nothing(tmp_path: Path) -> None:
    tier = opened(tmp_path / "tier")
    WORLD.put(tier, [1])
    tier.close()
    tier.close()
    assert len(tier) == 0 and tier.contains([key(1)]) == [False]
    assert WORLD.get(tier, [1]) == [] and WORLD.put(tier, [2]) == [False]
    assert not tier.sync()


def test_reads_from_many_threads_while_one_writes(tmp_path: Path) -> None:
    """Segments are copied and removed under the readers' feet."""
    numbers = list(range(20))
    wrong: list[str] = []
    done = threading.Event()
    with tempfile.TemporaryDirectory(dir=fast_folder(tmp_path)) as name:
        tier = opened(Path(name) / "tier", segment_bytes=60_000)
        WORLD.put(tier, numbers)

        def reader(seed: int) -> None:
            world = DiskWorld(CHUNK_BYTES)
            rng = random.Random(seed)
            try:
                while not done.is_set():
                    wanted = rng.sample(numbers, 5)
                    if world.get(tier, wanted) != wanted:
                        wrong.append("a held chunk was not served")
            except BaseException as error:
                wrong.append(repr(error))
                raise

        threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        rng = random.Random(9)
        held: list[int] = []
        writer = DiskWorld(CHUNK_BYTES)
        try:
            for fresh in range(100, 1100, 5):
                full = len(tier) + 5 > (tier.capacity or 0)
                gone = [held.pop(rng.randrange(len(held))) for _ in range(5 if full else 0)]
                tier.discard(keys(gone))
                assert all(writer.put(tier, list(range(fresh, fresh + 5))))
                held += range(fresh, fresh + 5)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not wrong
        assert tier.counters.copied > 0
        tier.close()


def serve(cache: TieredCache, engine: MemoryEngine, numbers: list[int]) -> dict[str, int]:
    """One request as an engine does it; returns what each tier gave."""
    hit = cache.acquire(keys(numbers))
    engine.wipe()
    loaded = cache.load(hit, engine.place(0, len(hit)))
    for i in range(loaded.chunks):
        assert engine.holds(i, numbers[i]), "a wrong byte was served"
    engine.fill(numbers)
    cache.store(keys(numbers), engine.place(0, len(numbers))).result()
    return loaded.by_tier


@pytest.mark.parametrize("placement", ["write_on_insertion", "write_on_eviction"])
def test_a_new_process_hits_what_the_last_one_stored(placement: Placement, tmp_path: Path) -> None:
    def start() -> TieredCache:
        cpu = MemoryTier("cpu", 3, LAYOUT.chunk_bytes)
        disk = DiskTier("disk", tmp_path / "tier", 2 << 20, LAYOUT.chunk_bytes)
        return TieredCache(LAYOUT, [cpu, disk], placement=placement)

    engine = MemoryEngine(LAYOUT, 4)
    cache = start()
    assert serve(cache, engine, [1, 2, 3]) == {}
    assert serve(cache, engine, [11, 12, 13]) == {}  # the cpu has only these now
    cache.check()
    cache.close()
    cache = start()
    cache.check()
    assert serve(cache, engine, [1, 2, 3]) == {"disk": 3}
    assert serve(cache, engine, [1, 2, 3]) == {"cpu": 3}
    cache.check()
    cache.clear()
    cache.close()
    cache = start()
    assert len(cache) == 0
    cache.close()


def test_damage_under_a_cache_costs_a_hit_and_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskTier("disk", tmp_path / "tier", 2 << 20, LAYOUT.chunk_bytes)
    cache = TieredCache(LAYOUT, [disk])
    engine = MemoryEngine(LAYOUT, 4)
    serve(cache, engine, [1, 2, 3])
    (segment,) = (tmp_path / "tier").glob("*.seg")
    data = segment.read_bytes()
    at = data.index(engine.chunk(1).tobytes()[:64])
    with open(segment, "r+b") as file:
        file.seek(at + 5)
        file.write(bytes([data[at + 5] ^ 4]))
    assert serve(cache, engine, [1, 2, 3]) == {"disk": 1}
    assert caplog.messages == [
        f"disk tier: chunk {key(2).hex()[:12]} in {segment} is lost:"
        " its bytes do not match their checksum"
    ]
    cache.check()
    assert serve(cache, engine, [1, 2, 3]) == {"disk": 3}
    assert cache.counters["disk"].failures == 1 and disk.counters.damaged == 1
    cache.close()


def test_survives_being_killed(tmp_path: Path) -> None:
    """A short run of benchmarks/kill.py, which does 200."""
    script = [sys.executable, str(ROOT / "benchmarks" / "kill.py"), "--kills", "15"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*script, "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("15 kills, ")
