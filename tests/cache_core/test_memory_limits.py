"""Memory limits: a tier that does not fit is refused in one line, before a page of it is taken."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cache_core.memory_limits import MemoryLimit, memory_limits, require_memory
from cache_core.tiers import MemoryTier, SlabMemory
from cache_core.tiers import memory as memory_module

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"


def lay_out(root: Path, mountinfo: str, cgroup: str, files: dict[str, str]) -> None:
    """A root directory as the kernel would show it."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text("22 27 0:21 / /proc rw - proc proc rw\n" + mountinfo)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def group(folder: str, limit: str, used: int, given_back: int, version: int) -> dict[str, str]:
    names = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if version == 1
        else ("memory.max", "memory.current", "inactive_file")
    )
    stat = f"cache 5\n{names[2]} {given_back}\nactive_file 7\n"
    return {
        f"{folder}/{names[0]}": f"{limit}\n",
        f"{folder}/{names[1]}": f"{used}\n",
        f"{folder}/memory.stat": stat,
    }


def of_groups(root: Path) -> list[MemoryLimit]:
    return [limit for limit in memory_limits(root) if "cgroup" in limit.name]


def test_version_1_with_what_is_used_and_what_would_be_given_back(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        V1.format(root="/"),
        "4:memory:/pods/one\n1:cpu:/elsewhere\n0::/\n",
        group("memory/pods/one", str(600 * MIB), 100 * MIB, 40 * MIB, 1)
        | group("memory/pods", str(9223372036854771712), 300 * MIB, 0, 1)
        | group("memory", str(800 * MIB), 700 * MIB, 0, 1),
    )
    assert of_groups(tmp_path) == [
        MemoryLimit(
            "the limit /sys/fs/cgroup/memory/pods/one/memory.limit_in_bytes", 600 * MIB, 60 * MIB
        ),
        MemoryLimit("the limit /sys/fs/cgroup/memory/memory.limit_in_bytes", 800 * MIB, 700 * MIB),
    ]
    require_memory(100 * MIB, "a tier", tmp_path)
    with pytest.raises(MemoryError) as refusal:
        require_memory(101 * MIB, "a tier", tmp_path)
    assert str(refusal.value) == (
        "a tier needs 101 MiB, and the limit /sys/fs/cgroup/memory/memory.limit_in_bytes of 800 MiB"
        " has 100 MiB left (700 MiB are used); ask for less, or raise the limit"
    )


def test_version_2_and_the_groups_above(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        V2.format(root="/"),
        "0::/user.slice/app.scope\n",
        group("user.slice/app.scope", "max", 10 * MIB, 0, 2)
        | group("user.slice", str(512 * MIB), 500 * MIB, 100 * MIB, 2),
    )
    assert of_groups(tmp_path) == [
        MemoryLimit("the limit /sys/fs/cgroup/user.slice/memory.max", 512 * MIB, 400 * MIB)
    ]


@pytest.mark.parametrize(
    ("mounted", "path"),
    [("/docker/abc", "/docker/abc"), ("/", "/"), ("/docker/abc", "/"), ("/..", "/../../x")],
)
@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_the_mount_is_the_group(
    version: int, mounted: str, path: str, tmp_path: Path
) -> None:
    """However much of the host's path it shows."""
    mount = (V1 if version == 1 else V2).format(root=mounted)
    line = f"4:memory:{path}\n" if version == 1 else f"0::{path}\n"
    folder = "memory" if version == 1 else "."
    lay_out(tmp_path, mount, line, group(folder, str(64 * MIB), 5 * MIB, MIB, version))
    assert [(limit.bytes, limit.used) for limit in of_groups(tmp_path)] == [(64 * MIB, 4 * MIB)]


