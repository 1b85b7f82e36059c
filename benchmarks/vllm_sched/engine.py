"""vLLM's own scheduler with either connector, and no model: every token is the same one."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vllm_sched.timing import Timed
from benchmarks.vllm_sched.workers import WORKERS, Worker
from benchmarks.vllm_sim.engine_config import model_folder
from benchmarks.vllm_sim.layers import KINDS, spec_of
from benchmarks.vllm_sim.runner import FIRST_TOKEN, VOCABULARY

BLOCK_TOKENS, CHUNK_TOKENS = 16, 32
BUDGET = 16384  # tokens of a step
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Setup:
    """One engine. ``held`` chunks are in the connector's tier before anything runs, which has room
    for as many more as ``room`` says. vLLM has room for the KV of ``kv_tokens``; that is a table of
    numbers, nothing is kept. A request may have ``longest`` tokens, ``sequences`` may run.
    ``layers`` are the kind of model, of :data:`~benchmarks.vllm_sim.layers.KINDS`."""

    connector: str
    held: int
    room: int
    kv_tokens: int
    longest: int
    sequences: int
    prefix_caching: bool = True
    layers: str = "full"

    @property
    def blocks(self) -> int:
        """vLLM's own, with its null block and what its watermark wants to stay free."""
        return len(KINDS[self.layers]) * int(self.kv_tokens / BLOCK_TOKENS * 1.03) + 8


class Engine:
    """Close it. While ``withhold`` is set nothing is reported of what was saved."""

    def __init__(self, setup: Setup) -> None:
        from vllm.utils.gc_utils import freeze_gc_heap
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.structured_output import StructuredOutputManager

        self.withhold = False
        self._scratch = tempfile.TemporaryDirectory()
        config, kv_config = _configured(setup, Path(self._scratch.name))
        hash_of = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_of)
        self._block_hasher = get_request_block_hasher(BLOCK_TOKENS, hash_of)
        self.scheduler: Any = Scheduler(
            vllm_config=config,
            kv_cache_config=kv_config,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK_TOKENS,
            log_stats=True,
        )
        connector = self.scheduler.connector
        self.worker: Worker = WORKERS[setup.connector](connector)
        freeze_gc_heap()  # as vLLM's engine does when it has started
        self.worker.fill(setup.held, setup.held + setup.room)
        self.timed = Timed(connector)

    def close(self) -> None:
        """Ends it, and gives its memory back."""
        self.timed.close()
        self.scheduler.shutdown()
        self._scratch.cleanup()
        gc.unfreeze()
        gc.collect()

    def add(self, name: str, prompt: list[int], count: int) -> None:
        """A request for ``count`` tokens."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        self.scheduler.add_request(
            Request(
                name,
                prompt,
                SamplingParams(temperature=0, max_tokens=count, ignore_eos=True),
                None,
                block_hasher=self._block_hasher,
            )
        )

    def step(self, more: Mapping[str, int] | None = None) -> Any:
        """Schedules, and reports all that was scheduled as done: each request that has computed all
        its tokens gets one, and as many as ``more`` says. Returns what was scheduled."""
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        step = self.timed.scheduling(self.scheduler.schedule)
        told = self.worker.carry_out(step.kv_connector_metadata, self.withhold)
        names, sampled = list(step.num_scheduled_tokens), []
        for name in names:
            request = self.scheduler.requests[name]
            ready = request.num_computed_tokens >= request.num_tokens
            sampled.append([FIRST_TOKEN] * (1 + (more or {}).get(name, 0)) if ready else [])
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: index for index, name in enumerate(names)},
            sampled_token_ids=sampled,
            kv_connector_output=KVConnectorOutput(
                finished_sending=told.sent or None,
                finished_recving=told.received or None,
                kv_connector_worker_meta=told.meta,
            ),
        )
        self.timed.scheduling(self.scheduler.update_from_output, step, output)
        return step


def tokens(seed: int, count: int) -> list[int]:
    """Each an object of its own, as they come from a client."""
    draw = np.random.default_rng(seed)
    found: list[int] = draw.integers(FIRST_TOKEN, VOCABULARY, count).tolist()
    return found


def _configured(setup: Setup, scratch: Path) -> tuple[Any, Any]:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    groups = [
        KVCacheGroupSpec([f"layer {number}"], spec_of(layers, BLOCK_TOKENS))
        for number, layers in enumerate(KINDS[setup.layers])
    ]
    transfer: dict[str, Any] = {"kv_connector": setup.connector, "kv_role": "kv_both"}
    if setup.connector == "OffloadingConnector":
        pages = sum(group.kv_cache_spec.page_size_bytes for group in groups)
        chunk_bytes = -(-pages * (CHUNK_TOKENS // BLOCK_TOKENS) // _PAGE) * _PAGE
        transfer["kv_connector_extra_config"] = {
            "block_size": CHUNK_TOKENS,
            "cpu_bytes_to_use": chunk_bytes * (setup.held + setup.room),
            # As the other one does.
            "offload_prompt_only": False,
        }
    else:
        transfer["kv_connector_module_path"] = "cache_core.adapters.vllm"
        transfer["kv_load_failure_policy"] = "recompute"
        # Who waits for what is being stored waits as long as that takes, as with the other one.
        options = {"chunk_tokens": CHUNK_TOKENS, "wait_s": 3600}
        transfer["kv_connector_extra_config"] = options
    config = EngineArgs(
        model=str(model_folder(scratch, setup.longest)),
        dtype="float32",
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=setup.longest,
        block_size=BLOCK_TOKENS,
        enable_prefix_caching=setup.prefix_caching,
        max_num_batched_tokens=BUDGET,
        max_num_seqs=setup.sequences,
        kv_transfer_config=transfer,
        enforce_eager=True,
    ).create_engine_config()
    config.scheduler_config.async_scheduling = False
    config.cache_config.num_gpu_blocks = setup.blocks
    return config, KVCacheConfig(setup.blocks, [], groups)
