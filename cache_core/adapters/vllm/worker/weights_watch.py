"""Notices that a model's weights were changed in memory, as reinforcement learning does.

vLLM tells a connector nothing of it, and PyTorch's version counters don't see it either: vLLM
copies through ``.data``, other processes write by themselves. So a few items of each parameter are
looked at; an update by training changes about all of them. Where a backend has packed weights away
and left an empty parameter, a new one in its place means new weights.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, cast

import torch

# Items of each parameter, and parameters: more would make each step slower.
_ITEMS = 32
_MOST_PARAMETERS = 128


class WeightsWatch:
    """Looks at weights of ``model``, at the same items each time, and says whether they changed."""

    def __init__(self, model: torch.nn.Module) -> None:
        places: list[tuple[Mapping[str, Any], str]] = []
        seen: set[int] = set()
        for module in model.modules():
            # Parameters are looked up anew each time: they may be replaced.
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in seen:
                    seen.add(id(parameter))
                    places.append((module._parameters, name))
        if len(places) > _MOST_PARAMETERS:
            places = random.Random(0).sample(places, _MOST_PARAMETERS)
        self._places = places
        self._coming: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
        self._start()
        self._last = self._arrived(wait=True)
        self._packed = self._empty()

    def __len__(self) -> int:
        """Returns the number of parameters that are looked at."""
        return len(self._places)

    @torch.inference_mode()
    def look(self) -> bool:
        """Returns whether weights are others than at the last look. On a GPU, which is not waited
        for, what this look sees is reported by the next one."""
        now = self._arrived()
        if self._coming is None:
            self._start()
        if now is None:
            now = self._arrived()
        if now is None:
            return False
        before, self._last = self._last, now
        packed, self._packed = self._packed, self._empty()
        # Identity: their bytes, if any were left, say nothing.
        same = [id(one) for one in packed] == [id(one) for one in self._packed]
        return not same or before is None or not torch.equal(before, now)

    def _parameters(self) -> list[Any]:
        found = [table.get(name) for table, name in self._places]
        return [parameter for parameter in found if parameter is not None]

    def _empty(self) -> list[Any]:
        return [parameter for parameter in self._parameters() if not parameter.numel()]

    @torch.inference_mode()
    def _start(self) -> None:
        """Begins to read the weights."""
        parts: dict[torch.dtype, list[torch.Tensor]] = {}
        for parameter in self._parameters():
            items = parameter.numel()
            if parameter.is_meta or not items:
                continue
            # Over a parameter's memory, however it is laid out: no copy and no kernel.
            if not parameter.is_contiguous():
                size = parameter.untyped_storage().nbytes() // parameter.element_size()
                items = min(items, size - parameter.storage_offset())
            if parameter.element_size() == 1:  # not every kind of byte can be put together
                parameter = parameter.view(torch.uint8)
            count = min(_ITEMS, items)
            view = torch.as_strided(parameter, (count,), (items // count,))
            parts.setdefault(parameter.dtype, []).append(view)
        bits = [torch.cat(views).view(torch.uint8) for views in parts.values()]
        found = torch.cat(bits) if bits else torch.empty(0, dtype=torch.uint8)
        event = None
        if found.is_cuda:
            host = torch.empty(found.shape, dtype=torch.uint8, pin_memory=True)
            host.copy_(found, non_blocking=True)
            event = torch.cuda.current_stream().record_event()
            found = host
        self._coming = found, event

    def _arrived(self, wait: bool = False) -> torch.Tensor | None:
        """Returns what was read, if it is here, else None; with ``wait``, waits for it."""
        if self._coming is None:
            return None
        found, event = self._coming
        if event is not None:
            if wait:
                event.synchronize()
            elif not cast(Any, event).query():
                return None
        self._coming = None
        return found


def model_in_use() -> torch.nn.Module | None:
    """Returns the model of whoever calls a connector's ``register_kv_caches``: vLLM's model runner,
    which does not hand it over."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        get_model = getattr(type(caller), "get_model", None)
        if get_model is not None:
            model = get_model(caller)
            return model if isinstance(model, torch.nn.Module) else None
        frame = frame.f_back
    return None
