"""What workers would tell the scheduler's side of each connector, had they moved all that they were
asked to move at once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from benchmarks.vllm_sim.layers import HEAD_DIM

_TOGETHER = 4096  # held chunks that enter at once


@dataclass(slots=True)
class Told:
    """``meta`` is what the connector's own workers send; the others are names of requests."""

    meta: Any
    received: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)


class Worker(Protocol):
    """``saved`` and ``loaded`` count chunks."""

    saved: int
    loaded: int

    def fill(self, held: int, capacity: int) -> None:
        """The tier has room for ``capacity`` chunks and holds some of nobody's prompts."""

    def carry_out(self, step: Any, withhold: bool) -> Told:
        """The report of a step of the scheduler; with ``withhold`` nothing is said of saves."""


class TieredWorker:
    """Of this project's connector."""

    def __init__(self, connector: Any) -> None:
        self._connector = connector
        self.saved = self.loaded = 0
        self._done: list[Any] = []

    def fill(self, held: int, capacity: int) -> None:
        from cache_core.adapters.vllm.kv_shape import GroupedShape, sized
        from cache_core.adapters.vllm.metadata import TiersOpened

        keys = [key for part in _keys(held) for key in part]
        opened = TiersOpened(HEAD_DIM, (capacity,), (keys,), watched=True)
        shape = self._connector._shape
        if isinstance(shape, GroupedShape):
            groups, tables = sized(shape, dict.fromkeys(shape.layer_names, HEAD_DIM), True)
            opened = replace(opened, groups=groups, tables=tables)
        self._connector.set_xfer_handshake_metadata_pp_aware({(0, 0): opened})

    def carry_out(self, step: Any, withhold: bool) -> Told:
        from cache_core.adapters.vllm.metadata import LoadDone, SaveDone, WorkerReport
        from cache_core.ledger import NOWHERE

        report = WorkerReport(step.step)
        told = Told(report)
        for load in step.loads:
            self.loaded += len(load.hit)
            report.loads.append(LoadDone(load.id, len(load.hit), (), 0.001))
            if not load.in_step:
                told.received.add(load.request)
        for save in step.saves:
            writes = sum(move.target != NOWHERE for move in save.plan.moves)
            self.saved += writes
            settled = tuple((row, True) for row in range(writes))
            self._done.append(SaveDone(save.id, settled, free=True))
        if not withhold:
            report.saves, self._done = self._done, []
        return Told(None, told.received) if report.empty and not step.timed else told


class OffloadingWorker:
    """Of vLLM's OffloadingConnector."""

    def __init__(self, connector: Any) -> None:
        self._connector = connector
        self.saved = self.loaded = 0
        self._done: list[int] = []

    def fill(self, held: int, capacity: int) -> None:
        # Its capacity is in the configuration.
        from vllm.v1.kv_offload.base import ReqContext, make_offload_key

        manager = self._connector.scheduler.manager
        for number, part in enumerate(_keys(held)):
            context = ReqContext(req_id=f"held-{number}")
            manager.on_new_request(context)
            keys = [make_offload_key(key, 0) for key in part]
            if manager.prepare_store(keys, context) is None:
                raise RuntimeError(f"the offloading manager has no room for {held} chunks")
            manager.complete_store(keys, context)
            manager.on_request_finished(context)

    def carry_out(self, step: Any, withhold: bool) -> Told:
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
            OffloadingWorkerMetadata,
        )

        report = OffloadingWorkerMetadata()
        told = Told(report)
        for number, job in step.load_jobs.items():
            self.loaded += len(job.src_spec.block_ids)
            report.mark_completed(number)
            told.received.add(job.req_id)
        for number, job in step.store_jobs.items():
            self.saved += len(job.dst_spec.block_ids)
            self._done.append(number)
        # Those whose blocks are given to others are waited for, whatever they do.
        at_once = self._done if not withhold else sorted(step.jobs_to_flush or ())
        for number in at_once:
            report.mark_completed(number)
        self._done = [number for number in self._done if number not in report.completed_jobs]
        return told


WORKERS: dict[str, type[TieredWorker] | type[OffloadingWorker]] = {
    "TieredKVConnector": TieredWorker,
    "OffloadingConnector": OffloadingWorker,
}
"""By the connector's name."""


def _keys(count: int) -> Iterator[list[bytes]]:
    draw = random.Random(1)
    for first in range(0, count, _TOGETHER):
        data = draw.randbytes(32 * min(_TOGETHER, count - first))
        yield [data[i : i + 32] for i in range(0, len(data), 32)]
