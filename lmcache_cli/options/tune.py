"""Declares the flags of ``lmcache tune`` that no other command has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lmcache_cli.options.flags import WORKLOAD, VllmArgs, flag

DRAM_PRICE, DISK_PRICE = round(4.0 / (3 * 8760), 7), round(0.1 / (3 * 8760), 8)
"""The prices of DRAM and disk in dollars per GiB and hour: 4 and 0.1 dollars a GiB, over three
years."""
PREFILL_EFFICIENCY = 0.5
UTILISATION = 0.92
"""The share of a card's memory that vLLM takes by default."""
_WHAT, _FLEET, _BOUNDS, _VALIDATION = "What is served", "Replicas", "What must hold", "Validation"


@dataclass(frozen=True)
class TuneFlags:
    """The flags of ``lmcache tune``: what is served, what must hold, and how it is validated."""

    model: Annotated[
        str | None,
        flag(
            "Model: of the catalogue, a config.json, a folder or a Hugging Face id that is here;"
            " with --validate, what bench takes."
            " \\[default: llama-3.1-8b, the probe's, or the embedded one]",
            _WHAT,
        ),
    ] = None
    hardware: Annotated[
        str | None,
        flag(
            "Accelerator: of the catalogue, or a TOML file that describes one. \\[default: h100]",
            _WHAT,
        ),
    ] = None
    dtype: Annotated[
        Literal["bfloat16", "fp8"], flag("Data type of the weights and of computing.", _WHAT)
    ] = "bfloat16"
    kv_dtype: Annotated[Literal["bfloat16", "fp8"], flag("Data type of the KV.", _WHAT)] = (
        "bfloat16"
    )
    kv_bytes_per_token: Annotated[
        int | None, flag("Bytes of KV of one token over all layers and ranks.", _WHAT)
    ] = None
    gpu_memory_utilization: Annotated[
        float, flag("Share of the cards' memory that the engine takes.", _WHAT)
    ] = UTILISATION
    device_kv: Annotated[
        str | None,
        flag(
            "Room for KV on the cards of a model together. \\[default: what the weights leave]",
            _WHAT,
            metavar="SIZE",
        ),
    ] = None
    no_prefix_caching: Annotated[
        bool, flag("The engine keeps no prefix cache of its own.", _WHAT, "--no-prefix-caching")
    ] = False
    probe: Annotated[
        Path | None,
        flag(
            "Costs that `lmcache probe --model` measured, in place of the catalogue.",
            _WHAT,
            metavar="FILE",
        ),
    ] = None
    devices: Annotated[int, flag("Accelerators that share a model.", _WHAT)] = 1
    pipeline: Annotated[int, flag("Stages of a model, each on so many accelerators.", _WHAT)] = 1
    efficiency: Annotated[float, flag("Share of the peak that prefill reaches.", _WHAT)] = (
        PREFILL_EFFICIENCY
    )
    disk_bandwidth: Annotated[
        str, flag("Bandwidth of the disk, per second.", _WHAT, metavar="SIZE")
    ] = "3GB"
    overlap: Annotated[bool, flag("Load layers while others compute.", _WHAT, "--overlap")] = False
    replicas: Annotated[int, flag("Copies of the model that serve the requests.", _FLEET)] = 1
    routing: Annotated[
        Literal["round-robin", "least-loaded", "session", "prefix"],
        flag("How requests are spread over replicas today; the others are compared.", _FLEET),
    ] = "round-robin"
    remote_size: Annotated[
        str | None,
        flag(
            "Pool of KV that all replicas share; 0 is none."
            " \\[default: up to 8TiB with --replicas, else none]",
            _FLEET,
            metavar="SIZE",
        ),
    ] = None
    network_bandwidth: Annotated[
        str, flag("Bandwidth from the pool to a replica, per second.", _FLEET, metavar="SIZE")
    ] = "2.5GB"
    remote_price: Annotated[float, flag("Dollars per GiB of the pool and hour.", _FLEET)] = (
        DRAM_PRICE
    )
    speed_up: Annotated[
        float, flag("Factor on the trace's arrivals: 2 is twice the load.", _WHAT)
    ] = 1.0
    format: Annotated[str | None, flag("Format of the trace. \\[default: found out]", None)] = None
    time_unit: Annotated[
        float | None,
        flag("Unit of the trace's times. \\[default: the format's]", None, metavar="SECONDS"),
    ] = None
    tokenizer: Annotated[
        str | None,
        flag("Tokenizer for traces that hold text.", None, metavar="FOLDER_OR_ID"),
    ] = None
    chunk_tokens: Annotated[
        str | None,
        flag(
            "Chunk lengths to try. \\[default: the trace's, twice and four times it; of a workload"
            " 16,64,256; vllm 64]",
            None,
            metavar="LIST",
        ),
    ] = None
    slo: Annotated[
        list[str] | None,
        flag(
            "Bound of ttft, itl (between tokens) or e2e: mean, p50, p90, p95 or p99; may be given"
            " several times.",
            _BOUNDS,
            metavar="ttft.p90=500ms",
        ),
    ] = None
    budget: Annotated[
        str | None, flag("Dollars for DRAM and disk; or 30/month.", _BOUNDS, metavar="0.05/hour")
    ] = None
    max_cpu: Annotated[str, flag("Limit of DRAM.", _BOUNDS, metavar="SIZE")] = "1TiB"
    max_disk: Annotated[str, flag("Limit of disk.", _BOUNDS, metavar="SIZE")] = "8TiB"
    disk_writes_per_day: Annotated[
        str | None, flag("Writes that the SSD may take a day.", _BOUNDS, metavar="SIZE")
    ] = None
    drive_writes_per_day: Annotated[
        float, flag("Endurance of the SSD: how often it may be filled a day.", _BOUNDS)
    ] = 1.0
    gpu_price: Annotated[
        float | None,
        flag("Dollars per accelerator and hour. \\[default: the catalogue's]", _BOUNDS),
    ] = None
    dram_price: Annotated[float, flag("Dollars per GiB of DRAM and hour.", _BOUNDS)] = DRAM_PRICE
    disk_price: Annotated[float, flag("Dollars per GiB of disk and hour.", _BOUNDS)] = DISK_PRICE
    worth: Annotated[
        float | None,
        flag(
            "Choose by time: seconds of mean TTFT that another dollar an hour must buy. Without it"
            " and --slo, dollars per million tokens decide.",
            _BOUNDS,
        ),
    ] = None
    scale: Annotated[
        float, flag("Factor on all lengths of a trace, for small machines.", WORKLOAD)
    ] = 1.0
    validate: Annotated[
        bool,
        flag(
            "Serve the requests here, under the recommendation and its neighbours.",
            _VALIDATION,
            "--validate",
        ),
    ] = False
    engine: Annotated[
        Literal["transformers", "vllm", "simulated"],
        flag(
            "Engine that validates; vllm: servers with their own prefix cache, our tiers below it.",
            _VALIDATION,
        ),
    ] = "transformers"
    vllm_args: VllmArgs = None
    tolerance: Annotated[
        str | None,
        flag(
            "Greatest errors of TTFT p50 and p90. \\[default: 0.15,0.25; vllm 0.2,0.3]",
            _VALIDATION,
            metavar="LIST",
        ),
    ] = None
    repeat: Annotated[int, flag("Repeats, each from a cold start.", _VALIDATION)] = 1
    out: Annotated[
        Path,
        flag("Folder for disk tiers while used, and servers' logs.", _VALIDATION, metavar="FOLDER"),
    ] = Path("runs")
