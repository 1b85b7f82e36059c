"""csrc's records: checksums by their published values, and a status for everything."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cache_core import _native

NAMESPACE = b"n" * 32
PAYLOAD = 10_000
SLOT = 4096 * 4


@pytest.mark.parametrize(
    ("data", "crc"),
    # RFC 3720, B.4, and the check value of the CRC catalogue.
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
        (b"", 0),
    ],
)
@pytest.mark.parametrize("portable", [False, True])
def test_crc32c(data: bytes, crc: int, portable: bool) -> None:
    assert _native.crc32c(data, 0, portable) == crc
    for cut in range(len(data)):
        assert _native.crc32c(data[cut:], _native.crc32c(data[:cut]), portable) == crc


def test_crc32c_is_the_same_in_both_ways() -> None:
    data = np.random.default_rng(0).bytes(4099)
    for size in (1, 7, 8, 63, 4092, 4099):
        assert _native.crc32c(data[:size]) == _native.crc32c(data[:size], 0, True)


def test_xxh3_128() -> None:
    """The specification's value for nothing, and the reference program's (xxhsum -H2)."""
    assert _native.xxh3_128(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert _native.xxh3_128(b"a").hex() == "a96faf705af16834e6c632b61e964e1f"
    assert _native.xxh3_128(b"abc").hex() == "06b05ab6733a618578af5f94892f3950"


class File:
    """Records in a file, and memory for them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.out = np.random.default_rng(1).integers(0, 256, (3, PAYLOAD), dtype=np.uint8)
        self.back = np.zeros_like(self.out)
        self.keys = np.arange(96, dtype=np.uint8).reshape(3, 32)
        self.sequences = np.array([5, 6, 7], dtype=np.uint64)
        self.offsets = np.arange(3, dtype=np.int64) * SLOT

    def fds(self, fd: int | None = None) -> NDArray[np.int32]:
        return np.full(3, self.fd if fd is None else fd, dtype=np.int32)

    def write(self, fd: int | None = None) -> list[int]:
        statuses = _native.write_records(
            self.fds(fd),
            self.offsets,
            _rows(self.out),
            self.keys,
            self.sequences,
            NAMESPACE,
            PAYLOAD,
            False,
            4,
        )
        return [int(status) for status in statuses]

    def read(self, namespace: bytes = NAMESPACE, payload: int = PAYLOAD) -> list[int]:
        self.back[:] = 0
        statuses = _native.read_records(
            self.fds(),
            self.offsets,
            _rows(self.back),
            self.keys,
            self.sequences,
            namespace,
            payload,
            False,
            4,
        )
        return [int(status) for status in statuses]


def _rows(array: NDArray[np.uint8]) -> NDArray[np.uint64]:
    steps = np.arange(len(array), dtype=np.uint64) * np.uint64(array.strides[0])
    return np.uint64(array.ctypes.data) + steps


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path / "records")
    assert made.write() == [0, 0, 0]
    yield made
    os.close(made.fd)


def test_records_come_back(file: File) -> None:
    assert file.read() == [0, 0, 0]
    assert np.array_equal(file.out, file.back)
    # The padding of the last block is zeros, not memory behind the chunk.
    raw = file.path.read_bytes()
    assert raw[4096 + PAYLOAD : SLOT] == bytes(SLOT - 4096 - PAYLOAD)


def test_each_record_has_its_own_status(file: File) -> None:
    os.pwrite(file.fd, b"x", 100)
    os.pwrite(file.fd, b"x", SLOT + 4096 + 77)
    assert file.read() == [-1, -3, 0]
    assert np.array_equal(file.out[2], file.back[2])
    os.ftruncate(file.fd, 2 * SLOT + 4096 + PAYLOAD)
    assert file.read() == [-1, -3, -4]


@pytest.mark.parametrize("other", ["key", "sequence", "namespace", "length"])
def test_another_record_is_not_taken_for_the_one(file: File, other: str) -> None:
    if other == "key":
        file.keys = file.keys ^ np.uint8(1)
    if other == "sequence":
        file.sequences = file.sequences + np.uint64(1)
    namespace = b"m" * 32 if other == "namespace" else NAMESPACE
    payload = PAYLOAD - 1 if other == "length" else PAYLOAD
    assert file.read(namespace, payload) == [-2, -2, -2]


def test_a_scan_tells_what_is_there(file: File) -> None:
    os.pwrite(file.fd, bytes(4096), 0)
    os.pwrite(file.fd, b"x", SLOT + 4096)
    statuses, keys, sequences = _native.scan_records(
        file.fds(), file.offsets, NAMESPACE, PAYLOAD, False, 4
    )
    assert statuses.tolist() == [-5, -3, 0]
    assert np.array_equal(keys[2], file.keys[2]) and sequences[2] == 7


def test_a_copy_is_the_record_as_it_is(file: File, tmp_path: Path) -> None:
    os.pwrite(file.fd, b"x", SLOT + 4096)
    other = os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT)
    to = np.array([2, 0, 1], dtype=np.int64) * SLOT
    fds = np.full(3, other, dtype=np.int32)
    done = _native.copy_records(file.fds(), file.offsets, fds, to, PAYLOAD, False, 4)
    assert done.tolist() == [0, 0, 0]
    raw, copied = file.path.read_bytes(), (tmp_path / "copy").read_bytes()
    assert [copied[at : at + SLOT] for at in to] == [raw[at : at + SLOT] for at in file.offsets]
    os.close(other)


def test_trouble_is_an_errno(file: File) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    assert file.write(full) == [errno.ENOSPC] * 3
    os.close(full)
    assert file.write(1 << 20) == [errno.EBADF] * 3
    reading = os.open(file.path, os.O_RDONLY)
    assert file.write(reading) == [errno.EBADF] * 3
    os.close(reading)
    assert file.read() == [0, 0, 0]


def test_arguments_that_do_not_fit_are_refused(file: File) -> None:
    file.offsets = np.array([0, 100, 4096], dtype=np.int64)
    with pytest.raises(ValueError, match=r"offsets\[1\] is 100; it must be a multiple of 4096"):
        file.read()
    file.offsets = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="offsets has 2 entries where 3 are needed"):
        file.read()
    file.offsets = np.arange(3, dtype=np.int64) * SLOT
    with pytest.raises(ValueError, match="namespace has 3 bytes"):
        file.read(b"abc")
    with pytest.raises(ValueError, match="payload_bytes is 0"):
        file.read(payload=0)
    file.keys = file.keys[:, :31]
    with pytest.raises(TypeError):
        file.read()
