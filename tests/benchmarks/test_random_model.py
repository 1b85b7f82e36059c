"""Small models of random weights, one of each family."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

from lmcache_cli.errors import UserError
from lmcache_cli.tune.catalogue import find_architecture
from tests.processes import run_alone

pytestmark = pytest.mark.engine


ROOT = Path(__file__).parents[2]
KINDS = ("llama", "qwen3-moe", "mistral-sliding", "gemma3", "gpt-oss", "deepseek", "qwen3-next")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_made_loads_and_answers(kind: str, tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks/models/random_model.py")
    folder = str(tmp_path / kind)
    done = run_alone([sys.executable, script, kind, folder], 120)
    assert done.returncode == 0, done.stderr[-2000:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("The harbour of the old town was")])
    assert ids.shape[1] > 3
    answer = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1)
    assert answer.shape[1] > ids.shape[1]
    # What it is counted to have, or that it is refused by name.
    held = sum(weights.numel() for weights in model.parameters())
    if kind == "qwen3-next":
        with pytest.raises(UserError, match="linear_num_key_heads"):
            find_architecture(folder)
        return
    found = find_architecture(folder)
    assert found.parameters == pytest.approx(held, rel=0.02)
    assert ("window" in found.source) == (kind in ("mistral-sliding", "gemma3", "gpt-oss"))
