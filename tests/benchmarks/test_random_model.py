"""Small models of random weights, one of each family, and what is counted of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers

from lmcache_cli.engines.transformers.layer_groups import layer_shapes
from lmcache_cli.tune.catalogue import find_architecture
from tests.processes import run_alone

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/models/random_model.py"


def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("random_model", SCRIPT)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


MADE = script()


def test_the_script_makes_a_folder_and_prints_it(tmp_path: Path) -> None:
    folder = str(tmp_path / "made")
    done = run_alone([sys.executable, str(SCRIPT), "gpt-oss", folder], 240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == folder
    assert json.loads((tmp_path / "made/config.json").read_text())["model_type"] == "gpt_oss"


@pytest.mark.parametrize("kind", MADE.KINDS)
def test_each_kind_answers_and_keeps_what_is_counted(kind: str, tmp_path: Path) -> None:
    folder = MADE.random_model(kind, tmp_path / kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer.encode("The harbour of the old town was")])
    assert ids.shape[1] > 3
    answer = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1)
    assert answer.shape[1] > ids.shape[1]
    found, shapes = find_architecture(folder), layer_shapes(kind, model)
    assert found.parameters == pytest.approx(sum(w.numel() for w in model.parameters()), rel=0.003)
    counted = {(k.keeps, k.span): k.layers * k.token_bytes(4) for k in found.kept}
    kept = {(s.keeps, s.span): 0 for s in shapes if s.token_bytes or s.state_bytes}
    for shape in shapes:
        if shape.token_bytes or shape.state_bytes:
            kept[shape.keeps, shape.span] += shape.token_bytes
    if kind == "deepseek-v32":
        # Its indexer's keys are 128 floats here, in vLLM 128 bytes and a scale.
        counted["all", None] += 4 * (128 * 4 - 132)
    assert counted == kept
    # transformers keeps one more row of a convolution than its kernel reaches back.
    states = sum(kind.layers * kind.state_items * 4 for kind in found.kept)
    rows = sum(kind.layers * kind.convolution_items * 4 for kind in found.kept)
    assert sum(shape.state_bytes for shape in shapes) == states + rows * 4 // 3
