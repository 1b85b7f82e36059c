"""Published times of KV reuse beside what ``lmcache tune``'s catalogue says, nothing fitted.

    python benchmarks/published.py [--efficiency 0.5] [--json FILE]

The published table (the LMCache project's first README, 2024): Llama-70B on A40, a document of
25,000 tokens, TTFT 28 s without reuse and 3.7 s with; RAG over 4 passages of 2,000 tokens, 13 s and
3.6 s. It names neither the number of GPUs nor where the KV lay, so ours is given for several. The
last columns turn the published times around: the share of the peak, and the rate of loading, that
they would take.

Two more deployments follow, served as ``tune`` serves a trace. Multi-turn chats in a closed loop,
Qwen3-8B on an RTX 4090 with vLLM 0.10.1 and LMCache (GPUStack's performance lab,
gpustack/gpustack at 4650ef43): mean TTFT and prompt tokens a second without and with 50 GB of DRAM.
Ten clients are given for prompts of 5K; of 20K, tokens a second times seconds are two prompts.
And vLLM's own offloading, Llama-3.1-8B on H100 (vLLM blog, 2025-12-29): how many times shorter TTFT
is when a prompt comes from DRAM, and how many times as many prompts of 512 tokens are served.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lmcache_cli.tune.candidates import Prices
from lmcache_cli.tune.catalogue import Hardware, find_architecture, find_hardware
from lmcache_cli.tune.cost import EFFICIENCY_RANGE, RequestCost, catalogue_cost
from lmcache_cli.tune.study import Study
from workloads.traces import TraceArrays

MODEL, HARDWARE = "llama-2-70b", "a40"
DEVICES = (1, 2, 4)
QUESTION = 64
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Case:
    """``tokens`` are reused of the prompt; ``recomputed`` of them are computed again (blend)."""

    name: str
    tokens: int
    recomputed: float
    cold_s: float
    reused_s: float


CASES = (
    Case("25,000 tokens", 25_000, 0.0, 28.0, 3.7),
    Case("RAG 4 x 2,000", 8_000, 0.15, 13.0, 3.6),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds. ``cold_range``: at the ends of the efficiency that is assumed. ``reused_s`` by tier.
    ``published_efficiency`` and ``published_bytes_s`` are what the published times would take."""

    case: str
    devices: int
    fits: bool
    cold_s: float
    cold_range_s: tuple[float, float]
    published_cold_s: float
    reused_s: dict[str, float]
    published_reused_s: float
    published_efficiency: float
    published_bytes_s: float | None


def cost_of(devices: int, efficiency: float) -> RequestCost:
    return catalogue_cost(
        find_hardware(HARDWARE), find_architecture(MODEL), devices=devices, efficiency=efficiency
    )


def row(case: Case, devices: int, efficiency: float) -> Row:
    cost = cost_of(devices, efficiency)
    prompt = case.tokens + QUESTION
    cold = cost.prefill.seconds(prompt)
    ends = [cost_of(devices, share).prefill.seconds(prompt) for share in EFFICIENCY_RANGE]
    # Recomputed tokens attend to all of the prompt, as the question does.
    again = round(case.recomputed * case.tokens)
    compute = cost.prefill.seconds(again + QUESTION, case.tokens - again)
    reused = {
        tier: cost.load_s(tier, case.tokens, CHUNK) + compute for tier in ("cpu", "disk", "remote")
    }
    left = case.reused_s - compute
    work = (cold - cost.prefill.a) * efficiency  # seconds at the whole peak
    return Row(
        case.name,
        devices,
        cost.device is not None and cost.device.nbytes > 0,
        cold,
        (min(ends), max(ends)),
        case.cold_s,
        reused,
        case.reused_s,
        work / case.cold_s,
        case.tokens * cost.token_bytes / left if left > 0 else None,
    )


RTX_4090 = Hardware(
    "rtx-4090", 165.2e12, 1008e9, 24 * 2**30, 25e9, "NVIDIA Ada whitepaper; PCIe 4.0 as the A40's"
)


