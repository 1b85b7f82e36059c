"""The commands of docs/engines, run as they are written there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from lmcache_cli.options.flags import flag_name
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.pages import commands
from tests.lmcache_cli.vllm_world import ARGS, QUIET, VllmAddress, tiny_model
from tests.vllm_process import need_vllm
from workloads import WORKLOAD_USES

pytestmark = pytest.mark.usefixtures("patient_client")
SMALL = ["--context-tokens", "300", "--documents", "2", "--questions", "2", "--output-tokens", "2"]
SMALL += ["--passages", "2", "--passage-tokens", "100"]


def run(words: list[str], cwd: Path, *more: str) -> None:
    """With fewer and shorter requests than the page has, which wins over nothing it says."""
    served = [word for word in words if word in WORKLOAD_USES] or ["long-context", "rag"]
    knobs = {flag_name(name) for names in WORKLOAD_USES.values() for name in names}
    used = {flag_name(name) for work in served for name in WORKLOAD_USES[work]}
    given = [(f, v) for f, v in zip(more[::2], more[1::2], strict=True) if f not in words]
    given = [(f, v) for f, v in given if f in used or f not in knobs]
    flags = [text for pair in given for text in pair]
    done = lmcache(*words[1:], *flags, cwd=cwd, **QUIET)
    assert done.returncode == 0, (words, done.stderr)
    assert "failed" not in done.stderr


@pytest.mark.vllm
@pytest.mark.parametrize("words", commands("openai.md"), ids=lambda words: words[2])
def test_openai(words: list[str], vllm_address: VllmAddress, tmp_path: Path) -> None:
    here = [re.sub(r"http://[\d.]+:8000", vllm_address.url, word) for word in words]
    if "--base-url" in here:  # the same server, by another name
        at = here.index("--base-url") + 1
        here[at] = here[at].replace("127.0.0.1", "localhost")
    assert here != words
    # A rate that even a busy machine keeps up with.
    run(here, tmp_path, *SMALL, "--requests", "4")


@pytest.mark.engine
@pytest.mark.parametrize("words", commands("transformers.md"), ids=" ".join)
def test_transformers(words: list[str], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    run(words, tmp_path, "--model", str(model), *SMALL, "--rounds", "2", "--sessions", "2")


@pytest.mark.parametrize("words", commands("simulated.md"), ids=" ".join)
def test_simulated(words: list[str], tmp_path: Path) -> None:
    run(words, tmp_path)


def test_vllm(tmp_path: Path) -> None:
    """The first two are run by ``test_engine_vllm``; the third needs LMCache beside vLLM."""
    *ours, words = commands("vllm.md")
    assert len(ours) == 2
    assert "lmcache" in words[words.index("--reuse") + 1].split(",")
    need_vllm()
    if not find_spec("lmcache"):
        pytest.skip("LMCache is not installed")
    model = tiny_model(tmp_path / "model")
    # With the default of 2 GiB a server and its cell need 4.5 GiB, which a busy machine lacks.
    more = ["--model", str(model), *SMALL, "--cpu-size", "64MiB", "--vllm-args", " ".join(ARGS)]
    run(words, tmp_path, *more)
