"""Right answers on MuSiQue: F1 of full prefill, plain reuse and blend, on the same prompts.

python benchmarks/blend_musique.py FILE [--questions 100] [--model FOLDER] [--passage-tokens 96]

Each question's passages are cut into pieces of one length and the three that share most with the
question are retrieved (answers are not looked at). First requests over all pieces, until each was
seen often enough; then every question by the product's own path. Intervals are 95 % bootstraps
over questions; differences are of pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.transformers.blend.quality import reference_answers
from lmcache_cli.engines.transformers.engine import TransformersEngine
from lmcache_cli.modes.blend import lessons
from reports.quality import answer_of, scored
from workloads import Request
from workloads.answering import Example, answering, relevance
from workloads.request import Part, Prompt
from workloads.settings import Settings

PASSAGES, LESSON = 3, 8


def pieces(engine: TransformersEngine, found: dict[str, Any], length: int) -> Example:
    """Returns an example whose passages are the pieces of ``length`` tokens that share most with
    its question."""
    texts = []
    for passage in found["ctxs"]:
        ids = engine.encode(passage["text"])
        texts += [engine.decode(ids[at : at + length]) for at in range(0, len(ids), length)]
    scores = relevance(found["question"], texts)
    best = sorted(range(len(texts)), key=lambda place: -scores[place])[:PASSAGES]
    chosen = tuple(texts[place] for place in sorted(best))
    return Example(found["question"], chosen, tuple(found["answers"]))


def teaching(requests: Sequence[Request], together: int) -> list[Request]:
    """Returns requests over all passages after which each was seen often enough, if ``together``
    tokens can be learnt at a time."""
    parts = [[Part(s.kind, r.token_ids[s.start : s.end]) for s in r.segments] for r in requests]
    passages = [part for each in parts for part in each[1:-1]]
    orders = lessons([len(part.ids) for part in passages], LESSON, together=together)
    frame = parts[0][0], parts[0][-1]
    return [
        Prompt("l", "l", (frame[0], *(passages[i] for i in order), frame[1])).request(0.0, 1)
        for order in orders
    ]


def interval(values: NDArray[np.float64]) -> str:
    """Returns a mean and its 95 % interval, in points."""
    draws = np.random.default_rng(0).integers(0, len(values), (4000, len(values)))
    low, high = np.percentile(100 * values[draws].mean(1), [2.5, 97.5])
    return f"{100 * values.mean():.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--model")
    parser.add_argument("--passage-tokens", type=int, default=96)
    parser.add_argument("--output-tokens", type=int, default=10)
    wanted = parser.parse_args()
    engine = TransformersEngine(wanted.model)
    data = json.loads(wanted.file.read_text(encoding="utf-8"))[: wanted.questions]
    examples = [pieces(engine, found, wanted.passage_tokens) for found in data]
    # Decoded and encoded again, a piece may be a few tokens longer.
    longest = PASSAGES * (wanted.passage_tokens + 32) + 300
    settings = Settings(context_tokens=longest, output_tokens=wanted.output_tokens)
    requests, cut = answering(examples, settings, engine.encode, engine.bos, engine.frame)
    size = wanted.passage_tokens + 32
    room = {"cpu": 3 * (PASSAGES * len(requests) + 8) * size * engine.token_bytes()}
    spec = CacheSpec(size, room, mode="blend", blend=BlendSettings())
    session: Any = engine.open(spec, longest + LESSON * size)
    lesson = teaching(requests, session.prompts.seen.learning)
    began = time.monotonic()
    for number, request in enumerate(lesson):
        list(session.serve([request], Load()))
        session.settle()
        if number % 5 == 0:
            print(f"taught {number} of {len(lesson)}, {time.monotonic() - began:.0f} s", flush=True)
    ratios = (0.0, BlendSettings().ratio)
    f1: dict[str, list[float]] = {name: [] for name in ("full", *map(str, ratios))}
    exact = {name: list[float]() for name in f1}
    kl, same, work = ({str(ratio): list[float]() for ratio in ratios} for _ in range(3))
    for number, request in enumerate(requests):
        for ratio in ratios:
            session.choose(replace(spec, blend=BlendSettings(ratio)))
            [sample] = session.serve([request], Load())
            assert sample.hits >= sum(s.end - s.start for s in request.segments[1:-1])
            quality = session.judge(request)
            done = scored(sample, answer_of(engine.decode(sample.output_ids)), request.answers)
            f1[str(ratio)].append(done.f1 or 0.0)
            exact[str(ratio)].append(done.exact or 0.0)
            kl[str(ratio)].append(quality.kl)
            same[str(ratio)].append(quality.agreement)
            work[str(ratio)].append(sample.token_layer_share)
        answer = reference_answers(engine).answer(request).tokens.tolist()
        done = scored(sample, answer_of(engine.decode(answer)), request.answers)
        f1["full"].append(done.f1 or 0.0)
        exact["full"].append(done.exact or 0.0)
        if number % 10 == 0:
            print(f"{number} of {len(requests)}, {time.monotonic() - began:.0f} s", flush=True)
    lengths = [len(request.token_ids) for request in requests]
    title = (
        f"{engine.model}, MuSiQue, n = {len(requests)}, {int(np.mean(lengths))} tokens; a right"
        f" answer can be read in {cut.answerable}; after {len(lesson)} requests"
    )
    table = Table("", "F1 %", "exact %", "F1 - full's", "KL nats", "top-1 %", "work", title=title)
    full = np.array(f1["full"])
    table.add_row("full", interval(full), interval(np.array(exact["full"])), "", "0", "100", "1")
    for name, of in kl.items():
        mine = np.array(f1[name])
        table.add_row(
            {"0.0": "plain reuse"}.get(name, f"blend {name}"),
            *(interval(values) for values in (mine, np.array(exact[name]), mine - full)),
            f"{np.mean(of):.4f}",
            f"{100 * np.mean(same[name]):.1f}",
            f"{np.mean(work[name]):.3f}",
        )
    Console(width=140).print(table)
    blend, naive = (np.array(f1[str(ratio)]) for ratio in ratios[::-1])
    print(f"F1 of blend less that of plain reuse: {interval(blend - naive)}")
    shares = np.array(kl[str(ratios[1])]), np.array(kl["0.0"])
    draws = np.random.default_rng(0).integers(0, len(full), (4000, len(full)))
    low, high = np.percentile(shares[0][draws].mean(1) / shares[1][draws].mean(1), [2.5, 97.5])
    share = shares[0].mean() / shares[1].mean()
    print(f"KL over plain reuse's: {share:.2f} ({low:.2f}-{high:.2f})")


if __name__ == "__main__":
    main()
