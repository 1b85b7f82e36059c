"""A cell's reuse mode as flags and environment of ``vllm serve``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.errors import CellError, CellMissingError

_OWN_OFF = "--no-enable-prefix-caching"
_CONNECTOR = "cache_core.adapters.vllm"
_WORKER = "cache_core.adapters.vllm.blend_worker.BlendWorker"
_CPU_BLOCK = "128"  # vLLM's default there
OWN_BLOCK_TOKENS = 32
"""The tokens of a block of vLLM's own prefix cache, where a cell says how large that is."""
POLL_S = 1.0
"""How long a worker of vLLM's polls for its next step, with a core to itself, before it sleeps."""
_SPARE_BLOCKS = 2
"""The one that vLLM gives to nobody, and the one behind a prompt's last full block."""


def mode_flags(spec: CacheSpec, trace: Path) -> tuple[list[str], dict[str, str]]:
    """Returns (flags, environment) of the cell. ``trace`` is where our connector writes each
    request's hits; LMCache's server adds its own flags. Under ``prefix``, ``offload`` and
    ``lmcache`` vLLM's own prefix cache is off, so that what is measured is theirs. Raises
    ``CellMissingError`` if a connector is not installed. With a tier ``device`` vLLM's own prefix
    cache is on, and :func:`own_cache_flags` say how large."""
    if not spec.reuse:
        return [_OWN_OFF], {}
    if spec.foreign:
        return _FOREIGN[spec.mode](spec)
    _need(_CONNECTOR, "this lmcache-bench has no vLLM connector; install a newer one")
    worker = ["--worker-cls", _WORKER] if spec.blend is not None else []
    own = [] if "device" in spec.tiers else [_OWN_OFF]
    return [*own, *worker, *_transfer(_ours(spec, trace))], {}


def own_cache_flags(spec: CacheSpec, token_bytes: int, longest: int) -> list[str]:
    """Returns the flags by which vLLM's own prefix cache is as large as the tier ``device`` of the
    cell; none without one. Requests have up to ``longest`` tokens, answers included. Raises
    ``CellError`` if one has no room."""
    room = spec.tiers.get("device")
    if room is None:
        return []
    blocks = room // (token_bytes * OWN_BLOCK_TOKENS)
    if blocks * OWN_BLOCK_TOKENS < longest:
        raise CellError(
            f"--device-kv: has room for {blocks * OWN_BLOCK_TOKENS:,} tokens, and a request has up"
            f" to {longest:,}; give more"
        )
    return [
        "--enable-prefix-caching",
        *("--block-size", str(OWN_BLOCK_TOKENS)),
        *("--num-gpu-blocks-override", str(blocks + _SPARE_BLOCKS)),
        *("--max-model-len", str(longest)),
    ]


def _own(spec: CacheSpec) -> tuple[list[str], dict[str, str]]:
    return ["--enable-prefix-caching"], {}


def _offload(spec: CacheSpec) -> tuple[list[str], dict[str, str]]:
    extra: dict[str, object] = {"cpu_bytes_to_use": spec.tiers["cpu"]}
    config: dict[str, object] = {"kv_connector": "OffloadingConnector"}
    return [_OWN_OFF, *_transfer(config | {"kv_connector_extra_config": extra})], {}


def _lmcache(spec: CacheSpec) -> tuple[list[str], dict[str, str]]:
    _need(
        "lmcache",
        "--reuse lmcache needs LMCache; run: pip install lmcache (docs/engines/vllm.md says how"
        " without a GPU)",
    )
    return [_OWN_OFF], {"LMCACHE_TRACK_USAGE": "false"}


_FOREIGN = {"vllm": _own, "offload": _offload, "lmcache": _lmcache}


def refuse_cell(spec: CacheSpec, args: Sequence[str], cpu: bool) -> None:
    """Raises ``CellError`` for what the installed vLLM can't do, and for a chunk that LMCache can't
    have: it keeps whole blocks of vLLM's. ``args`` are the user's flags of ``vllm serve``."""
    refuse = {"offload": _refuse_offload, "lmcache": _refuse_chunk}.get(spec.mode)
    if refuse is not None:
        refuse(spec, args, cpu)


def _refuse_offload(spec: CacheSpec, args: Sequence[str], cpu: bool) -> None:
    if cpu:
        raise CellError(
            "--reuse offload: vLLM's OffloadingConnector needs a GPU, and the vLLM that is"
            " installed here runs on the CPU; leave it out"
        )


def _refuse_chunk(spec: CacheSpec, args: Sequence[str], cpu: bool) -> None:
    given = flag_value(args, "--block-size") or (_CPU_BLOCK if cpu else "")
    if not given.isdecimal() or int(given) == 0:
        return
    if spec.chunk_tokens % int(given):
        raise CellError(
            f"--chunk-tokens: LMCache needs a multiple of vLLM's block of {given} tokens, and the"
            f" first value is {spec.chunk_tokens}; give --chunk-tokens {given}, or a block that"
            f' fits: --vllm-args "--block-size {spec.chunk_tokens}"'
        )


def flag_value(args: Sequence[str], flag: str) -> str:
    """Returns what follows ``flag`` or ``flag=``; ``""`` if nothing does."""
    words = " ".join(args).replace(f"{flag}=", f"{flag} ").split()
    return words[words.index(flag) + 1] if flag in words[:-1] else ""


def platform(cpu: bool, dtype: str) -> tuple[list[str], dict[str, str]]:
    """Returns (flags, environment) for the hardware. What the user has set in the environment
    stays."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not cpu:
        return ["--dtype", dtype], environment
    # Without it vLLM takes nearly all memory. Most CPUs have no fast bfloat16. Without pinned
    # threads several servers share the cores, instead of all sitting on the first ones.
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    kept = {name: os.environ[name] for name in environment if name in os.environ}
    return ["--dtype", "float32" if dtype == "auto" else dtype], environment | kept


def _ours(spec: CacheSpec, trace: Path) -> dict[str, object]:
    return {
        "kv_connector": "TieredKVConnector",
        "kv_connector_module_path": _CONNECTOR,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "chunk_tokens": spec.chunk_tokens,
            "cpu_size": spec.tiers.get("cpu", 0),
            "disk_size": spec.tiers.get("disk", 0),
            "disk_path": str(spec.folder.absolute()) if spec.folder else "",
            "remote": spec.remote,
            "policy": spec.policy,
            "codec": spec.codec,
            "placement": spec.placement,
            "salt": spec.salt,
            "trace": str(trace.absolute()),
            **_blend(spec),
        },
    }


def _blend(spec: CacheSpec) -> dict[str, object]:
    settings = spec.blend
    if settings is None:
        return {}
    chosen = {"blend_ratio": settings.ratio}
    if settings.certificate is None:
        return {"blend": True, "blend_unverified": True, **chosen}
    return {"blend": True, "blend_certificate": str(settings.certificate.absolute()), **chosen}


def _transfer(config: dict[str, object]) -> list[str]:
    return ["--kv-transfer-config", json.dumps({"kv_role": "kv_both", **config})]


def _need(module: str, lack: str) -> None:
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise CellMissingError(lack)
