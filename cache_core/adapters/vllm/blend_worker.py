"""Provides vLLM's own workers for ``--worker-cls``, with a model that the connector may run."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker

RUNNERS: list[Any] = []
"""The model runner of this process, in a list that is empty until the model is loaded."""


class BlendWorker(_Worker):
    """A worker of vLLM that changes nothing, but names its model runner in :data:`RUNNERS`."""

    def load_model(self, *arguments: Any, **named: Any) -> None:
        """Loads the model, and names its runner in :data:`RUNNERS`."""
        super().load_model(*arguments, **named)
        RUNNERS[:] = [self.model_runner]
