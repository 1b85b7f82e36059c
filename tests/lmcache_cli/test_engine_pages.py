"""The commands of docs/engines, run as they are written there."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.lmcache_cli.command_line import lmcache_process
from tests.lmcache_cli.vllm_world import ARGS, QUIET, VllmAddress, need_vllm, tiny_model

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"```console\n(.*?)```", re.DOTALL)
SMALL = ["--context-tokens", "300", "--documents", "2", "--questions", "2", "--output-tokens", "2"]
SMALL += ["--passages", "2", "--passage-tokens", "100"]


def commands(page: str) -> list[list[str]]:
    """Each line behind a ``$`` that is ours, as words; pip's are only held to be pip's."""
    text = (ROOT / "docs" / "engines" / page).read_text()
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    assert lines and all(line.startswith(("$ lmcache ", "$ pip ")) for line in lines)
    ours = [line for line in lines if line.startswith("$ lmcache ")]
    return [shlex.split(line.removeprefix("$ ")) for line in ours]


def run(words: list[str], cwd: Path, *more: str) -> None:
    """With fewer and shorter requests than the page has, which wins over nothing it says."""
    given = [(f, v) for f, v in zip(more[::2], more[1::2], strict=True) if f not in words]
    flags = [text for pair in given for text in pair]
    for _ in range(3):
        done = lmcache_process(*words[1:], *flags, cwd=cwd, timeout_s=900, **QUIET)
        # Beside other tests a run may be void, as it says: requests left too late.
        if "ms late (p90)" not in done.stderr:
            break
    assert done.returncode == 0, (words, done.stderr)
    assert "failed" not in done.stderr


@pytest.mark.parametrize("words", commands("openai.md"), ids=lambda words: words[2])
def test_openai(words: list[str], vllm_address: VllmAddress, tmp_path: Path) -> None:
    here = [word.replace("http://127.0.0.1:8000", vllm_address.url) for word in words]
    assert here != words
    # A rate that even a busy machine keeps up with.
    run(here, tmp_path, *SMALL, "--requests", "4")


@pytest.mark.parametrize("words", commands("transformers.md"), ids=" ".join)
def test_transformers(words: list[str], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    run(words, tmp_path, "--model", str(model), *SMALL, "--rounds", "2", "--sessions", "2")


@pytest.mark.parametrize("words", commands("simulated.md"), ids=" ".join)
def test_simulated(words: list[str], tmp_path: Path) -> None:
    run(words, tmp_path)


@pytest.mark.parametrize("words", commands("vllm.md"), ids=" ".join)
def test_vllm(words: list[str], tmp_path: Path) -> None:
    need_vllm()
    if any("lmcache" in word.split(",") for word in words[1:]) and not find_spec("lmcache"):
        pytest.skip("LMCache is not installed")
    model = tiny_model(tmp_path / "model")
    # With the default of 2 GiB a server and its cell need 4.5 GiB, which a busy machine lacks.
    more = ["--model", str(model), *SMALL, "--cpu-size", "64MiB", "--vllm-args", " ".join(ARGS)]
    run(words, tmp_path, *more)
