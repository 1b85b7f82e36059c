"""Finds the GPU verbs, and what keeps them from being used."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from cache_core import _native
from cache_core.layout import Addresses
from cache_core.tiers.memory import Slab, SlabMemory

if TYPE_CHECKING:
    from cache_core import _cuda


# Where Linux says what is on the PCI bus.
PCI_DEVICES = Path("/sys/bus/pci/devices")


class CudaMissing(RuntimeError):
    """The GPU verbs can't be used; the text says in one line what is missing and what to do."""


def cuda_module() -> ModuleType:
    """Returns ``cache_core._cuda``. Raises :class:`CudaMissing` where it is not built."""
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
    """Returns the GPUs. Raises :class:`CudaMissing` where there is none, or no driver."""
    cuda = cuda_module()
    try:
        found: list[_cuda.Device] = cuda.devices()
    except cuda.CudaError as error:
        raise CudaMissing(str(error)) from error
    if not found:
        raise CudaMissing("the driver sees no GPU; run where nvidia-smi lists one")
    return found


def numa_node(device: int) -> int:
    """Returns the NUMA node next to a GPU; -1 if the system does not say. Raises ``CudaError``."""
    address: str = cuda_module().pci_address(device)
    try:
        return int((PCI_DEVICES / address / "numa_node").read_text())
    except (OSError, ValueError):
        return -1


class PinnedMemory(SlabMemory):
    """Slabs that all GPUs reach directly: page-locked once, when they are made, by the context of
    ``device``, which is made for it: name a GPU that the process uses. They lie next to that GPU,
    as far as its NUMA node has space.

    A slab that is forgotten is unpinned before its pages go. ``addresses`` raises ``CudaError``
    too, where the system lets no more memory be locked: then it has taken none.
    """

    def __init__(self, device: int = 0) -> None:
        super().__init__()
        self._cuda = cuda_module()
        self._device = device
        self._pinned: list[_cuda.PinnedSlab] = []

    def addresses(self, chunks: int, stride: int) -> Addresses:
        known = len(self._slabs)
        try:
            return super().addresses(chunks, stride)
        except BaseException:
            del self._slabs[known:], self._pinned[known:]
            raise

    def release(self) -> None:
        """Gives the memory back. Raises ``CudaError`` at the end if the GPU is lost."""
        errors = []
        for slab in self._pinned:
            try:
                slab.unpin()
            except self._cuda.CudaError as error:
                errors.append(error)
        self._pinned.clear()
        super().release()
        if errors:
            raise errors[0]

    def _slab(self, nbytes: int) -> Slab:
        node = numa_node(self._device)
        slab: _cuda.PinnedSlab = self._cuda.PinnedSlab(nbytes, self._device, node)
        self._pinned.append(slab)
        return slab
