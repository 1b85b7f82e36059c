"""The verbs of ``_native`` on GPUs. The module is there where it was built with a CUDA toolkit
(``_native.CUDA`` says so or why not) and loads without a driver; :func:`cache_core.transfer.cuda`
finds it.

Arguments are as of ``_native``. A ``Paged`` is of memory that the GPU can reach. Verbs of a
:class:`Transfer` queue their work on its stream and return; memory must stay until
:meth:`Transfer.synchronize`. They raise what ``_native``'s do, ``ValueError`` for memory of another
GPU or not aligned to its items, and :class:`CudaError`, whose text says what to do.
"""

from typing import Final, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from cache_core._native import Paged
from cache_core.layout import Addresses, Order

Slots = NDArray[np.int64]
Item = Literal["float32", "bfloat16", "float16"]
Code = Literal["fp8", "int8"]

ARCHITECTURES: Final[str]
TOOLKIT: Final[str]

class CudaError(RuntimeError): ...

class Device(TypedDict):
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int

def devices() -> list[Device]:
    """Raises :class:`CudaError` where there is no driver."""

def pci_address(device: int) -> str:
    """As the files of ``/sys/bus/pci/devices`` name the GPU."""

def pin(address: int, nbytes: int, device: int = 0) -> None:
    """Page-locks host memory, for all GPUs, by the context of one."""

def unpin(address: int, device: int = 0) -> None: ...

class PinnedSlab:
    """A ``_native.Slab`` that is page-locked for as long as it is there, for all GPUs, by the
    context of one. ``numa_node``: whose memory it is first, -1 for any. Raises ``MemoryError`` and
    :class:`CudaError`."""

    def __init__(self, nbytes: int, device: int, numa_node: int = -1) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def unpin(self) -> None:
        """Now, instead of at its end, which raises nothing."""

class Mark:
    """What a stream of a GPU, given by its handle, has queued when this is made. ``ValueError`` for
    a stream that captures a graph, here and in :meth:`hold`."""

    def __init__(self, device: int, stream: int) -> None: ...
    def hold(self, stream: int) -> None:
        """What this stream of the GPU queues next comes after it. The caller goes on at once."""

class DeviceMemory:
    """Memory of a GPU, for measurements and tests."""

    def __init__(self, device: int, nbytes: int) -> None: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Transfer:
    """One stream of one GPU; one thread at a time. Chunks are all on that GPU or all on the host.

    ``ctas`` are the thread blocks of a kernel, 0 for four per multiprocessor; a few leave the GPU
    to the model. Coding, and moves within the GPU's memory, take four times as many.
    Chunks in pageable memory pass through ``staging_bytes`` of pinned memory, in two halves that
    take turns. ``urgent``: the GPU runs its kernels ahead of those of other streams.
    """

    def __init__(
        self, device: int, ctas: int = 0, staging_bytes: int = 64 << 20, urgent: bool = False
    ) -> None: ...
    @property
    def stream(self) -> int:
        """Its handle."""

    def gather(self, paged: Paged, slots: Slots, chunks: Addresses, order: Order) -> None: ...
    def scatter(self, paged: Paged, slots: Slots, chunks: Addresses, order: Order) -> None: ...
    def gather_dma(self, paged: Paged, slots: Slots, chunks: Addresses, order: Order) -> None:
        """``gather`` by copy engines: a copy for each run of bytes, up to 4,096 in a batch."""

    def scatter_dma(self, paged: Paged, slots: Slots, chunks: Addresses, order: Order) -> None: ...
    def gather_coded(
        self, paged: Paged, slots: Slots, chunks: Addresses, order: Order, dtype: Item, codec: Code
    ) -> None: ...
    def scatter_coded(
        self, paged: Paged, slots: Slots, chunks: Addresses, order: Order, dtype: Item, codec: Code
    ) -> None: ...
    def copy(self, dst: Addresses, src: Addresses, nbytes: Addresses) -> None:
        """Flat copies in any direction."""

    def wait_for(self, stream: int) -> None:
        """What is queued here next comes after all that ``stream`` has queued so far: the handle of
        a stream of this GPU, 0 for the default one. ``ValueError`` if it captures a graph."""

    def release_to(self, stream: int) -> None:
        """What ``stream`` queues next comes after all that is queued here so far."""

    def synchronize(self) -> None: ...
