"""``--worker-cls``: vLLM's own workers, whose model the connector may run."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker

RUNNERS: list[Any] = []
"""This process's model runner, once its model is loaded."""


class BlendWorker(_Worker):
    """Changes nothing but to tell who runs the model."""

    def load_model(self, *arguments: Any, **named: Any) -> None:
        """Loads it, and names its runner in :data:`RUNNERS`."""
        super().load_model(*arguments, **named)
        RUNNERS[:] = [self.model_runner]
