"""The stream that an engine's thread queues its work on."""

from __future__ import annotations

from typing import Any

import torch


def current_stream(device: torch.device) -> int:
    """The handle of the stream on which torch queues this thread's work on a CUDA device."""
    streams: Any = torch.cuda
    handle: int = streams.current_stream(device).cuda_stream
    return handle
