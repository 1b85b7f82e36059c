"""Finds how much memory this process may still take, before the kernel kills it for that."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_MIB = 1 << 20
# cgroup v1 says "no limit" by the largest number of pages.
_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A limit of ``bytes`` in total, of which ``used`` are taken; ``name`` says whose it is."""

    name: str
    bytes: int
    used: int

    @property
    def free(self) -> int:
        return max(0, self.bytes - self.used)


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Returns the limits of the machine, of each control group that this process is in (v1 and v2,
    those above it too), and of its own address space. What the kernel would give back at once
    counts as free. ``root`` is where ``proc`` and the control groups' mounts are."""
    machine = psutil.virtual_memory()
    found = [MemoryLimit("this machine's memory", machine.total, machine.total - machine.available)]
    found += _of_groups(root)
    own = psutil.Process().memory_info()
    for number, name, used in (
        (resource.RLIMIT_AS, "ulimit -v (RLIMIT_AS)", own.vms),
        (resource.RLIMIT_DATA, "ulimit -d (RLIMIT_DATA)", own.data),
    ):
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            found.append(MemoryLimit(name, soft, used))
    return found


def tightest_limit(root: Path = Path("/")) -> MemoryLimit:
    """Returns the memory limit that leaves least."""
    return min(memory_limits(root), key=lambda limit: limit.free)


def require_memory(nbytes: int, purpose: str, root: Path = Path("/")) -> None:
    """Raises ``MemoryError``, in one line, if ``nbytes`` more can't be had. Takes no memory."""
    tightest = tightest_limit(root)
    if nbytes > tightest.free:
        raise MemoryError(
            f"{purpose} needs {_mib(nbytes)}, and {tightest.name} of {_mib(tightest.bytes)} has"
            f" {_mib(tightest.free)} left ({_mib(tightest.used)} are used); ask for less, or raise"
            " the limit"
        )


def _mib(nbytes: int) -> str:
    return f"{nbytes / _MIB:,.0f} MiB"


def _of_groups(root: Path) -> Iterator[MemoryLimit]:
    for kind, mounted_from, at in _mounts(root):
        path = _own_group(root, kind)
        if path is None:
            continue
        # In a container the path may be the host's: then the mount is the group itself.
        inside = path.relative_to(mounted_from) if path.is_relative_to(mounted_from) else None
        top = root / at.relative_to("/")
        group = top if inside is None or ".." in inside.parts else top / inside
        while True:
            limit = _limit_of(group, kind, root)
            if limit is not None:
                yield limit
            if group == top:
                break
            group = group.parent


def _mounts(root: Path) -> Iterator[tuple[str, PurePosixPath, PurePosixPath]]:
    """Yields the mounts of the memory controller: "cgroup" (v1) or "cgroup2", what part of its tree
    is mounted, and where; see proc(5), mountinfo."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        kind = kinds[0]
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in kinds[2].split(",")):
            yield kind, PurePosixPath(fields[3]), PurePosixPath(fields[4])


def _own_group(root: Path, kind: str) -> PurePosixPath | None:
    """Returns this process's control group in the hierarchy ``kind``; see cgroups(7)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        mine = number == "0" if kind == "cgroup2" else "memory" in controllers.split(",")
        if mine and path.startswith("/"):
            return PurePosixPath(path)
    return None


def _limit_of(group: Path, kind: str, root: Path) -> MemoryLimit | None:
    """Returns the memory limit of a control group; None if it has none."""
    most, current, given_back = (
        ("memory.max", "memory.current", "inactive_file")
        if kind == "cgroup2"
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    limit, used = _number(group / most), _number(group / current)
    if limit is None or used is None or limit >= _UNLIMITED:
        return None
    stat = dict(line.split(None, 1) for line in _text(group / "memory.stat").splitlines() if line)
    used = max(0, used - int(stat.get(given_back, "0")))
    return MemoryLimit(f"the limit /{(group / most).relative_to(root)}", limit, used)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


_UNITS = {
    "": 1,
    "b": 1,
    "k": 2**10,
    "m": 2**20,
    "g": 2**30,
    "t": 2**40,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def size_in_bytes(text: str) -> int:
    """Returns the bytes of a size such as ``512MiB``. KiB, MiB, GiB, TiB (or K, M, G, T) are powers
    of 1024, KB .. TB of 1000. Raises ``ValueError`` for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write it like 512MiB, 2GiB or 1.5GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])
