"""A recommendation as configuration, to paste."""

from __future__ import annotations

import json
import math

from lmcache_cli.tune.candidates import GIB, Stack


def snippets(stack: Stack) -> dict[str, str]:
    """For our connector, vLLM's native offloading, LMCache and SGLang's HiCache, by name. Empty for
    no cache."""
    sizes = stack.sizes
    if not sizes:
        return {}
    cpu, disk = sizes.get("cpu", 0), sizes.get("disk", 0)
    ours: dict[str, object] = {"chunk_tokens": stack.chunk_tokens, "policy": stack.policy}
    ours |= {"placement": stack.placement, "cpu_size": cpu}
    if disk:
        ours |= {"disk_size": disk, "disk_path": "/var/cache/lmcache"}
    transfer = {
        "kv_connector": "TieredKVConnector",
        "kv_connector_module_path": "cache_core.adapters.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": ours,
    }
    found = {"this connector in vLLM": f"--kv-transfer-config '{json.dumps(transfer)}'"}
    if cpu:
        native = {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"cpu_bytes_to_use": cpu},
        }
        found["vLLM's native offloading"] = f"--kv-transfer-config '{json.dumps(native)}'"
        found["SGLang HiCache"] = (
            f"--enable-hierarchical-cache --hicache-size {math.ceil(cpu / 1e9)}"
            " --hicache-write-policy write_through"
        )
    lines = [f"chunk_size: {stack.chunk_tokens}", f"local_cpu: {'true' if cpu else 'false'}"]
    lines += [f"max_local_cpu_size: {_gib_up(cpu)}"]
    if disk:
        lines += ["local_disk: file:///var/cache/lmcache", f"max_local_disk_size: {_gib_up(disk)}"]
    found["LMCache (YAML)"] = "\n".join(lines)
    return found


def _gib_up(size: int) -> str:
    """In GiB, never less than asked for."""
    return f"{math.ceil(size / GIB * 10) / 10:.1f}"
