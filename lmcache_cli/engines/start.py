"""Starts engines by name."""

from __future__ import annotations

import os
from pathlib import Path

from lmcache_cli.engines.engine import Engine
from lmcache_cli.engines.http.settings import ServerSettings
from lmcache_cli.engines.shape import NO_GPU, check_device, check_model
from lmcache_cli.errors import MissingError


def start_engine(
    name: str,
    model: str | None,
    device: str,
    dtype: str,
    serving: ServerSettings | None = None,
    jitter: float = 0.0,
    probe: Path | None = None,
    hardware: str | None = None,
) -> Engine:
    """Starts the engine ``name`` with its model. ``serving`` is for the engines with a server;
    ``jitter``, ``probe``, the file of its costs, and ``hardware``, of the catalogue as its model is
    then, are for the simulated one. Raises
    ``MissingError`` if the engine's packages are not installed, and ``UserError`` for a model or
    device that can't be used."""
    if name == "simulated":
        from lmcache_cli.engines.simulated import SimulatedEngine

        if hardware is not None and model is not None:
            return _catalogued(model, hardware, jitter)
        if probe is None:
            return SimulatedEngine(jitter=jitter)
        from lmcache_cli.engines.measured_costs import read_probed

        probed = read_probed(probe)
        return SimulatedEngine(probed.cost_model(), probed.layout, jitter=jitter, kept=probed.kept)
    if name in ("openai", "vllm"):
        return _start_client(name, model, dtype, serving or ServerSettings())
    check_device(device)
    check_model(model)  # a hub's own retries take half a minute, and what asks it seconds to import
    wait_briefly()
    try:
        import torch

        from lmcache_cli.engines.transformers.engine import TransformersEngine
    except ImportError as error:
        raise MissingError(
            f"engine {name} needs the package {error.name}; run:"
            " pip install 'lmcache-bench[transformers]'"
        ) from error
    if device != "cpu" and not torch.cuda.is_available():
        raise MissingError(NO_GPU.format(device))
    return TransformersEngine(model, device, dtype)


def wait_briefly() -> None:
    """Has OpenMP's threads spin for microseconds where they wait for each other, and sleep then: on
    a core that others share, spinning for milliseconds, as they do by themselves, takes five times
    the CPU and makes all of it slower (docs/decisions/0037). It counts for a torch that is imported
    later, and not where the environment says how to wait."""
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "1000"


def _catalogued(model: str, hardware: str, jitter: float) -> Engine:
    from cache_core.layout import KVLayout
    from lmcache_cli.engines.measured_costs import CostModel, TierCost
    from lmcache_cli.engines.simulated import SimulatedEngine
    from lmcache_cli.tune.catalogue import find_architecture, find_hardware
    from lmcache_cli.tune.cost import catalogue_cost

    shape, card = find_architecture(model), find_hardware(hardware)
    # With all bytes given, loads cost what they move: windows and states are moved by themselves.
    cost = catalogue_cost(card, shape, token_bytes=shape.stored_bytes())
    heads, dim = (1, shape.latent // 2) if shape.latent else (shape.kv_heads, shape.head_dim)
    layout = KVLayout(shape.layers, heads, dim, "bfloat16", 1)
    prefill = cost.prefill
    # A hit on the device is a copy there: its memory is read and written.
    tiers = {"device": TierCost(card.memory_bytes_s / 2), **cost.tiers}
    costs = CostModel(
        prefill.a, prefill.b, prefill.c, cost.decode_s, cost.decode_token_s, tiers=tiers
    )
    name = f"{shape.name} on {hardware.lower()}"
    kept = shape.kept_layers() if shape.kinds else ()
    return SimulatedEngine(costs, layout, jitter=jitter, kept=kept, model=name)


def _start_client(name: str, model: str | None, dtype: str, serving: ServerSettings) -> Engine:
    try:
        if name == "openai":
            from lmcache_cli.engines.http.engine import OpenAIEngine

            return OpenAIEngine(model, serving)
        from lmcache_cli.engines.vllm.engine import VllmEngine

        return VllmEngine(model, dtype, serving)
    except ImportError as error:
        raise MissingError(
            f"engine {name} needs the package {error.name}; run:"
            " pip install 'lmcache-bench[openai]'"
        ) from error
