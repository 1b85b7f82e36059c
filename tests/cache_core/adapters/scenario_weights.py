"""Weights and adapters that change while an engine runs: what differs is never served.

Prints one JSON object. Arguments: model folder, scratch folder.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import VOCABULARY, engine, settle

PROMPT = [(7 * i * i + 3) % (VOCABULARY - 3) + 3 for i in range(200)]
_SERIAL = count()


def main() -> None:
    model, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    options = {
        "chunk_tokens": 32,
        "cpu_size": "64MiB",
        "disk_size": "200MiB",
        "disk_path": str(scratch / "weights"),
    }
    found: dict[str, Any] = {}
    with engine(model, options, enable_lora=True, max_lora_rank=8) as (llm, counts):
        Play(llm, counts, scratch, found).run()
    # The folder is as it was: what the first weights made is right, and nothing else is.
    with engine(model, options, enable_lora=True, max_lora_rank=8) as (llm, counts):
        found["restart"] = Play(llm, counts, scratch, found).compare()
    print(json.dumps(found))


class Play:
    """Asks twice at each point: cold, under a salt of its own, and as anybody would."""

    def __init__(
        self, llm: Any, counts: dict[str, float], scratch: Path, found: dict[str, Any]
    ) -> None:
        self.llm, self.counts, self.scratch, self.found = llm, counts, scratch, found

    def run(self) -> None:
        found = self.found
        found["first"] = self.compare()
        found["again"] = self.compare()
        found["vllm resets"] = self.llm.reset_prefix_cache()
        found["after a plain reset"] = self.compare()
        found["saved anew"] = self.compare()
        # As trainers do, through .data, and told to nobody.
        self.llm.collective_rpc(scale, args=(1.5,))
        found["told to nobody"] = self.compare(warm_first=True)
        found["new weights"] = self.compare()
        found["new weights again"] = self.compare()
        self.llm.collective_rpc(scale, args=(1.25,))
        self.llm.reset_prefix_cache()
        found["weights and a reset"] = self.compare()
        self.llm.collective_rpc(scale, args=(1 / 1.875,))
        self.llm.reset_prefix_cache(reset_connector=True)
        found["weights and both resets"] = self.compare()
        found["ten times"] = {way: self.ten_times(change) for way, change in WAYS.items()}
        self.adapters()
        found["counts"] = self.counts

    def ten_times(self, change: Any) -> dict[str, Any]:
        """As a trainer does, update by update: told to nobody, or by either reset."""
        points = []
        for n in range(10):
            self.llm.collective_rpc(change, args=(1.5 if n % 2 else 1 / 1.5,))
            if n % 3 == 1:
                self.llm.reset_prefix_cache()
            elif n % 3 == 2:
                self.llm.reset_prefix_cache(reset_connector=True)
            points.append(self.compare(warm_first=n % 3 == 0))
            points.append(self.compare())
        return {
            "same": [point["same"] for point in points],
            "hits": [point["hits"] for point in points[1::2]],
            "changed": [points[n]["cold"] != points[n + 2]["cold"] for n in range(0, 18, 2)],
        }

    def adapters(self) -> None:
        from vllm.lora.request import LoRARequest

        folder = self.scratch / "adapter"
        write_adapter(folder, 1, 16)
        one = LoRARequest("one", 1, str(folder))
        self.found["adapter"] = self.compare(one)
        self.found["adapter again"] = self.compare(one)
        write_adapter(folder, 2, 16)
        # As /v1/load_lora_adapter does: the requests that follow say so too.
        loaded = LoRARequest("one", 1, str(folder), load_inplace=True)
        self.llm.llm_engine.add_lora(loaded)
        self.found["adapter in place"] = self.compare(loaded)
        self.found["adapter in place again"] = self.compare(loaded)
        write_adapter(folder, 2, 64)
        two = LoRARequest("two", 2, str(folder))
        self.found["another alpha"] = self.compare(two)
        self.found["another alpha again"] = self.compare(two)
        write_adapter(folder, 3, 16)
        # Files changed, and vLLM was not told: it has those of before.
        self.found["files changed"] = self.compare(two)
        self.found["files changed again"] = self.compare(two)

    def compare(self, lora: Any = None, warm_first: bool = False) -> dict[str, Any]:
        cold_salt = f"cold {os.getpid()} {next(_SERIAL)}"
        cold = None if warm_first else self.ask(cold_salt, lora)
        hits, failed = self.hits(), self.counts.get("failed_loads", 0.0)
        warm = self.ask(None, lora)
        hits, failed = self.hits() - hits, self.counts.get("failed_loads", 0.0) - failed
        cold = cold or self.ask(cold_salt, lora)
        return {"cold": cold, "same": cold == warm, "hits": hits, "failed": failed}

    def ask(self, salt: str | None, lora: Any) -> list[int]:
        from vllm import SamplingParams

        prompt: dict[str, Any] = {"prompt_token_ids": PROMPT}
        if salt is not None:
            prompt["cache_salt"] = salt
        wanted = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        out = self.llm.generate([prompt], wanted, use_tqdm=False, lora_request=lora)
        settle(self.llm)
        return list(out[0].outputs[0].token_ids)

    def hits(self) -> float:
        names = ("hit_tokens:cpu", "hit_tokens:disk")
        return sum(self.counts.get(name, 0.0) for name in names)


def load(worker: Any, factor: float) -> None:
    """As trainers that hand over tensors of a checkpoint do."""
    model = worker.model_runner.model
    model.load_weights(list(scaled(model, factor)))


def reload(worker: Any, factor: float) -> None:
    """As vLLM's own ``reload_weights`` does, and its weight transfer engines."""
    import torch

    new = list(scaled(worker.model_runner.model, factor))
    with torch.no_grad():
        worker.model_runner.reload_weights(weights_iterator=iter(new), is_checkpoint_format=False)


def scaled(model: Any, factor: float) -> Iterator[tuple[str, Any]]:
    for name, parameter in model.named_parameters():
        if "input_layernorm" in name:
            yield name, parameter.data * factor


def scale(worker: Any, factor: float) -> None:
    """Other keys and values in every layer."""
    for name, parameter in worker.model_runner.model.named_parameters():
        if "input_layernorm" in name:  # others are packed away on a CPU
            parameter.data.mul_(factor)


WAYS = {"written to": scale, "load_weights": load, "reload_weights": reload}


def write_adapter(folder: Path, seed: int, alpha: int) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(4):
        for part, rows in (("q_proj", 256), ("k_proj", 128), ("v_proj", 128)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            for half, shape in (("lora_A", (8, 256)), ("lora_B", (rows, 8))):
                tensors[f"{name}.{half}.weight"] = torch.randn(shape, generator=generator) * 0.1
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    settings = {"peft_type": "LORA", "base_model_name_or_path": "m", "r": 8, "lora_alpha": alpha}
    settings |= {"target_modules": ["q_proj", "k_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    # File systems stamp in steps: a change must not fall into the step of the one before.
    time.sleep(0.02)


if __name__ == "__main__":
    main()