def chats(prefix: int, output: int, active: int, count: int = 24) -> TraceArrays:
    """Makes chats of 15 turns, ``active`` at a time, each behind a ``prefix`` of its own and 500
    tokens that all begin with; a turn has 140 tokens and an answer of ``output``."""
    ids: list[NDArray[np.int64]] = []
    lengths, sessions = [], []
    for first in range(0, count, active):
        for turn in range(15):
            for chat in range(first, min(count, first + active)):
                tokens = 500 + prefix + 140 + turn * (140 + output)
                chunks = np.arange(tokens // BLOCK, dtype=np.int64)
                own = chunks + 10_000 * (chat + 1)
                ids.append(np.where(chunks < 500 // BLOCK, chunks, own))
                lengths.append(tokens)
                sessions.append(chat)
    n = len(lengths)
    return TraceArrays(
        np.concatenate(ids),
        np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64),
        np.zeros(n),
        np.array(lengths, np.int64),
        np.full(n, output, np.int64),
        np.array(sessions, np.int64),
        tuple(map(str, range(count))),
        BLOCK,
    )


BLOCK = 64


def clients(efficiency: float) -> Table:
    """The chats: mean TTFT and prompt tokens a second, ours beside what was published."""
    table = Table(title="qwen3-8b on rtx-4090, multi-turn: ours / published", title_justify="left")
    for name in ("case", "clients", "tiers", "hit %", "mean TTFT s", "prompt tokens/s"):
        table.add_column(name, justify="left" if name in ("case", "tiers") else "right")
    model = find_architecture("qwen3-8b")
    for case, active, prefix, output, published in (
        ("5K, 100 out", 10, 2700, 100, ((4.350, 5849), (2.646, 9426))),
        ("20K, 100 out", 2, 17_700, 100, ((5.071, 4312), (2.091, 7751))),
        ("20K, 1 out", 2, 18_400, 1, ((4.659, 7443), (0.981, 33_888))),
    ):
        arrays = chats(prefix, output, active)
        cost = catalogue_cost(RTX_4090, model, efficiency=efficiency)
        study = Study(arrays, cost, Prices(), clients=active)
        tiers = study.today.tiers
        for names, stack, (ttft, rate) in (
            ("device", study.today, published[0]),
            (
                "device, 50 GB",
                replace(study.today, tiers=(*tiers, ("cpu", 50 * 10**9))),
                published[1],
            ),
        ):
            served = study.run(stack)
            hit = served.hits.sum() / study.tokens
            ours = study.tokens / served.busy_s
            table.add_row(
                case,
                str(active),
                names,
                f"{100 * hit:.1f}",
                f"{served.ttft.mean():.2f} / {ttft:.2f}",
                f"{ours:,.0f} / {rate:,}",
            )
    return table


def offloading(efficiency: float) -> Table:
    """Prompts that come from DRAM whole, by length: how many times shorter TTFT is."""
    cost = catalogue_cost(
        find_hardware("h100"), find_architecture("llama-3.1-8b"), efficiency=efficiency
    )
    table = Table(title="llama-3.1-8b on h100, from DRAM", title_justify="left")
    for name in ("tokens", "cold ms", "from DRAM ms", "times shorter", "published"):
        table.add_column(name, justify="right")
    for tokens in (512, 2048, 8192, 32_768, 131_072):
        cold = cost.prefill.seconds(tokens)
        held = tokens - 16
        warm = cost.service_s(tokens, {"cpu": held}, 16)
        # Only the ends are published, and of 22 not the length.
        said = "2 (and 9 times as many served)" if tokens == 512 else "2 to 22"
        table.add_row(
            f"{tokens:,}", f"{1e3 * cold:.1f}", f"{1e3 * warm:.1f}", f"{cold / warm:.1f}", said
        )
    work = cost.prefill.saved(512) / max(cost.prefill.saved(16, 496), cost.load_s("cpu", 496, 16))
    table.caption = f"512 tokens, many at once: {work:.1f} times as many served; published: up to 9"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--efficiency", type=float, default=0.5, help="of the peak, in prefill")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = [row(case, n, asked.efficiency) for case in CASES for n in DEVICES]
    table = Table(
        title=f"{MODEL} on {HARDWARE}: TTFT in s, ours from data sheets / published",
        title_justify="left",
    )
    for name in (
        "case", "GPUs", "weights fit", "cold", "reused: cpu", "disk", "remote",
        "published takes: of peak", "load GB/s",
    ):  # fmt: skip
        table.add_column(name, justify="left" if name == "case" else "right")
    for one in rows:
        low, high = one.cold_range_s
        rate = one.published_bytes_s
        table.add_row(
            one.case,
            str(one.devices),
            "yes" if one.fits else "no",
            f"{one.cold_s:.1f} ({low:.0f}-{high:.0f}) / {one.published_cold_s:.0f}",
            *(f"{seconds:.2f} / {one.published_reused_s}" for seconds in one.reused_s.values()),
            f"{100 * one.published_efficiency:.0f} %",
            "none left" if rate is None else f"{rate / 1e9:.1f}",
        )
    console = Console(width=140)
    console.print(table)
    for note in cost_of(DEVICES[-1], asked.efficiency).notes:
        console.print(f"· {note}", highlight=False)
    console.print(clients(asked.efficiency))
    console.print(offloading(asked.efficiency))
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
