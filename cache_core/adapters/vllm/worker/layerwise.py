"""Loads and saves beside the forward pass, layer by layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache_core.adapters.vllm.worker.kv_blocks import EngineBlocks, OnLoaded
from cache_core.layout import Addresses
from cache_core.transfer.chunks import SlotBuffers

_PATIENCE_S = 120.0


@dataclass(eq=False, slots=True)
class Pass:
    """One step of the engine, for its saves: whether they follow the layers of its forward pass,
    which is the ``number``-th that saves follow, its ``loads``, and whether any load inside it
    ``failed``: what the step computed may be wrong then, of requests that share blocks too."""

    beside: bool = False
    number: int = 0
    loads: Sequence[Future[None]] = ()
    failed: bool = False


class LayerGates:
    """Makes the forward pass wait for loads, and saves for the forward pass, layer by layer."""

    def __init__(self, names: Sequence[str]) -> None:
        self._index = {name: i for i, name in enumerate(names)}
        self._changed = threading.Condition()
        # Of each load of this step: how the engine waits for each layer that is on its way.
        self._loaded: list[list[Callable[[], None]]] = []
        self._computed, self._number = len(names), 0
        self._fence: Callable[[], None] = _nothing
        self.loads: list[Future[None]] = []

    def open(self) -> OnLoaded:
        """Opens one more load; it reports each of its layers in turn to the result."""
        layers: list[Callable[[], None]] = []
        with self._changed:
            self._loaded.append(layers)

        def loaded(_: int, hold: Callable[[], None]) -> None:
            with self._changed:
                layers.append(hold)
                self._changed.notify_all()

        return loaded

    def expect_layers(self, now: Pass) -> None:
        """Begins a forward pass whose layers saves wait for."""
        with self._changed:
            self._computed = 0
            self._number += 1
            now.beside, now.number, now.loads = True, self._number, tuple(self.loads)

    def wait_loaded(self, name: str) -> None:
        """Waits until all loads of this step have the layer on its way, or have ended; what this
        thread queues on the engine's stream afterwards finds it there."""
        layer = self._index.get(name, len(self._index))
        loads = self.loads

        def queued() -> bool:
            pairs = zip(self._loaded, loads, strict=False)
            return all(len(layers) > layer or load.done() for layers, load in pairs)

        with self._changed:
            while not queued():
                # A load that fails ends without saying so here: look again now and then.
                self._changed.wait(0.01)
            holds = [layers[layer] for layers in self._loaded if len(layers) > layer]
        for hold in holds:
            hold()

    def computed(self, name: str, fence: Callable[[], None]) -> None:
        """Records that the forward pass has the layer's KV after ``fence``."""
        with self._changed:
            self._computed = max(self._computed, self._index.get(name, -1) + 1)
            self._fence = fence
            self._changed.notify_all()

    def all_computed(self, fence: Callable[[], None]) -> None:
        """Records that the forward pass is over, and has all KV after ``fence``."""
        with self._changed:
            self._computed = len(self._index)
            self._fence = fence
            self._changed.notify_all()

    def wait_computed(self, number: int, layer: int) -> None:
        """Waits until that forward pass has the layer, or is over. Raises ``TimeoutError`` if it
        never comes."""

        def there() -> bool:
            return self._number > number or self._computed > layer

        with self._changed:
            if not self._changed.wait_for(there, _PATIENCE_S):
                raise TimeoutError(f"layer {layer} was not computed in {_PATIENCE_S:.0f} s")
            fence = self._fence
        fence()

    def wait_loads(self) -> None:
        """Waits until this step's loads have ended, well or badly."""
        for load in list(self.loads):
            load.result()

    def take_loads(self) -> list[Future[None]]:
        """Returns this step's loads; the next step has none yet."""
        with self._changed:
            loads, self.loads, self._loaded = self.loads, [], []
        return loads


class LayerwiseBuffers(SlotBuffers):
    """Buffers of chunks that are moved layer by layer: ``before`` is called ahead of each layer of
    a save, ``loaded`` with each layer of a load."""

    def __init__(
        self,
        blocks: EngineBlocks,
        slots: NDArray[np.int64],
        loaded: OnLoaded | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(slots)
        self._blocks, self._loaded, self._before = blocks, loaded, before

    def pick(self, rows: Sequence[int]) -> LayerwiseBuffers:
        chosen = super().pick(rows)
        if len(rows) < len(self):
            # A part of a load says nothing about the whole: the forward pass waits for its end.
            chosen._loaded = None
        return chosen

    def move(self, addresses: Addresses, out: bool) -> None:
        if not out and self._loaded is not None:
            self._blocks.load_layers(self._slots, addresses, self._loaded)
            return
        if not out:
            self._blocks.place(self._slots).copy_from(addresses)
            return
        for layer in range(self._blocks.layers):
            if self._before is not None:
                self._before(layer)
            self._blocks.place(self._slots, range(layer, layer + 1)).copy_to(addresses)


def _nothing() -> None:
    """Waits for nothing."""
