"""Finds the GPU verbs, and what keeps them from being used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from cache_core import _native
from cache_core.place import Addresses
from cache_core.tiers.memory import SlabMemory

if TYPE_CHECKING:
    from cache_core import _cuda


class CudaMissing(RuntimeError):
    """One line: what is missing for the GPU verbs, and what to do."""


def cuda_module() -> ModuleType:
    """``cache_core._cuda``. Raises :class:`CudaMissing` where it is not built."""
    try:
        return import_module("cache_core._cuda")
    except ImportError as error:
        why = _native.CUDA
        if why.startswith("built"):
            why = f"built, but it does not load: {error}"
        raise CudaMissing(
            f"the CUDA kernels are {why}; install the CUDA toolkit and build again:"
            " make (or: pip install --no-build-isolation -e .)"
        ) from error


def cuda_devices() -> list[_cuda.Device]:
    """The GPUs. Raises :class:`CudaMissing` where there is none, or no driver."""
    cuda = cuda_module()
    try:
        found: list[_cuda.Device] = cuda.devices()
    except cuda.CudaError as error:
        raise CudaMissing(str(error)) from error
    if not found:
        raise CudaMissing("the driver sees no GPU; run where nvidia-smi lists one")
    return found


class PinnedMemory(SlabMemory):
    """Slabs that all GPUs reach directly: page-locked once, when they are made, by the context of
    ``device``, which is made for it: name a GPU that the process uses.

    ``addresses`` raises ``CudaError`` too, where the system lets no more memory be locked: then
    it has taken none.
    """

    def __init__(self, device: int = 0) -> None:
        super().__init__()
        self._cuda = cuda_module()
        self._device = device
        self._pinned: list[int] = []

    def addresses(self, chunks: int, stride: int) -> Addresses:
        known = len(self._slabs)
        found = super().addresses(chunks, stride)
        pinned = len(self._pinned)
        try:
            for slab in self._slabs[known:]:
                self._cuda.pin(slab.address, slab.nbytes, self._device)
                self._pinned.append(slab.address)
        except BaseException:
            self._unpin(pinned)
            del self._slabs[known:]
            raise
        return found

    def release(self) -> None:
        """Raises ``CudaError`` where the GPU is lost, after all else is given back."""
        errors = self._unpin(0)
        super().release()
        if errors:
            raise errors[0]

    def _unpin(self, first: int) -> list[Exception]:
        errors: list[Exception] = []
        for address in self._pinned[first:]:
            try:
                self._cuda.unpin(address, self._device)
            except self._cuda.CudaError as error:
                errors.append(error)
        del self._pinned[first:]
        return errors


def run_lengths(slots: np.ndarray, touching: bool, block_tokens: int) -> tuple[int, int]:
    """Runs of neighbouring slots in ``[n, tokens]``, and the tokens in them; -1 is in none.
    ``touching``: blocks follow one another without a gap, so that a run may span them."""
    if slots.size == 0:
        return 0, 0
    there = slots >= 0
    starts = there.copy()
    follows = there[:, 1:] & there[:, :-1] & (slots[:, 1:] == slots[:, :-1] + 1)
    if not touching:
        follows &= slots[:, 1:] % block_tokens != 0
    starts[:, 1:] &= ~follows
    return int(starts.sum()), int(there.sum())
