"""Ten thousand damages to a disk tier's files: never a wrong byte, a miss and a line for each.

A directory is filled once, with full segments and one that was being written, and kept in memory.
Each trial lays it out anew, damages it, opens it and reads everything.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cache_core import _native
from cache_core.tiers.disk import DiskTier
from cache_core.tiers.disk.format import BLOCK, SegmentHeader
from cache_core.tiers.tier import TierError
from tests.cache_core.disk_world import DiskWorld, fast_folder
from tests.cache_core.memory_engine import key

CHUNK_BYTES = 600
CAP_BYTES = 2 << 20
NUMBERS = list(range(70))
SLOTS = 12  # of a segment
WORLD = DiskWorld(CHUNK_BYTES)


def opened(directory: Path, **settings: object) -> DiskTier:
    defaults = {"segment_bytes": 2 * BLOCK + SLOTS * (2 * BLOCK + 40), "direct": False}
    return DiskTier("disk", directory, CAP_BYTES, CHUNK_BYTES, **(defaults | settings))  # type: ignore[arg-type]


@dataclass
class Image:
    """The files of a directory, and which record is where."""

    files: dict[str, bytes]
    spots: dict[int, tuple[str, int]]  # number -> file, offset of its record
    sealed: list[str]

    def numbers_in(self, name: str) -> set[int]:
        return {number for number, (file, _) in self.spots.items() if file == name}


@dataclass
class Trial:
    """One damaged copy. ``hurt`` may be missed; all else must be served."""

    image: Image
    directory: Path
    files: dict[str, bytearray] = field(default_factory=dict)
    hurt: set[int] = field(default_factory=set)

    def file(self, name: str) -> bytearray:
        return self.files.setdefault(name, bytearray(self.image.files[name]))

    def lay_out(self) -> None:
        for stale in self.directory.iterdir():
            if stale.name not in self.image.files or stale.suffix == ".seg":
                stale.unlink()
        for name, data in self.image.files.items():
            (self.directory / name).write_bytes(self.files.get(name, data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir=fast_folder(tmp_path_factory.mktemp("damage"))))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def image(folder: Path) -> Image:
    directory = folder / "image"
    tier = opened(directory, sync_s=3600)
    for at in range(0, len(NUMBERS), 10):
        assert all(WORLD.put(tier, NUMBERS[at : at + 10]))
    # 3 is written twice, 4 is discarded: both records are in the files.
    WORLD.put(tier, [3])
    tier.discard([key(4)])
    assert tier.sync()
    files = {p.name: p.read_bytes() for p in directory.iterdir()}
    names = sorted(name for name in files if name.endswith(".seg"))
    spots: dict[int, tuple[str, int]] = {}
    for name in names:
        header = SegmentHeader.unpack(files[name][:BLOCK])
        for slot in range(header.slots):
            at = header.offset(slot)
            record = files[name][at : at + BLOCK]
            if record.strip(b"\0"):
                spots[int.from_bytes(record[24:56], "little")] = (name, at)
    tier.close()
    del spots[4]
    assert len(names) == 6 and len(spots) == len(NUMBERS) - 1
    return Image(files, spots, names[:-1])


@pytest.fixture
def directory(folder: Path) -> Path:
    made = folder / "trial"
    made.mkdir(exist_ok=True)
    return made


def check(trial: Trial, caplog: pytest.LogCaptureFixture) -> tuple[set[int], list[str]]:
    """Opens and reads twice; returns what was missed and what the log said."""
    caplog.clear()
    trial.lay_out()
    tier = opened(trial.directory)
    try:
        served = set(WORLD.get(tier, NUMBERS))
        missed = set(trial.image.spots) - served
        assert missed <= trial.hurt, f"{missed - trial.hurt} were not damaged"
        said = [record.getMessage() for record in caplog.records]
        assert all(record.levelno == logging.WARNING for record in caplog.records)
        # A miss stays a miss and is not told again.
        assert set(WORLD.get(tier, NUMBERS)) == served
        assert len(caplog.records) == len(said)
        assert len(tier) == len(served)
        return missed, said
    finally:
        tier.close()


def lines_about(number: int, said: list[str]) -> int:
    return sum(f"chunk {key(number).hex()[:12]} " in line for line in said)


def check_records(trial: Trial, caplog: pytest.LogCaptureFixture) -> set[int]:
    """After damage to records only: one line for each miss, and none but for misses."""
    missed, said = check(trial, caplog)
    told = [n for n in missed if trial.image.spots[n][0] in trial.image.sealed]
    # Keys differ in their first bytes, so a line names one chunk.
    assert all(lines_about(number, said) == 1 for number in told)
    # A segment that was being written is looked through at once: one line for all in it.
    others = len(said) - len(told)
    assert others == (1 if len(missed) > len(told) else 0), said
    return missed


def victims(rng: random.Random, image: Image, count: int, sealed: bool = False) -> list[int]:
    """Different chunks; only of full segments if ``sealed``."""
    some = [n for n, (name, _) in image.spots.items() if not sealed or name in image.sealed]
    return rng.sample(sorted(some), count)


@pytest.mark.parametrize("seed", range(10))
def test_flipped_bits(
    seed: int, image: Image, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """4,000 records with a bit flipped, in the header or in the payload."""
    rng = random.Random(seed)
    for _ in range(25):
        trial = Trial(image, directory)
        trial.hurt = set(victims(rng, image, 16))
        for number in trial.hurt:
            name, at = image.spots[number]
            where = at + rng.choice([rng.randrange(BLOCK), BLOCK + rng.randrange(CHUNK_BYTES)])
            trial.file(name)[where] ^= 1 << rng.randrange(8)
        assert check_records(trial, caplog) == trial.hurt


@pytest.mark.parametrize("seed", range(5))
def test_zeroed_pages(
    seed: int, image: Image, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1,500 records with a page of zeros: what a lost write leaves."""
    rng = random.Random(seed)
    for _ in range(25):
        trial = Trial(image, directory)
        # An empty header is what a slot has that was never written: no news in an open segment.
        trial.hurt = set(victims(rng, image, 12, sealed=True))
        for number in trial.hurt:
            name, at = image.spots[number]
            page = at + BLOCK * rng.randrange(2)
            trial.file(name)[page : page + BLOCK] = bytes(BLOCK)
        assert check_records(trial, caplog) == trial.hurt


