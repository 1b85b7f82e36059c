"""The connector itself in both roles, on a configuration by hand: what it takes from vLLM.

Prints one JSON object. Arguments: model folder (not used), scratch folder.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec

from cache_core.adapters.vllm import TieredKVConnector
from cache_core.adapters.vllm.config import warn_untested
from cache_core.adapters.vllm.metadata import StepMeta

WARNINGS: list[str] = []


class Kept(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        WARNINGS.append(record.getMessage())


def config(
    options: dict[str, Any], replica: int = 0, load_format: str = "auto", tp: int = 1
) -> Any:
    text = SimpleNamespace(rope_parameters={"rope_theta": 1e4, "rope_type": "default"})
    model = dict(dtype=torch.float32, model="org/name", revision="main", quantization=None)
    model |= dict(hf_text_config=text, tokenizer="t", hf_overrides={}, served_model_name="m")
    model |= dict(hf_config=SimpleNamespace(_commit_hash="c0"))
    parallel = dict(tensor_parallel_size=tp, pipeline_parallel_size=1, world_size=tp, rank=0)
    return SimpleNamespace(
        device_config=SimpleNamespace(device_type="cuda"),
        parallel_config=SimpleNamespace(**parallel, data_parallel_index=replica),
        scheduler_config=SimpleNamespace(async_scheduling=False),
        use_v2_model_runner=False,
        max_concurrent_batches=1,
        cache_config=SimpleNamespace(cache_dtype="auto"),
        load_config=SimpleNamespace(load_format=load_format),
        model_config=SimpleNamespace(**model),
        kv_transfer_config=SimpleNamespace(
            kv_connector_extra_config=options, kv_load_failure_policy="recompute"
        ),
    )


def connector(role: KVConnectorRole, given: Any) -> TieredKVConnector:
    spec = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=8, dtype=torch.float32)
    groups = [KVCacheGroupSpec(["layer.0"], spec)]
    kept = SimpleNamespace(kv_cache_groups=groups, kv_cache_tensors=[], num_blocks=64)
    return TieredKVConnector(given, role, kept)


class Runner:
    """As vLLM's model runner registers its KV."""

    def __init__(self, worker: TieredKVConnector, model: Any) -> None:
        self.model = model
        cache = torch.zeros(4, 2, 32, 16)
        worker.register_kv_caches({"layer.0": cache})

    def get_model(self) -> Any:
        return self.model


def replicas(scratch: Path) -> list[str]:
    """Files and folders of two data-parallel replicas."""
    given = {"cpu_size": "1MiB", "disk_size": "8MiB", "disk_path": str(scratch / "disk")}
    given["trace"] = str(scratch / "trace.jsonl")
    open_: list[TieredKVConnector] = []
    for replica in (0, 1):
        open_.append(connector(KVConnectorRole.SCHEDULER, config(given, replica)))
        open_.append(connector(KVConnectorRole.WORKER, config(given, replica)))
        Runner(open_[-1], torch.nn.Linear(2, 2))
    for one in open_:
        one.shutdown()
    return sorted(path.name for path in (*scratch.glob("*.jsonl"), *(scratch / "disk").iterdir()))


def generations(scratch: Path) -> dict[str, Any]:
    """Whether an engine begins with keys that another one finds."""
    lasting = {"cpu_size": "1MiB", "disk_size": "8MiB", "disk_path": str(scratch / "more")}
    cases = {
        "proven": config(lasting),
        "dummy": config(lasting, load_format="dummy"),
        "dummy, named": config(lasting | {"weights_id": "w1"}, load_format="dummy"),
        "dummy, cpu only": config({"cpu_size": "1MiB"}, load_format="dummy"),
    }
    request = SimpleNamespace(cache_salt=None, lora_request=None)
    found = {}
    for name, given in cases.items():
        WARNINGS.clear()
        halves = [connector(KVConnectorRole.SCHEDULER, given)._side for _ in range(2)]
        keys = [side._hashers.of(request).keys(list(range(32))).prefix for side in halves]
        found[name] = {"found again": keys[0] == keys[1], "warnings": list(WARNINGS)}
    return found


