"""Checks folders, memory and servers outside this process, before a model is loaded."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from cache_core.memory_limits import require_memory
from cache_core.tiers import TierError
from cache_core.tiers.plugin import find_plugin
from cache_core.tiers.remote.url import open_remote
from lmcache_cli.bench.cells import BenchPlan
from lmcache_cli.bench.plan import prompt_tokens
from lmcache_cli.engines.capacity import chunks_per_tier
from lmcache_cli.engines.shape import check_device, check_model, model_shape
from lmcache_cli.errors import MissingError, UserError
from reports.units import bytes_text

_WITH_BYTES = ("transformers", "vllm")


def check_places(plan: BenchPlan) -> None:
    """Makes the disk tier's folder and asks the remote whether it is there, both only if an engine
    will use them. Raises ``UserError`` for what can't be used, ``MissingError`` for a server that
    does not answer."""
    options = plan.options
    if options.engine not in _WITH_BYTES:
        return
    if options.disk_path is not None:
        try:
            options.disk_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--disk-path: {options.disk_path} can't be used: {error.strerror or error}"
            ) from error
    _check_room(plan)
    _check_memory(plan)
    if options.remote:
        _check_remote(options.remote)
    check_device(options.device)
    check_model(options.model)
    _check_shape(plan)


def _check_shape(plan: BenchPlan) -> None:
    """Raises ``UserError`` for prompts beyond the model's context, and for tiers that hold no chunk
    of its KV, where its configuration is here to tell."""
    options = plan.options
    shape = model_shape(options.model, options.device, options.dtype)
    for scenario in plan.scenarios:
        made = () if scenario.examples or scenario.replay else prompt_tokens(scenario)
        need = made[0] + scenario.settings.output_tokens if made else 0
        if shape.max_context is not None and need > shape.max_context:
            raise UserError(
                f"prompts of {scenario.workload} and their answers have {need} tokens, but the"
                f" model's context is {shape.max_context}; lower --context-tokens or the like, or"
                " use another --model"
            )
    if shape.layout is None or options.engine != "transformers":
        return
    for cell in (cell for cell in plan.cells if cell.spec.ours):
        chunks_per_tier(cell.spec, replace(shape.layout, chunk_tokens=cell.spec.chunk_tokens))


def _check_room(plan: BenchPlan) -> None:
    """Raises ``UserError`` for a disk tier larger than what is free and what its folder has taken
    already."""
    for cell in plan.cells:
        wanted, folder = cell.spec.tiers.get("disk", 0), cell.spec.folder
        if not wanted or folder is None:
            continue
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        room = shutil.disk_usage(there).free + _taken(folder)
        if wanted > room:
            raise UserError(
                f"--disk-size: {bytes_text(wanted)} do not fit in {there}, which has"
                f" {bytes_text(room)}; lower it or name another --disk-path"
            )


def _check_memory(plan: BenchPlan) -> None:
    """Raises ``UserError`` if a cell's tiers in memory don't fit beside what is taken; that a model
    takes more is found later."""
    on_host = ("device", "cpu") if plan.options.device == "cpu" else ("cpu",)
    for cell in plan.cells:
        sizes = {name: cell.spec.tiers.get(name, 0) for name in on_host}
        largest = max(sizes, key=lambda name: sizes[name])
        try:
            require_memory(sum(sizes.values()), f"--{largest}-size: what is kept in memory")
        except MemoryError as error:
            raise UserError(str(error)) from error


def _taken(folder: Path) -> int:
    """Returns the bytes taken by the tier that earlier runs left in ``folder``; another process may
    be at it now."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return 0


def _check_remote(url: str) -> None:
    try:
        if "://" not in url:
            find_plugin(url)
            return
        remote = open_remote(url, chunk_bytes=1)
    except TierError as error:
        raise UserError(f"--remote: {error}") from error
    try:
        parts = urlsplit(url)
        if parts.scheme == "mooncake" and parts.port:  # to ask it takes as long as to join it
            _knock(parts)
        elif parts.scheme != "mooncake":
            remote.ping()
    except TierError as error:
        raise MissingError(f"--remote: {error}") from error
    finally:
        remote.close()


def _knock(parts: SplitResult) -> None:
    """Raises :class:`TierError` where nobody listens."""
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=5).close()
    except OSError as error:
        raise TierError(
            f"{parts.hostname}:{parts.port} does not answer: {error.strerror or error}"
        ) from error
