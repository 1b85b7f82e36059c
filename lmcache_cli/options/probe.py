"""Declares the flags of ``lmcache probe``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from lmcache_cli.options.flags import flag

_ENGINE = "The engine (only with --model)"


@dataclass(frozen=True)
class ProbeFlags:
    """The flags of ``lmcache probe``."""

    disk_path: Annotated[Path, flag("Folder on the disk to measure.", metavar="FOLDER")] = Path(
        "runs"
    )
    disk_size: Annotated[
        str,
        flag(
            "Size of the file to make on the disk; larger than the device's cache is better.",
            metavar="SIZE",
        ),
    ] = "512MiB"
    memory_size: Annotated[
        str, flag("Bytes to copy in memory; larger than the last-level cache.", metavar="SIZE")
    ] = "512MiB"
    remote: Annotated[str | None, flag("Remote tier to measure.", metavar="URL")] = None
    model: Annotated[
        str | None,
        flag(
            "Measure the engine transformers with this model too: prefill, decode steps, loads. A"
            " Hugging Face id, a folder, or embedded (SmolLM2-135M).",
            _ENGINE,
        ),
    ] = None
    device: Annotated[str, flag("Device: cpu, cuda, cuda:1.", _ENGINE)] = "cpu"
    dtype: Annotated[str, flag("Number format: auto, float32, bfloat16 or float16.", _ENGINE)] = (
        "auto"
    )
    context_tokens: Annotated[int, flag("Longest prompt that is measured.", _ENGINE)] = 2048
    transfer: Annotated[
        bool,
        flag(
            "Measure instead how fast a GPU's ways of moving KV are (--device), for the planner;"
            " saved as transfer.json.",
            None,
            "--transfer",
        ),
    ] = False
    repeat: Annotated[int, flag("Repeats per figure.")] = 5
    out: Annotated[Path, flag("Folder for the probe file.", metavar="FOLDER")] = Path("runs")
