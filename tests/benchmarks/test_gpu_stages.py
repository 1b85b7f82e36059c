"""The real stages' commands are ones that the project takes, and need nothing but what it says."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.gpu import __main__ as main_module
from benchmarks.gpu import modules, wheels
from benchmarks.gpu.card import Card, NoCard, card
from benchmarks.gpu.card import main as card_main
from benchmarks.gpu.files import compiled_digest, replace_text, sources_digest
from benchmarks.gpu.stage import Stage
from benchmarks.gpu.stages import DRY, REAL, Sizes, Where, stages
from lmcache_cli.main import make_app

ROOT = Path(__file__).parents[2]
BUDGET_S = 8 * 60


def table(sizes: Sizes, folder: Path = Path("/some where"), **more: Any) -> dict[str, Stage]:
    where = Where("/usr/bin/python3", folder / "results", folder / "scratch", **more)
    return {stage.name: stage for stage in stages(sizes, where)}


@pytest.mark.parametrize("sizes", [REAL, DRY])
def test_stages_need_earlier_ones(sizes: Sizes) -> None:
    seen: list[str] = []
    for name, stage in table(sizes).items():
        assert set(stage.needs) | set(stage.after) <= set(seen)
        assert stage.limit_s >= stage.least_s
        seen.append(name)
    assert len(seen) == len(set(seen))
    # It can hang a GPU.
    assert seen[-1] == "transfer"


def test_all_leave_the_others_time() -> None:
    assert main_module._BUDGET_S < BUDGET_S
    least = sum(stage.least_s for stage in table(REAL).values() if not stage.beside)
    assert least < main_module._BUDGET_S / 2


def test_a_rehearsal_has_every_stage() -> None:
    real, dry = table(REAL), table(DRY)
    assert list(real) == list(dry)
    # What a rehearsal leaves out, it tells.
    assert real["memcheck"].tool == "compute-sanitizer"
    assert "compute-sanitizer" not in dry["memcheck"].command
    assert dry["memcheck"].remark == "on emulated GPUs, without compute-sanitizer"
    for name in ("cuda_tests", "probe", "transfer"):
        assert dry[name].remark == "on emulated GPUs"
        assert "benchmarks.gpu.emulated" in dry[name].command
        assert "benchmarks.gpu.emulated" not in real[name].command
    assert "no:cacheprovider" in real["memcheck"].command
    assert real["memcheck"].command[5:] == real["cuda_tests"].command[:-2]


def commands(name: str) -> list[str]:
    """What comes behind ``lmcache`` in a real stage."""
    words = list(table(REAL)[name].command)
    return words[words.index("lmcache_cli.main") + 1 :]


@pytest.mark.parametrize("name", ["probe", "long", "rag"])
def test_lmcache_takes_the_flags(name: str) -> None:
    verb, *words = commands(name)
    command: Any = typer.main.get_command(make_app(verb))
    context = command.commands[verb].make_context(verb, words)
    if verb == "bench":
        assert context.params["device"] == "cuda"
        assert context.params["chunk_tokens"] == "256"
        assert str(context.params["model"]) == "/some where/scratch/model"
    else:
        assert context.params["transfer"]


def test_sizes_are_those_of_the_docs() -> None:
    long, rag = " ".join(commands("long")), " ".join(commands("rag"))
    assert "--context-tokens 25000" in long
    assert "--device-size 0,8GiB" in long
    assert "--cpu-size 8GiB" in long
    assert "--reuse off,prefix,blend" in rag
    assert "--passages 4 " in rag
    assert "--passage-tokens 2000" in rag
    assert "--size 8b --device cuda" in " ".join(table(REAL)["model"].command)


@pytest.mark.parametrize("sizes", [REAL, DRY])
def test_scripts_and_modules_are_there(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    transfer = importlib.import_module("benchmarks.transfer")
    for stage in table(sizes).values():
        for word in stage.command:
            if word.endswith(".py"):
                assert (ROOT / word).is_file()
            if word.startswith("benchmarks.gpu."):
                importlib.import_module(word)
    words = [word.replace("{seconds}", "60") for word in table(sizes)["transfer"].command]
    args = transfer.arguments(words[words.index("benchmarks/transfer.py") + 1 :])
    assert args.gpu
    assert args.limit == 60


def test_what_was_carried_is_told_to_its_stages() -> None:
    where: dict[str, Any] = {
        "wheels": Path("/w h"),
        "modules": Path("/so"),
        "architecture": "90-real",
    }
    carried = table(REAL, **where)
    assert carried["wheels"].command[-2:] == ("--carried", "/w h")
    assert carried["modules"].command[-5:] == (
        "--carried", "/so", "--architecture", "90-real", "--gpu",
    )  # fmt: skip
    assert "--gpu" not in table(DRY)["modules"].command


def test_what_others_have_in_scratch_stays(tmp_path: Path) -> None:
    where = Where("python", tmp_path / "results", tmp_path / "scratch")
    for folder in (where.site, where.model, where.build, where.cache):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    other = where.scratch / "other"
    other.touch()
    where.clear()
    assert list(where.scratch.iterdir()) == [other]
    other.unlink()
    where.clear()
    assert not where.scratch.exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_hands_on_its_variables() -> None:
    words = ("DRY=1", "GPU_WHEELS=w", "GPU_MODULES=m", "GPU_ARGS=--budget 9")
    # As on a machine with no .venv, and with its own Python; and not as a part of `make test`.
    flags = ["--dry-run", "--no-print-directory", "--file", str(ROOT / "Makefile")]
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
    done = subprocess.run(
        ["make", *flags, "gpu", "PYTHON=python9", *words],
        cwd=ROOT / "docs", capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name not in outer},
    )  # fmt: skip
    line = " ".join(done.stdout.replace("\\\n", " ").split())
    assert line == (
        "python9 -m benchmarks.gpu --out runs/gpu-dry --dry --wheels w --modules m --budget 9"
    )


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA H100 80GB HBM3, 580.159.04, 81559 MiB, 9.0'")
    found = card()
    assert found == Card("NVIDIA H100 80GB HBM3", "580.159.04", "81559 MiB", "9.0")
    assert found.architecture == "90-real"
    program(tmp_path, "nvidia-smi", "echo No devices were found")
    with pytest.raises(NoCard, match="nvidia-smi sees none: No devices were found"):
        card()
    program(tmp_path, "nvidia-smi", "exit 9")
    with pytest.raises(NoCard, match="it says nothing"):
        card()


def test_without_a_gpu_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main_module.main(["--out", str(tmp_path / "out")]) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ("make gpu: no GPU: there is no nvidia-smi here; rehearse with: make gpu DRY=1\n")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main_module.main(["--dry", "--out", str(tmp_path / "file" / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"make gpu: {tmp_path / 'file'}")
    assert line.endswith("; name another with GPU_OUT or --scratch")


def test_carried_modules_are_those_of_this_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, carried = tmp_path / "cache_core", tmp_path / "so"
    monkeypatch.setattr(modules, "PACKAGE", package)
    package.mkdir()
    carried.mkdir()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (carried / f"_native{suffix}").write_text("native")
    (carried / "_cuda.cpython-27m.so").write_text("another Python's")
    assert modules.place(carried, cuda=True) == f"{carried} has no _cuda{suffix}"
    assert list(package.iterdir()) == []
    assert modules.place(carried, cuda=False) == ""
    (carried / f"_cuda{suffix}").write_text("cuda")
    assert modules.place(carried, cuda=True) == ""
    assert {file.name: file.read_text() for file in package.iterdir()} == {
        f"_native{suffix}": "native",
        f"_cuda{suffix}": "cuda",
    }


def test_carried_modules_of_other_sources_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, carried = tmp_path / "cache_core", tmp_path / "so"
    monkeypatch.setattr(modules, "PACKAGE", package)
    package.mkdir()
    carried.mkdir()
    for name in modules.names(cuda=True):
        (carried / name).touch()
    (carried / "sources.txt").write_text("of long ago")
    assert modules.place(carried, cuda=True) == f"the modules in {carried} are of other sources"
    assert list(package.iterdir()) == []
    (carried / "sources.txt").write_text(compiled_digest())
    assert modules.place(carried, cuda=True) == ""


def test_modules_older_than_their_sources_are_built_again(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("_native.so", "_cuda.so", "a.cpp", "b.cpp")]
    made, sources = files[:2], files[2:]
    for age, file in enumerate(reversed(files)):
        file.touch()
        os.utime(file, (age, age))
    assert modules.are_newer(made, sources)
    os.utime(sources[0], (3, 3))
    assert not modules.are_newer(made, sources)
    os.utime(sources[0], (2, 2))
    assert modules.are_newer(made, sources)
    made[1].unlink()
    assert not modules.are_newer(made, sources)


def test_requirements_are_those_of_the_project(tmp_path: Path) -> None:
    required = wheels.required()
    assert {"numpy", "torch", "transformers", "junitparser", "pytest"} <= set(required)
    assert "gguf" not in required
    assert wheels.lacking(required, tmp_path) == []
    (tmp_path / "some_thing-1.0.dist-info").mkdir()
    (tmp_path / "some_thing-1.0.dist-info" / "METADATA").write_text("Name: some-thing\n")
    assert wheels.lacking(["some-thing", "no-such-thing"], tmp_path) == ["no-such-thing"]


def test_a_digest_is_of_the_sources_alone(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cpp").write_text("int a;")
    first = sources_digest(tmp_path)
    (tmp_path / "csrc" / "a.so").write_text("built")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("told")
    assert sources_digest(tmp_path) == first
    (tmp_path / "csrc" / "a.cpp").write_text("int b;")
    second = sources_digest(tmp_path)
    shutil.move(tmp_path / "csrc" / "a.cpp", tmp_path / "csrc" / "b.cpp")
    assert len({first, second, sources_digest(tmp_path)}) == 3


def test_a_file_is_whole_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    replace_text(file, "old")
    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", lambda self, target: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            replace_text(file, "new")
    assert file.read_text() == "old"
    replace_text(file, "new")
    assert file.read_text() == "new"


def test_facts_of_a_machine_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there does not hide the rest."""
    import torch

    monkeypatch.setenv("PATH", str(tmp_path))
    card_main(["--", str(tmp_path / "facts.json")])
    found = json.loads((tmp_path / "facts.json").read_text())
    assert found["torch"] == {"version": torch.__version__, "cuda": torch.version.cuda}
    assert found["machine"]["cores"] > 0
    assert found["card"] == {"error": "NoCard: there is no nvidia-smi here"}
    assert found["nvcc"]["error"].startswith("FileNotFoundError")
