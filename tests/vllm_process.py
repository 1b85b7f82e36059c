"""Scenarios in processes that have imported vLLM already.

Importing vLLM takes some twenty seconds of a core; a fork of a process that has done it, none.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.processes import kill_all

ROOT = Path(__file__).parents[1]

# What an engine in this process imports on its way, and what changes how it does.
PRELOADED = (
    "tests.cache_core.adapters.engine_in_process",
    "vllm.entrypoints.llm",
    "vllm.model_executor.models.llama",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.executor.multiproc_executor",
    "vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector",
)


def need_vllm() -> None:
    """Skips where vLLM is not installed; fails there if LMCACHE_REQUIRE asks for it."""
    if find_spec("vllm") is None:
        if "vllm" in os.environ.get("LMCACHE_REQUIRE", ""):
            pytest.fail("vLLM is not installed, and LMCACHE_REQUIRE says that it is: `make vllm`")
        pytest.skip("vLLM is not installed; `make vllm` installs it")


def run_with_vllm(script: str | Path, *arguments: str, timeout_s: float = 600) -> str:
    """Runs a script, or ``-m MODULE``, as a process of its own, and returns what it prints.

    The test fails where it ends with another status than 0, and where it takes longer than
    ``timeout_s``: then it hangs, and is killed with all that it started.
    """
    need_vllm()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        words = [str(script), *arguments]
        process = context.Process(target=_run, args=(words, str(out), str(err)))
        process.start()
        try:
            process.join(timeout_s)
            said = err.read_text()[-3000:] if err.exists() else ""
            assert process.exitcode is not None, f"{words} hangs after {timeout_s} s: {said}"
            assert process.exitcode == 0, said
            return out.read_text().strip()
        finally:
            if process.pid is not None:
                kill_all(process.pid)
                process.join()


def fork_ranks() -> None:
    """Has vLLM fork its engine and its ranks from this process, as it does on a GPU; on a CPU each
    imports everything anew."""
    from vllm.platforms.cpu import CpuPlatform

    configure = CpuPlatform.check_and_update_config

    def then_fork(config: Any) -> None:
        configure(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    setattr(CpuPlatform, "check_and_update_config", staticmethod(then_fork))  # noqa: B010


def _run(words: Sequence[str], out: str, err: str) -> None:
    os.setsid()
    for number, path in ((1, out), (2, err)):
        with open(path, "w") as file:
            os.dup2(file.fileno(), number)
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
    sys.stdout.flush()
