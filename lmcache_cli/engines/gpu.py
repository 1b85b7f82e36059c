"""The embedded engine's KV on a GPU, moved by the CUDA kernels where they are built."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch

from cache_core.transfer.cuda import cuda_module
from cache_core.transfer.gpu import GpuWays, Ready
from cache_core.transfer.streams import current_stream

if TYPE_CHECKING:
    from cache_core import _cuda

logger = logging.getLogger("lmcache")


def ways_of(device: torch.device) -> GpuWays | None:
    """What moves KV on this device. None where torch has to, said once: no CUDA device, or kernels
    that are not built or don't start."""
    return _ways(index_of(device)) if device.type == "cuda" else None


def index_of(device: torch.device) -> int:
    """The number of a CUDA device, which torch leaves out where it is the current one."""
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def _ways(index: int) -> GpuWays | None:
    try:
        return GpuWays(index)
    except RuntimeError as error:  # CudaMissing and CudaError
        logger.warning("KV is moved by torch, which is slow: %s", error)
        return None


def after_now(device: torch.device) -> Ready:
    """Orders streams behind what this thread has queued on the device so far."""
    mark: _cuda.Mark = cuda_module().Mark(index_of(device), current_stream(device))
    return mark.hold