def pool() -> dict[str, Any]:
    """What a reset of vLLM's own prefix cache does."""
    side = connector(KVConnectorRole.SCHEDULER, config({"cpu_size": "1MiB"}))
    answers = iter([False, True])
    bound = SimpleNamespace(reset_prefix_cache=lambda: next(answers))
    side.bind_gpu_block_pool(bound)
    seen = []
    for _ in range(2):
        answer = bound.reset_prefix_cache()
        seen.append([answer, side._side.stale, side._side._meta.generation])
    side.reset_cache()
    return {"seen": seen, "after ours": [side._side.stale, side._side._meta.generation]}


def watched(weights: str) -> dict[str, Any]:
    """A worker's steps before and after its weights change: which generation each refuses."""
    worker = connector(KVConnectorRole.WORKER, config({"cpu_size": "1MiB", "weights": weights}))
    model = torch.nn.Linear(8, 8)
    Runner(worker, model)
    opened = worker.get_handshake_metadata()
    side: Any = worker.worker
    assert opened is not None
    refused: list[list[int]] = []
    side.refuse = lambda meta: refused[-1].append(meta.generation)
    side.start_loads = lambda meta: None

    def step(number: int, generation: int, moves: bool = True) -> None:
        meta = StepMeta(number, generation, saves=[None] if moves else [])  # type: ignore[list-item]
        refused.append([])
        worker.bind_connector_metadata(meta)
        worker.start_load_kv(None)

    step(0, 0)
    model.weight.data.add_(1)
    step(1, 0, moves=False)
    step(2, 0)
    step(3, 0)  # scheduled before the scheduler heard
    step(4, 1)
    return {"watched": opened.watched, "refused": refused}


def ahead() -> dict[str, Any]:
    """What becomes of each kind of load where vLLM runs ahead of its steps' outcome."""
    found = {}
    for name in ("neither", "async scheduling", "runner V2"):
        for kind in ({"load": "auto"}, {"load": "sync"}, {"blend": True, "blend_unverified": True}):
            given = config({"cpu_size": "1MiB", **kind})
            given.scheduler_config.async_scheduling = name == "async scheduling"
            given.use_v2_model_runner = name == "runner V2"
            given.parallel_config.worker_cls = "blend's own"
            try:
                side = connector(KVConnectorRole.SCHEDULER, given)._side
                said = "between steps" if side._between_steps([0]) else "in the step"
            except ValueError as error:
                said = str(error)
            found[f"{name}, {next(iter(kind.values()))}"] = said
    return found


def asked() -> dict[str, list[str]]:
    """What vLLM asks of a connector: what each must answer, what ours does not, and hooks that
    stay as vLLM has them."""
    hooks = {name for name in vars(KVConnectorBase_V1) if not name.startswith("_")}
    return {
        "abstract": sorted(KVConnectorBase_V1.__abstractmethods__),
        "missing": sorted(TieredKVConnector.__abstractmethods__),
        "left": sorted(hooks - set(vars(TieredKVConnector))),
    }


def versions() -> dict[str, list[str]]:
    found = {}
    for version in ("0.32.0", "0.32.1+cpu", "0.33.0", "0.320.0"):
        WARNINGS.clear()
        warn_untested(version)
        found[version] = list(WARNINGS)
    return found


def main() -> None:
    scratch = Path(sys.argv[2]) / "connector"
    scratch.mkdir()
    logging.getLogger("vllm.lmcache").addHandler(Kept())
    found = {"replicas": replicas(scratch), "generations": generations(scratch)}
    print(
        json.dumps(
            found
            | {"pool": pool(), "ahead": ahead(), "asked": asked(), "versions": versions()}
            | {kind: watched(kind) for kind in ("watched", "fixed")}
        )
    )


if __name__ == "__main__":
    main()
