"""What is left after CUDA refuses a call or a GPU is lost: see tests/cuda_emulation."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest

from cache_core import _native
from cache_core.tiers import memory as memory_module
from cache_core.transfer.cuda import PinnedMemory
from tests.cache_core.emulated_cuda import (
    INVALID_VALUE,
    LAUNCH_FAILURE,
    NO_MEMORY,
    NOT_SUPPORTED,
    VERBS,
    Emulation,
    emulated,
)
from tests.cache_core.paged_world import large, random_bytes, u64
from tests.cache_core.test_cuda import on_gpu_paged


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


class Case:
    """One verb, ready to go, on chunks that are pinned or not."""

    def __init__(self, emulation: Emulation, name: str, pinned: bool) -> None:
        self.world = large("NHD", 2, 0, 64)
        self.engine = random_bytes(self.world.engine_bytes, 1)
        self.memory = PinnedMemory()
        if pinned:
            [at] = self.memory.addresses(1, self.world.chunk_bytes)
            whole = (ctypes.c_uint8 * self.world.chunk_bytes).from_address(int(at))
            self.chunks = np.ctypeslib.as_array(whole)
        else:
            self.chunks = np.zeros(self.world.chunk_bytes, np.uint8)
        self.chunks[:] = random_bytes(self.world.chunk_bytes, 2)
        self.device = emulation.cuda.DeviceMemory(0, self.world.engine_bytes)
        # Room for one chunk in each half: both take turns.
        self.transfer = emulation.cuda.Transfer(0, 0, 1 << 18)
        _, slots, there = self.world.arguments(_native, self.engine, self.chunks)
        self.arguments = (on_gpu_paged(self.world, self.device.address), slots, there, "NHD")
        self.more = VERBS[name]
        self.name = name

    def queue(self) -> None:
        getattr(self.transfer, self.name)(*self.arguments, *self.more)

    def run(self) -> None:
        self.queue()
        self.transfer.synchronize()

    def works(self) -> bool:
        """Whether the transfer still moves what it should, by kernel and by copies."""
        self.transfer.synchronize()
        address, size = u64(self.device.address), u64(self.world.engine_bytes)
        expected = random_bytes(self.world.chunk_bytes, 2)
        paged, slots, there = self.world.arguments(_native, self.engine, expected)
        _native.gather(paged, slots, there, "NHD")
        for name in ("gather", "gather_dma"):
            self.transfer.copy(address, u64(self.engine.ctypes.data), size)
            self.chunks[:] = random_bytes(self.world.chunk_bytes, 2)
            getattr(self.transfer, name)(*self.arguments)
            self.transfer.synchronize()
            if not np.array_equal(self.chunks, expected):
                return False
        return True


def failure(emulation: Emulation, call: Callable[[], object]) -> str:
    """The one line of the ``CudaError`` that the call raises; empty for none."""
    try:
        call()
    except emulation.cuda.CudaError as error:
        text = str(error)
        assert "\n" not in text
        assert "(cudaError" in text
        assert "; " in text  # and what to do
        return text
    return ""


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("name", sorted(VERBS))
def test_each_call_fails_once(emulation: Emulation, name: str, pinned: bool, seed: int) -> None:
    """An error is one ``CudaError``, after which nothing is under way and all works again."""
    for error in (INVALID_VALUE, NO_MEMORY, LAUNCH_FAILURE, NOT_SUPPORTED):
        for n in range(1, 1000):
            emulation.reset(seed)
            case = Case(emulation, name, pinned)
            emulation.fail_call(n, error)
            if failure(emulation, case.queue):
                assert emulation.pending == 0
            failed = emulation.failed
            emulation.fail_call(0, 0)
            assert emulation.unread_error() == 0
            assert case.works()
            case.memory.release()
            assert emulation.violation == ""
            if not failed:
                break
        assert n > 5


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("name", sorted(VERBS))
def test_a_lost_context(emulation: Emulation, name: str, pinned: bool, seed: int) -> None:
    """Whatever fails on the GPU: the next call to wait tells it, later calls too, nothing hangs."""
    for n in range(1, 100):
        emulation.reset(seed)
        case = Case(emulation, name, pinned)
        emulation.fail_work(n)
        text = failure(emulation, case.run)
        if not text:
            case.memory.release()
            break
        assert "context is lost" in text
        calls: list[Callable[[], object]] = [
            case.run,
            case.transfer.synchronize,
            partial(case.transfer.wait_for, 0),
            partial(emulation.cuda.DeviceMemory, 0, 4096),
        ]
        for call in calls:
            with pytest.raises(emulation.cuda.CudaError, match="context is lost"):
                call()
        if pinned:
            with pytest.raises(emulation.cuda.CudaError, match="unpinning"):
                case.memory.release()
        case.memory.release()
        assert emulation.unread_error() == 0
    assert n > 1


@pytest.mark.parametrize("device", [0, 1])
def test_a_transfer_that_can_not_be_made_leaves_nothing(emulation: Emulation, device: int) -> None:
    made: list[Callable[[], object]] = [
        lambda: emulation.cuda.Transfer(device),
        lambda: emulation.cuda.DeviceMemory(device, 4096),
    ]
    for make in made:
        for n in range(1, 100):
            emulation.reset()
            emulation.fail_call(n, NO_MEMORY)
            before = emulation.live()
            failure(emulation, make)
            assert emulation.live() == before
            assert emulation.unread_error() == 0
            if not emulation.failed:
                break
        assert n > 2


def test_memory_that_can_not_be_pinned_is_given_back(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_module, "SLAB_BYTES", 8192)
    for n in range(1, 20):
        emulation.reset()
        memory = PinnedMemory()
        memory.addresses(1, 4096)
        emulation.fail_call(n, NO_MEMORY)
        text = failure(emulation, lambda memory=memory: memory.addresses(6, 4096))  # type: ignore[misc]
        assert ("page-locked" in text) == emulation.failed
        assert emulation.live()[4] == (1 if text else 4)
        emulation.fail_call(0, 0)
        memory.addresses(6, 4096)
        memory.release()
        assert emulation.live()[4] == 0
    with pytest.raises(emulation.cuda.CudaError, match=r"unpinning memory: .*NotRegistered"):
        emulation.cuda.unpin(1 << 20)


def test_an_error_that_another_left_is_not_ours(emulation: Emulation) -> None:
    case = Case(emulation, "scatter", pinned=False)
    assert emulation.calls.cudaHostUnregister(ctypes.c_void_p(1 << 20)) == 713
    case.run()
    assert emulation.calls.cudaGetLastError() == 713


def test_a_forked_process_is_told(emulation: Emulation) -> None:
    case = Case(emulation, "gather", pinned=False)
    child = os.fork()
    if child == 0:
        try:
            case.run()
        except emulation.cuda.CudaError as error:
            os._exit(42 if "does not survive a fork" in str(error) else 1)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 42
    case.run()
