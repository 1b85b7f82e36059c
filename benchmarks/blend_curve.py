"""Blend on SmolLM2-135M over its ratios: quality, TTFT beside a full prefill, our own share of it.

python benchmarks/blend_curve.py [--prompts 8] [--repeats 2] [--plot docs/blend-curve.svg]

RAG prompts of a system prompt, 4 passages of 480 tokens, all known, in a new order, and a question.
A full prefill and every ratio take turns, so that other jobs disturb all alike. Ctrl-C keeps what
was measured. KL is over all positions of the full prefill's answers and does not depend on the
machine. Needs matplotlib for --plot: pip install '.[plots]'.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.transformers.engine import TransformersEngine
from lmcache_cli.modes.blend import Blend
from reports.quality import QualitySummary, quality_of
from reports.sample import Sample, frame
from workloads import GeneratedCorpus, Request, Settings, generate, warming

RATIOS = (0.0, 0.07, 0.14, 0.3, 0.6, 1.0)


@dataclass(slots=True)
class Point:
    """One ratio: its samples, one quality per prompt, and per round how many times faster than
    that round's full prefill it was."""

    samples: list[Sample] = field(default_factory=list)
    judged: list[Sample] = field(default_factory=list)
    faster: list[float] = field(default_factory=list)

    @property
    def quality(self) -> QualitySummary:
        return quality_of(frame(self.judged))

    def own_share(self) -> float:
        """Median share of TTFT that went into matching, rotating and selecting."""
        return float(np.median([(s.blend_s or 0) / s.ttft_s for s in self.samples]))

    def work(self) -> float:
        return float(np.mean([s.token_layer_share or 0.0 for s in self.samples]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="[default: the embedded SmolLM2-135M]")
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--passage-tokens", type=int, default=480)
    parser.add_argument("--chunk-tokens", type=int, help="[default: a passage]")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="Write the curve, as .svg or .png.")
    args = parser.parse_args()
    engine = TransformersEngine(args.model)
    points, full, peak, longest = measure(engine, args)
    Console(width=110).print(table(points, full))
    kv = longest * engine.token_bytes()
    print(
        f"peak memory of a blended prompt of {longest} tokens: its KV ({kv / 2**20:.0f} MiB) and"
        f" {peak / 2**20:.1f} MiB, which is {1 + peak / kv:.2f}x a full prefill's KV"
    )
    print(f"load average {', '.join(f'{load:.1f}' for load in os.getloadavg())} at the end")
    if args.plot:
        plot(points, args.plot)


def measure(
    engine: TransformersEngine, args: argparse.Namespace
) -> tuple[dict[float, Point], list[float], int, int]:
    """(points by ratio, TTFT of full prefills in seconds, bytes beside the KV at their peak for
    the last prompt at the default, its tokens)."""
    settings = Settings(
        requests=args.prompts,
        passages=args.passages,
        passage_tokens=args.passage_tokens,
        corpus_passages=args.passages * args.prompts,
        zipf=0.0,
        output_tokens=args.output_tokens,
        seed=args.seed,
    )
    corpus = GeneratedCorpus(args.seed)
    requests = generate("rag", settings, corpus, engine.encode, engine.bos)
    longest = max(len(r.token_ids) for r in requests)
    chunk = args.chunk_tokens or args.passage_tokens
    size = 2 * (args.passages + 2) * args.prompts * engine.layout(chunk).chunk_bytes
    spec = CacheSpec(chunk, {"cpu": size}, mode="blend", blend=BlendSettings())
    cold: Any = engine.open(CacheSpec(chunk, mode="off"), longest + args.output_tokens)
    session: Any = engine.open(spec, longest + args.output_tokens)
    session.prompts.beginnings.most = 0  # each prompt is served again and again
    room = session.capacities()
    for request in Blend("blend").warming(warming(requests), spec, room):
        serve(session, request)
    engine.warm_up(512)
    rng, points, full = random.Random(args.seed), defaultdict[float, Point](Point), list[float]()

    def take_round(request: Request) -> None:
        for repeat in range(args.repeats):
            ttft: dict[float | None, float] = {}
            for ratio in rng.sample([None, *RATIOS], len(RATIOS) + 1):
                if ratio is None:
                    ttft[None] = serve(cold, request).ttft_s
                    continue
                session.choose(replace(spec, blend=BlendSettings(ratio)))
                sample = serve(session, request)
                ttft[ratio] = sample.ttft_s
                points[ratio].samples.append(sample)
                if not repeat:
                    points[ratio].judged.append(judged(session, request, sample))
            full.append(ttft[None])
            for ratio in RATIOS:
                points[ratio].faster.append(ttft[None] / ttft[ratio])

    try:
        for request in track(requests, "prompts", console=Console(stderr=True)):
            take_round(request)
    except KeyboardInterrupt:
        print(f"interrupted: {len(full)} rounds were measured", file=sys.stderr)
    session.choose(replace(spec, blend=BlendSettings()))
    peak = peak_bytes(session, requests[-1])
    session.close()
    cold.close()
    return dict(sorted(points.items())), full, peak, len(requests[-1].token_ids)


