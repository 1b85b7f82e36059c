"""Declares the flags of ``lmcache bench``, each once, in groups that other commands share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cache_core.blend.certificate import DEFAULT_RATIO
from lmcache_cli.options.flags import (
    CACHE,
    LOAD,
    MEASURED,
    REHEARSAL,
    SWEPT,
    TRACE_PANEL,
    WORKLOAD,
    VllmArgs,
    flag,
)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelFlags:
    """The flags of the model, and of what it runs on."""

    model: Annotated[
        str | None,
        flag("Hugging Face id or folder. \\[default: the embedded SmolLM2-135M]", MEASURED),
    ] = None
    device: Annotated[str, flag("Device: cpu, cuda, cuda:1.", MEASURED)] = "cpu"
    dtype: Annotated[Dtype, flag("Number format of weights and KV.", MEASURED)] = "auto"


@dataclass(frozen=True)
class EngineFlags:
    """The flags of the engine that is measured."""

    engine: Annotated[
        Literal["transformers", "vllm", "openai", "simulated"],
        flag(
            "Engine: transformers (embedded), vllm (starts servers), openai (a running server),"
            " simulated (costs of a probe).",
            MEASURED,
            metavar="ENGINE",
        ),
    ] = "transformers"
    probe: Annotated[
        Path | None,
        flag("Costs from `lmcache probe --model` (simulated).", MEASURED, metavar="FILE"),
    ] = None
    hardware: Annotated[
        str | None,
        flag("Accelerator of tune's catalogue, for --model of it (simulated).", MEASURED),
    ] = None
    url: Annotated[
        str | None,
        flag(
            "Server with OpenAI's completions API (openai). Its API key is read from"
            " LMCACHE_API_KEY or OPENAI_API_KEY.",
            MEASURED,
            metavar="URL",
        ),
    ] = None
    base_url: Annotated[
        str | None,
        flag(
            "Second server, which the one at --url is measured against: row base (openai).",
            MEASURED,
            metavar="URL",
        ),
    ] = None
    vllm_args: VllmArgs = None


@dataclass(frozen=True)
class SweptFlags:
    """The flags of what is crossed: reuse modes, sizes and lengths, each a list with commas."""

    reuse: Annotated[
        str | None,
        flag(
            "Reuse modes: off, prefix, blend, shared (transformers); vllm: also vllm (its prefix"
            " cache), offload, lmcache; openai: off (prompts share nothing), base (--base-url),"
            " server (as is). \\[default: off,prefix; off,vllm,prefix; off,server; base,server]",
            SWEPT,
            metavar="LIST",
        ),
    ] = None
    device_size: Annotated[
        str, flag("KV kept in the engine's memory; 0 for none.", SWEPT, metavar="LIST")
    ] = "0"
    cpu_size: Annotated[str, flag("KV kept in DRAM.", SWEPT, metavar="LIST")] = "2GiB"
    chunk_tokens: Annotated[str, flag("Chunk length, in tokens.", SWEPT, metavar="LIST")] = "64"
    disk_size: Annotated[str, flag("KV kept on disk.", SWEPT, metavar="LIST")] = "0"


@dataclass(frozen=True)
class CacheFlags:
    """The flags of the cache, for every cell."""

    disk_path: Annotated[
        Path | None,
        flag(
            "Folder of the disk tier. \\[default: one below --out, removed afterwards]",
            CACHE,
            metavar="FOLDER",
        ),
    ] = None
    remote: Annotated[
        str | None,
        flag(
            "Remote tier: redis://, rediss://, mooncake://, or a plugin (module:Class).",
            CACHE,
            metavar="URL",
        ),
    ] = None
    codec: Annotated[
        Literal["none", "fp8", "int8"], flag("Codec of the KV in tiers below the device.", CACHE)
    ] = "none"
    admission: Annotated[
        Literal["none", "second-touch", "bytes-per-day"],
        flag("Rule for what may enter the disk tier; none: all may.", CACHE),
    ] = "none"
    disk_writes_per_day: Annotated[
        str | None, flag("Budget of --admission bytes-per-day.", CACHE, metavar="SIZE")
    ] = None
    cache_name: Annotated[
        str | None,
        flag(
            "Start with what earlier runs of this name left on disk or remote. \\[default: a"
            " cold start]",
            CACHE,
            metavar="NAME",
        ),
    ] = None
    policy: Annotated[
        Literal["lru", "lfu-aging", "gdsf", "s3-fifo", "arc", "unbounded"],
        flag("Eviction order; unbounded: no limit (simulated).", CACHE),
    ] = "lru"
    placement: Annotated[
        Literal["write_on_insertion", "write_on_eviction"],
        flag(
            "Time when chunks reach slower tiers: at once (inclusive), or evicted (exclusive).",
            CACHE,
        ),
    ] = "write_on_insertion"


@dataclass(frozen=True)
class ApproximateFlags:
    """The flags of reuse whose answers are not a full prefill's: blend, and another model's KV."""

    blend_ratio: Annotated[
        str | None,
        flag(
            f"Share of reused tokens to recompute (blend). Default: {DEFAULT_RATIO:g}.",
            SWEPT,
            metavar="LIST",
        ),
    ] = None
    blend_encoding: Annotated[
        str | None,
        flag(
            "Tokens after which passages are encoded: auto, system, bos, none (blend). Default:"
            " auto.",
            CACHE,
        ),
    ] = None
    blend_certificate: Annotated[
        Path | None,
        flag(
            "Certificate that lmcache verify blend --out wrote (blend). Default: its own place.",
            CACHE,
            metavar="FILE",
        ),
    ] = None
    unverified: Annotated[
        bool,
        flag("Blend a model that lmcache verify blend has not passed.", CACHE, "--unverified"),
    ] = False
    shared_from: Annotated[
        str | None,
        flag(
            "Base whose KV --model is served: id, folder or 'embedded' (shared).",
            CACHE,
            metavar="MODEL",
        ),
    ] = None
    recompute_layers: Annotated[
        str,
        flag(
            "Layers computed again: none, all, 25% (the lowest), 0-3+12 (shared).",
            SWEPT,
            metavar="LIST",
        ),
    ] = "25%"


@dataclass(frozen=True)
class WorkloadFlags:
    """The flags of a workload's requests; ``workloads.WORKLOAD_USES`` says which of these each
    uses."""

    context_tokens: Annotated[
        str, flag("Length of a document or context; bench takes a list.", WORKLOAD, metavar="LIST")
    ] = "2000"
    documents: Annotated[int, flag("Number of documents (long-context).", WORKLOAD)] = 4
    questions: Annotated[
        int, flag("Number of questions per document (long-context).", WORKLOAD)
    ] = 3
    requests: Annotated[
        int | None,
        flag(
            "Number of requests; of a trace, the first ones. \\[default: the workload's own]",
            WORKLOAD,
        ),
    ] = None
    question_tokens: Annotated[int, flag("Length of a question.", WORKLOAD)] = 64
    output_tokens: Annotated[int, flag("Number of tokens generated per request.", WORKLOAD)] = 16
    passages: Annotated[int, flag("Number of passages per request (rag).", WORKLOAD)] = 4
    passage_tokens: Annotated[int, flag("Length of a passage (rag).", WORKLOAD)] = 480
    corpus_passages: Annotated[int, flag("Number of passages in the corpus (rag).", WORKLOAD)] = 64
    zipf: Annotated[float, flag("Skew of passage popularity (rag).", WORKLOAD)] = 1.0
    order: Annotated[
        Literal["retrieved", "stable"],
        flag("Order of a prompt's passages; stable: the most popular first (rag).", WORKLOAD),
    ] = "retrieved"
    system_tokens: Annotated[int, flag("Length of the system prompt.", WORKLOAD)] = 128
    sessions: Annotated[int, flag("Number of sessions (chat, agent).", WORKLOAD)] = 4
    rounds: Annotated[int, flag("Number of rounds or steps per session.", WORKLOAD)] = 4
    corpus: Annotated[
        Path | None,
        flag("File or folder of real text. \\[default: generated text]", WORKLOAD, metavar="FILE"),
    ] = None
    seed: Annotated[int, flag("Seed of the requests: same seed, same requests.", None)] = 0


@dataclass(frozen=True)
class TraceFlags:
    """The flags of the trace that the workload ``trace`` replays."""

    trace: Annotated[
        Path | None,
        flag(
            "Trace to replay (trace); formats: lmcache trace info --help.",
            TRACE_PANEL,
            metavar="FILE",
        ),
    ] = None
    trace_format: Annotated[
        str | None,
        flag("Format of the trace. \\[default: what it looks like]", TRACE_PANEL, metavar="FORMAT"),
    ] = None
    trace_chunk_tokens: Annotated[
        int | None, flag("Tokens per chunk of the trace. \\[default: its format's]", TRACE_PANEL)
    ] = None
    speed_up: Annotated[float, flag("Factor on the speed at which requests come.", TRACE_PANEL)] = (
        1.0
    )
    scale: Annotated[
        float,
        flag("Factor on all lengths, for small machines: 0.125 makes 512 tokens 64.", TRACE_PANEL),
    ] = 1.0


@dataclass(frozen=True)
class LoadFlags:
    """The flags of how requests arrive."""

    rate: Annotated[
        float | None, flag("Open loop: Poisson arrivals, requests per second.", LOAD)
    ] = None
    concurrency: Annotated[
        int | None, flag("Closed loop: clients that wait for their answer. \\[default: 1]", LOAD)
    ] = None


@dataclass(frozen=True)
class ServerFlags:
    """The flags of how long servers may take, and of how often all is repeated."""

    request_timeout: Annotated[
        float,
        flag(
            "Longest silence of a server before a request has failed (openai, vllm).",
            LOAD,
            metavar="SECONDS",
        ),
    ] = 300.0
    start_timeout: Annotated[
        float, flag("Longest start of a server (vllm).", LOAD, metavar="SECONDS")
    ] = 600.0
    repeat: Annotated[int, flag("Repeats, each from a cold start.", LOAD)] = 1


@dataclass(frozen=True)
class RehearsalFlags:
    """The flags that make things worse on purpose."""

    tier_latency: Annotated[
        float,
        flag(
            "Make each read and write of a tier take so much longer.", REHEARSAL, metavar="SECONDS"
        ),
    ] = 0.0
    jitter: Annotated[
        float,
        flag(
            "Noise on the times of each request: 0.05 for 5 % (simulated).",
            REHEARSAL,
            metavar="SHARE",
        ),
    ] = 0.0


@dataclass(frozen=True)
class BenchOptions(
    RehearsalFlags,
    ServerFlags,
    LoadFlags,
    TraceFlags,
    WorkloadFlags,
    ApproximateFlags,
    CacheFlags,
    SweptFlags,
    ModelFlags,
    EngineFlags,
):
    """The flags of ``lmcache bench``, as given."""

    warm: Annotated[
        bool,
        flag(
            "Serve first, unmeasured, the same parts in another order. RAG with blend always does.",
            WORKLOAD,
            "--warm",
        ),
    ] = False
    dataset: Annotated[
        Path | None,
        flag(
            "Questions with passages and answers, JSON or JSON lines in the form of MuSiQue or"
            " LongBench; prompts are cut to --context-tokens (rag).",
            WORKLOAD,
            metavar="FILE",
        ),
    ] = None
    time_budget: Annotated[
        str | None,
        flag(
            "Time for all of it, as 5m: the engine is measured first, then contexts become shorter"
            " and requests fewer, those given too, or all is repeated, until it fits"
            " (transformers, openai).",
            LOAD,
            metavar="TIME",
        ),
    ] = None
    workloads: tuple[str, ...] = ("long-context", "rag")

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> BenchOptions:
        """Makes options of the command's parameters by name; those that are no options are left
        out."""
        known = {field.name for field in fields(cls)}
        values = {name: value for name, value in flags.items() if name in known}
        values["workloads"] = tuple(values.get("workloads") or cls.workloads)
        return cls(**values)
