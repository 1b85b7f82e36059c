"""Defines the KV connector that vLLM loads by name: it hands calls to the side of its role."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from vllm.distributed.kv_events import KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from cache_core.adapters.vllm.blend.scheduler_side import BlendScheduler
from cache_core.adapters.vllm.blend.worker_side import BlendWorkerSide
from cache_core.adapters.vllm.config import ConnectorOptions, runs_ahead, warn_untested
from cache_core.adapters.vllm.identity import (
    Hashers,
    Unsupported,
    namespace,
    require_certificate,
    unproven,
)
from cache_core.adapters.vllm.kv_shape import GroupedShape, shape_of
from cache_core.adapters.vllm.metadata import StepMeta, TiersOpened, WorkerReport, grown, offered
from cache_core.adapters.vllm.metrics import ConnectorMetrics, ConnectorStats, Observed
from cache_core.adapters.vllm.prefetch import cached_tokens
from cache_core.adapters.vllm.scheduler.events import Events
from cache_core.adapters.vllm.scheduler.grouped import GroupedSide
from cache_core.adapters.vllm.scheduler.scheduler import SchedulerSide
from cache_core.adapters.vllm.worker.group_blocks import engine_blocks
from cache_core.adapters.vllm.worker.open_tiers import open_recorder, open_remote_tier, open_tiers
from cache_core.adapters.vllm.worker.weights_watch import WeightsWatch, model_in_use
from cache_core.adapters.vllm.worker.worker import WorkerSide
from cache_core.transfer.codec import Codec

logger = logging.getLogger("vllm.lmcache")

_SOURCES = {
    "cpu": CacheHitSource.HOST,
    "disk": CacheHitSource.DISK,
    "remote": CacheHitSource.EXTERNAL_UNSPECIFIED,
}
# Of vLLM's own KV space, what may wait to be saved: those blocks can't be given to others.
_PENDING_SHARE = 4


class TieredKVConnector(KVConnectorBase_V1, SupportsHMA):
    """Adds cpu, disk and remote tiers below vLLM's own prefix cache. Loaded with
    ``--kv-transfer-config`` as ``kv_connector: TieredKVConnector``, ``kv_connector_module_path:
    cache_core.adapters.vllm``, ``kv_role: kv_both``; settings are in ``kv_connector_extra_config``
    (:class:`ConnectorOptions`). Raises ``ValueError`` for settings that make no sense and
    :class:`~cache_core.adapters.vllm.identity.Unsupported` for models whose KV can't be kept."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = vllm_config.kv_transfer_config
        self._options = ConnectorOptions.parse(transfer.kv_connector_extra_config or {})
        self._runs_ahead = runs_ahead(vllm_config, self._options)
        self._shape = shape_of(vllm_config, kv_cache_config, self._options)
        if isinstance(self._shape, GroupedShape):
            self._options = replace(self._options, chunk_tokens=self._shape.chunk_tokens)
        self._layout = self._shape.layout(self._options.chunk_tokens)
        self._ranks = vllm_config.parallel_config.world_size
        # What each data-parallel replica writes alone has its number.
        self._replica = int(vllm_config.parallel_config.data_parallel_index)
        self._namespace = namespace(
            vllm_config,
            self._layout,
            self._shape.format,
            self._options.salt,
            self._options.codec,
            self._options.weights_id,
        )
        self._codec = self._codec_of(self._layout.chunk_bytes)
        self.scheduler: SchedulerSide | None = None
        self.worker: WorkerSide | None = None
        self._by_layer: WorkerSide | None = None
        self._watch: WeightsWatch | None = None
        self._outdated = -1
        self._observed: Observed | None = None
        if role == KVConnectorRole.SCHEDULER:
            warn_untested()
            if transfer.kv_load_failure_policy != "recompute":
                logger.warning(
                    "kv_load_failure_policy is %r: a chunk that can't be read fails its request;"
                    ' set "kv_load_failure_policy": "recompute" to compute it instead',
                    transfer.kv_load_failure_policy,
                )
            self.scheduler = self._open_scheduler(kv_cache_config)

    @property
    def requires_kv_delivery(self) -> bool:
        """Returns False: this is a cache, and what is not saved is computed again."""
        return False

    # What workers do.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        if self._options.blend and self.worker is not None:
            raise Unsupported(
                "blend: vLLM gives this engine the connector of an earlier one in this process; end"
                " that first: llm.llm_engine.engine_core.shutdown()"
            )
        pieces = self._vllm_config.parallel_config.pipeline_parallel_size == 1
        blocks = engine_blocks(kv_caches, self._shape, self._options, pieces)
        rank = self._vllm_config.parallel_config.rank
        blend_worker = None
        if self._options.blend:
            sizes = self._shape.block_tokens, self._options.chunk_tokens
            blend_worker = BlendWorkerSide(self._vllm_config, *sizes)
        tiers = open_tiers(
            self._options,
            blocks.chunk_bytes,
            self._namespace.digest(),
            rank,
            self._ranks,
            self._codec_of(blocks.chunk_bytes),
            blocks.memory,
            self._replica,
        )
        self.worker = WorkerSide(
            tiers,
            blocks,
            self._shape.block_tokens,
            self._options.chunk_tokens,
            self._shape.layer_names,
            self._options.layerwise,
            blend_worker,
        )
        self._by_layer = self.worker if self._options.layerwise else None
        model = model_in_use() if self._options.weights == "watched" else None
        self._watch = WeightsWatch(model) if model is not None else None

    def get_handshake_metadata(self) -> TiersOpened | None:
        if self.worker is None:
            return None
        opened = self.worker.opened()
        if (codec := self._codec_of(opened.chunk_bytes)) is not None:
            opened = replace(opened, chunk_bytes=codec.coded_bytes)
        return replace(opened, watched=bool(self._watch))

    def handle_preemptions(self, kv_connector_metadata: Any) -> None:
        if self.worker is not None:
            self.worker.before_overwriting(kv_connector_metadata)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self.worker is None:
            return
        step = self._step()
        moves = step.loads or step.saves or step.encodes
        if moves and self._watch is not None and self._watch.look():
            self._outdated = step.generation
        # Steps that were scheduled before the scheduler has heard of it are refused too.
        if step.generation <= self._outdated:
            self.worker.refuse(step)
        self.worker.start_loads(step)

    def wait_for_layer_load(self, layer_name: str) -> None:
        if self._by_layer is not None:
            self._by_layer.layer_needed(layer_name)

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any
    ) -> None:
        if self._by_layer is not None:
            self._by_layer.layer_done(layer_name)

    def wait_for_save(self) -> None:
        if self.worker is not None:
            self.worker.end_step(self._step())

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self.worker is None:
            return None, None
        return None, self.worker.finished(finished_req_ids) or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        found = super().get_transfer_results(finished_req_ids)
        if self.worker is not None:
            found.failed_recving |= self.worker.failed(found.finished_recving)
        return found

    def get_block_ids_with_load_errors(self) -> set[int]:
        return set() if self.worker is None else self.worker.bad_blocks()

    def build_connector_worker_meta(self) -> WorkerReport | None:
        return None if self.worker is None else self.worker.report(self._step())

    # What the scheduler does.

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: Mapping[tuple[int, int], TiersOpened]
    ) -> None:
        side, ranks = self._side, [metadata[rank] for rank in sorted(metadata)]
        ledger = side.opened(ranks)
        tiers, size = self._options.tier_names, self._options.chunk_tokens
        self._observed = Observed(ledger, tiers, sum(rank.chunk_bytes for rank in ranks))
        told = self._vllm_config.kv_events_config
        if told is None or not told.enable_kv_cache_events:
            return
        if isinstance(self._shape, GroupedShape):
            logger.warning("no KV events are sent: this model has no single group of plain KV")
        else:
            side.tell(Events(ledger, tiers, size, self._shape.block_tokens))

    def on_new_request(self, request: Any) -> None:
        self._side.arrived(request)

    def bind_kv_cache_manager(self, kv_cache_manager: Any) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        self._side.cached_tokens = partial(cached_tokens, kv_cache_manager)

    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        # Of a reset that does not name connectors vLLM tells them nothing.
        reset = gpu_block_pool.reset_prefix_cache

        def told() -> bool:
            self._side.reset(ours=False)
            done = bool(reset())
            self._side.stale = not done
            if done and self._side.events is not None:
                self._side.events.cleared()
            return done

        gpu_block_pool.reset_prefix_cache = told
        if self._side.blend_scheduler is not None:
            self._side.blend_scheduler.bind(gpu_block_pool)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        look = self._side.matched
        if self._observed is None:
            return look(request, num_computed_tokens)
        return self._observed.lookup(look, request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        ids = blocks.get_block_ids() if num_external_tokens > 0 else ()
        self._side.allocated(request, ids, num_external_tokens)

    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        found: dict[CacheHitSource, int] = {}
        for tier, tokens in self._side.sources(request, num_external_tokens).items():
            found[_SOURCES[tier]] = found.get(_SOURCES[tier], 0) + tokens
        return found

    def build_connector_meta(self, scheduler_output: Any) -> StepMeta:
        scheduled = scheduler_output.num_scheduled_tokens
        return self._side.step(scheduled, grown(scheduler_output), offered(scheduler_output))

    def update_connector_output(self, connector_output: Any) -> None:
        report = connector_output.kv_connector_worker_meta
        if isinstance(report, WorkerReport):
            self._side.reported(report)
        else:
            self._side.passed()

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._observed is not None:
            self._observed.ended(request.request_id)
        self._side.finished(request)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [])

    def take_events(self) -> Iterable[KVCacheEvent]:
        events = self._side.events
        return events.take() if events is not None else ()

    def has_pending_push_work(self) -> bool:
        # vLLM goes on with steps meanwhile: reports come with them, and jobs go.
        return self._side.pending

    def reset_cache(self) -> bool | None:
        self._side.reset()
        return True

    # Both.

    def get_kv_connector_stats(self) -> ConnectorStats | None:
        side = self.worker or self.scheduler
        counts = side.take_counts() if side is not None else {}
        if self._observed is not None:
            counts |= self._observed.take()
        return ConnectorStats(data=counts) if counts else None

    def shutdown(self) -> None:
        if self.worker is not None:
            self.worker.close()
        if self.scheduler is not None:
            self.scheduler.close()

    # What vLLM asks the class.

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return bool(extra_config.get("layerwise", False))

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> ConnectorStats:
        return ConnectorStats(data=dict(data or {}))

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: Any,
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> ConnectorMetrics:
        return ConnectorMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @property
    def _side(self) -> SchedulerSide:
        assert self.scheduler is not None
        return self.scheduler

    def _step(self) -> StepMeta:
        meta = self._get_connector_metadata()
        assert isinstance(meta, StepMeta)
        return meta

    def _open_scheduler(self, kv_cache_config: Any) -> SchedulerSide:
        options, layout = self._options, self._layout
        remote = None
        if options.remote:
            size = layout.chunk_bytes if self._codec is None else self._codec.coded_bytes
            remote = open_remote_tier(options, size, 0, self._ranks)
            if not remote.shared:
                remote.close()
                remote = None
        tokens = kv_cache_config.num_blocks * self._shape.block_tokens
        tiers = len(options.tier_names)
        hashers = Hashers(self._namespace)
        unknown = "" if options.weights_id else unproven(self._vllm_config)
        if unknown and options.lasting:
            logger.warning(
                "which weights this engine runs is not known, for %s: what is kept is not found"
                ' after a restart; give a folder, a revision, or "weights_id"',
                unknown,
            )
            hashers.renew()
        side = GroupedSide if isinstance(self._shape, GroupedShape) else SchedulerSide
        return side(
            options,
            hashers,
            ranks=self._ranks,
            block_tokens=self._shape.block_tokens,
            most_pending=max(8, tiers * tokens // (_PENDING_SHARE * options.chunk_tokens)),
            remote=remote,
            recorder=open_recorder(options, self._vllm_config.model_config, self._replica),
            blend_scheduler=self._open_blend_scheduler(),
            always_between=self._runs_ahead or side is GroupedSide,
        )

    def _codec_of(self, chunk_bytes: int) -> Codec | None:
        """Returns the codec for this chunk size, or None. Raises ``ValueError`` for KV without
        one."""
        options, layout = self._options, self._layout
        return Codec.of(options.codec, layout.dtype, chunk_bytes, layout.head_dim, options.threads)

    def _open_blend_scheduler(self) -> BlendScheduler | None:
        if not self._options.blend:
            return None
        config = self._vllm_config
        if config.parallel_config.pipeline_parallel_size > 1:
            raise Unsupported("blend is not supported with pipeline parallelism")
        if isinstance(self._shape, GroupedShape) or self._shape.whole_blocks:
            raise Unsupported("blend is not supported where blocks can only be moved whole")
        # vLLM's own workers keep their model to themselves.
        if str(config.parallel_config.worker_cls).startswith("vllm."):
            raise Unsupported(
                "blend needs the model: start vLLM with"
                " --worker-cls cache_core.adapters.vllm.blend_worker.BlendWorker"
            )
        if not self._options.blend_unverified:
            file, ratio = self._options.blend_certificate, self._options.blend_ratio
            require_certificate(file, config.model_config, ratio)
        bos = getattr(config.model_config.hf_text_config, "bos_token_id", None)
        start = [bos] if isinstance(bos, int) else []
        held = self._options.cpu_size // self._layout.token_bytes
        return BlendScheduler(self._options, start, self._shape.block_tokens, self._ranks, held)