def test_both_versions_at_once(tmp_path: Path) -> None:
    """As where systemd mounts an empty second one beside the first."""
    lay_out(
        tmp_path,
        V1.format(root="/") + V2.format(root="/").replace("cgroup rw -", "cgroup/unified rw -"),
        "4:memory:/a\n0::/b\n",
        group("memory/a", str(64 * MIB), 5 * MIB, MIB, 1)
        | group("unified/b", str(32 * MIB), 2 * MIB, MIB, 2),
    )
    assert sorted(limit.free for limit in of_groups(tmp_path)) == [31 * MIB, 60 * MIB]


def test_no_groups_at_all_leave_the_machine(tmp_path: Path) -> None:
    found = memory_limits(tmp_path)
    assert found[0].bytes == psutil.virtual_memory().total
    assert of_groups(tmp_path) == []
    with pytest.raises(MemoryError, match="this machine's memory"):
        require_memory(1 << 50, "a tier", tmp_path)


@pytest.mark.parametrize(
    ("number", "name"), [(resource.RLIMIT_AS, "RLIMIT_AS"), (resource.RLIMIT_DATA, "RLIMIT_DATA")]
)
def test_the_process_s_own_limits(number: int, name: str, tmp_path: Path) -> None:
    before = resource.getrlimit(number)
    own = psutil.Process().memory_info()
    used = own.vms if number == resource.RLIMIT_AS else own.data
    resource.setrlimit(number, (used + 4096 * MIB, before[1]))
    try:
        with pytest.raises(MemoryError, match=name):
            require_memory(4200 * MIB, "a tier", tmp_path)
    finally:
        resource.setrlimit(number, before)


class Counting(SlabMemory):
    """Fails at the third slab."""

    made = 0

    def _slab(self, nbytes: int) -> memory_module.Slab:
        self.made += 1
        if self.made == 3:
            raise MemoryError("no third")
        return super()._slab(nbytes)


def test_all_slabs_of_a_tier_count_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of them fits."""
    monkeypatch.setattr(memory_module, "SLAB_BYTES", 1 << 30)
    free = min(limit.free for limit in memory_limits())
    memory = Counting()
    with pytest.raises(MemoryError, match="a tier in memory needs"):
        MemoryTier("cpu", free // MIB + 64, MIB, memory)
    assert memory.made == 0


def test_slabs_that_were_made_are_given_back_when_one_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_module, "SLAB_BYTES", MIB)
    memory = Counting()
    with pytest.raises(MemoryError, match="no third"):
        memory.addresses(4, MIB)
    assert memory._slabs == []
    assert len(memory.addresses(2, MIB)) == 2


@pytest.fixture
def limited() -> Iterator[Path]:
    """A real group of 600 MiB; skips where none can be made."""
    name = f"lmcache-test-{uuid.uuid4().hex[:8]}"
    for top, most in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        made = top / name
        try:
            made.mkdir()
        except OSError:
            continue
        try:
            (made / most).write_text(str(600 * MIB))
        except OSError:
            made.rmdir()
            continue
        yield made
        made.rmdir()
        return
    pytest.skip("no control group with a memory limit can be made here")


def test_a_real_limit_refuses_and_does_not_kill(limited: Path) -> None:
    """600 MiB, and a cpu tier of 1 GiB: a line where there was a SIGKILL. One of 256 MiB fits, and
    then no second one of 400."""
    script = (
        "import os, sys\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "from cache_core.tiers import MemoryTier\n"
        "def make(mib):\n"
        "    try:\n"
        "        return MemoryTier('cpu', mib, 1 << 20)\n"
        "    except MemoryError as error:\n"
        "        print(error)\n"
        "assert make(1024) is None\n"
        "one = make(256)\n"
        "assert one is not None\n"
        "assert make(400) is None\n"
        "one.close()\n"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script, str(limited)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    first, second = done.stdout.splitlines()
    assert first.startswith("a tier in memory needs 1,024 MiB, and the limit /sys/fs/cgroup/")
    assert " of 600 MiB has " in first
    assert second.startswith("a tier in memory needs 400 MiB")