def serve(session: Any, request: Request) -> Sample:
    [sample] = session.serve([request], Load())
    session.settle()
    done: Sample = sample
    return done


def judged(session: Any, request: Request, sample: Sample) -> Sample:
    quality = session.judge(request)
    return replace(
        sample, kl=quality.kl, kl_positions=quality.positions, agreement=quality.agreement
    )


def peak_bytes(session: Any, request: Request) -> int:
    """Most bytes that torch gave out at one time beyond those at the start, where the memory of
    the prompt's KV stood already."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as run:
        serve(session, request)
    events: Any = run.profiler
    found = [e for e in events.kineto_results.events() if e.name() == "[memory]"]
    live = np.cumsum([e.nbytes() for e in sorted(found, key=lambda e: e.start_ns())])
    return int(live.max(initial=0))


def table(points: dict[float, Point], full: list[float]) -> Table:
    made = Table(title=f"{len(full)} rounds; full prefill: TTFT {spread(full)} s (quartiles)")
    columns = ("ratio", "KL nats", "95 %", "top-1 %", "work %", "TTFT s", "times faster")
    for name in (*columns, "own share %"):
        made.add_column(name, justify="right")
    for ratio, point in points.items():
        q = point.quality
        low, high = (f"{x:.4f}" if x is not None else "?" for x in (q.kl_low, q.kl_high))
        made.add_row(
            f"{ratio:g}",
            f"{q.kl:.4f}",
            f"{low}-{high}",
            f"{100 * (q.agreement or 0):.1f}",
            f"{100 * point.work():.1f}",
            spread([s.ttft_s for s in point.samples]),
            spread(point.faster),
            f"{100 * point.own_share():.1f}",
        )
    return made


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def plot(points: dict[float, Point], path: Path) -> None:
    """KL with its interval against the work, and times faster against the ratio."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "lmcache"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    ratios = [100 * ratio for ratio in points]
    found = [point.quality for point in points.values()]
    kl = np.array([q.kl for q in found])
    bounds = np.array([[q.kl_low, q.kl_high] for q in found], dtype=float).T
    left.errorbar(ratios, kl, yerr=np.abs(bounds - kl), marker="o", capsize=3)
    left.set(xlabel="reused tokens computed anew (%)", ylabel="KL to a full prefill (nats)", ylim=0)
    faster = [np.percentile(point.faster, [25, 50, 75]) for point in points.values()]
    middle = np.array([each[1] for each in faster])
    sides = np.array([[each[0], each[2]] for each in faster]).T
    right.errorbar(ratios, middle, yerr=np.abs(sides - middle), marker="o", capsize=3, color="C1")
    right.axhline(1, color="gray", linewidth=0.8)
    right.set(xlabel="reused tokens computed anew (%)", ylabel="TTFT: times faster", yscale="log")
    right.set_yticks([1, 2, 4, 8, 16], labels=["1", "2", "4", "8", "16"])
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
