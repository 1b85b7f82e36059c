"""What a device has still to do when a call of torch returns."""

from __future__ import annotations

import torch


def wait_for(device: torch.device) -> None:
    """Returns when the device has done what this thread queued there, so that a clock that is read
    then tells the truth. A CPU has, always."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