@pytest.mark.parametrize("seed", range(5))
def test_swapped_records(
    seed: int, image: Image, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1,500 pairs: whole records, or payloads alone, that changed places."""
    rng = random.Random(seed)
    for _ in range(30):
        trial = Trial(image, directory)
        chosen = victims(rng, image, 20, sealed=True)
        for one, other in zip(chosen[::2], chosen[1::2], strict=True):
            (a, at), (b, bt) = image.spots[one], image.spots[other]
            skip = rng.choice([0, BLOCK])
            size = 2 * BLOCK - skip
            trial.file(a)[at + skip : at + skip + size] = image.files[b][bt + skip :][:size]
            trial.file(b)[bt + skip : bt + skip + size] = image.files[a][at + skip :][:size]
            trial.hurt |= {one, other}
        assert check_records(trial, caplog) == trial.hurt


def test_an_older_record_of_the_same_chunk_is_not_taken_for_the_newer(
    image: Image, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """3 was written first to the first segment, and again to the last."""
    first = sorted(image.files)[0]
    header = SegmentHeader.unpack(image.files[first][:BLOCK])
    at = header.offset(3)
    trial = Trial(image, directory, hurt={3})
    name, newer = image.spots[3]
    assert name != first
    trial.file(name)[newer : newer + 2 * BLOCK] = image.files[first][at : at + 2 * BLOCK]
    assert check(trial, caplog)[0] <= {3}


@pytest.mark.parametrize("seed", range(5))
def test_cut_off_files(
    seed: int, image: Image, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1,000 segments that end too early, two in each trial, down to nothing at all."""
    rng = random.Random(seed)
    for _ in range(100):
        trial = Trial(image, directory)
        names = rng.sample(image.sealed, 2)
        for name in names:
            length = rng.randrange(len(image.files[name]))
            trial.hurt |= {
                number
                for number in image.numbers_in(name)
                if image.spots[number][1] + 2 * BLOCK > length or length < 3 * BLOCK
            }
            del trial.file(name)[length:]
        missed, said = check(trial, caplog)
        assert missed == trial.hurt
        for name in names:
            gone = missed & image.numbers_in(name)
            # Cut within the last record's padding or behind it, a file has lost nothing.
            told = sum(name in line for line in said)
            assert told == 1 if gone else told <= 1


@pytest.mark.parametrize("seed", range(5))
def test_damaged_headers_and_tables_of_segments(
    seed: int, image: Image, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """1,500 flipped bits in the first two blocks: a header costs its segment, a table nothing, as
    the records are read instead. Then 0 or more chunks are gone, and a line tells."""
    rng = random.Random(seed)
    for _ in range(100):
        trial = Trial(image, directory)
        names = rng.sample(image.sealed, 3)
        tables = set()
        for name in names:
            header = SegmentHeader.unpack(image.files[name][:BLOCK])
            if rng.random() < 0.5:
                trial.file(name)[rng.randrange(BLOCK)] ^= 1 << rng.randrange(8)
                trial.hurt |= image.numbers_in(name)
            else:
                tables.add(name)
                used = 64 + 40 * header.slots
                trial.file(name)[BLOCK + rng.randrange(used)] ^= 1 << rng.randrange(8)
        missed, said = check(trial, caplog)
        assert missed == trial.hurt
        assert all(sum(name in line for line in said) == 1 for name in names), said


@pytest.mark.parametrize("seed", range(5))
def test_damaged_deaths(
    seed: int, image: Image, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """500 of them: at worst a discarded chunk is back, as it was."""
    rng = random.Random(seed)
    for _ in range(100):
        trial = Trial(image, directory)
        data = trial.file("deaths")
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        else:
            del data[rng.randrange(len(data)) :]
        trial.lay_out()
        caplog.clear()
        tier = opened(directory)
        served = set(WORLD.get(tier, NUMBERS))
        tier.close()
        assert served - {4} == set(image.spots)
        assert not caplog.records


def future(data: bytes) -> bytes:
    """The segment as a later version would mark it."""
    block = bytearray(data[:BLOCK])
    block[8:12] = (2).to_bytes(4, "little")
    block[-4:] = _native.crc32c(bytes(block[:-4])).to_bytes(4, "little")
    return bytes(block) + data[BLOCK:]


def test_files_of_others_and_of_later_versions_are_left_alone(
    image: Image, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = image.sealed[:3]
    hurt = image.numbers_in(first) | image.numbers_in(second)
    trial = Trial(image, directory, hurt=hurt)
    trial.file(first)[:] = future(image.files[first])
    trial.file(second)[:] = random.Random(0).randbytes(50_000)
    trial.lay_out()
    strange = {
        "notes.txt": b"not a segment",
        "00000000000000ff.seg.bak": image.files[third],
        "zz.seg": b"",
    }
    for name, data in strange.items():
        (directory / name).write_bytes(data)
    tier = opened(directory)
    assert set(WORLD.get(tier, NUMBERS)) == set(image.spots) - hurt
    # Room that others take is not ours: what is served and stored keeps to the rest of the cap.
    assert (tier.capacity or 0) < 200
    fresh = list(range(1000, 1064))
    tier.discard([key(number) for number in NUMBERS])
    assert WORLD.get(tier, fresh[: WORLD.put(tier, fresh).count(True)])
    tier.close()
    for name in [first, second, *strange]:
        assert sum(f"{name} " in line for line in caplog.messages) == 1, name
    assert (directory / first).read_bytes() == future(image.files[first])
    assert (directory / second).read_bytes() == bytes(trial.files[second])
    assert all((directory / name).read_bytes() == data for name, data in strange.items())


@pytest.mark.parametrize(
    "text", ["lmcache disk tier, format 2\n", "lmcache disk tier, format 1", ""]
)
def test_another_format_is_refused_and_left_alone(text: str, image: Image, directory: Path) -> None:
    trial = Trial(image, directory)
    trial.file("FORMAT")[:] = text.encode()
    trial.lay_out()
    with pytest.raises(TierError, match="give the disk tier another directory"):
        opened(directory)
    names = {path.name for path in directory.iterdir()}
    assert names == set(image.files)
    assert all((directory / n).read_bytes() == trial.files.get(n, image.files[n]) for n in names)
