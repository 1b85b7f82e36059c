"""Answers of the shipped blend on tinyqa, the model and task of tests/models, beside its work.

python benchmarks/blend_answers.py [--engine vllm] [--prompts 600] [--documents 6,12] [--seed 1]

Every question needs two documents. First requests over all documents, in random orders, until each
was seen often enough, as a service has them behind it; then each question, at each ratio, by the
product's own path. Work is the share of token-layers run, the question's included. Intervals are
Wilson's, 95 %. Rules that are not in the product are in benchmarks/tinyqa.py.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.models.random_llama import SETTINGS, connector
from cache_core.blend.matcher import segment_keys
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from tests.models.tinyqa_task import BOS, Question, questions
from workloads import Request, Segment

FOLDER = Path(__file__).parents[1] / "tests" / "models" / "tinyqa"
CHUNK, ROUNDS, TOGETHER = 64, 16, 500
Document = tuple[int, ...]


class Blended(Protocol):
    """An engine that blends prompts of segments, the last of which is the question."""

    def ask(self, ids: Sequence[int], starts: Sequence[int], ratio: float) -> tuple[int, float]:
        """Returns the answer's first token, and the share of token-layers run."""

    def known(self, document: Document) -> bool:
        """Returns whether a document was seen often enough to be reused."""

    def close(self) -> None:
        """Ends the engine."""


class InTransformers:
    """The transformers engine, in this process."""

    def __init__(self, documents: int) -> None:
        from lmcache_cli.engines.transformers.engine import TransformersEngine

        self.engine = TransformersEngine(str(FOLDER))
        room = {"cpu": 4 * documents * CHUNK * self.engine.token_bytes()}
        self.spec = CacheSpec(CHUNK, room, mode="blend", blend=BlendSettings())
        self.session: Any = self.engine.open(self.spec, 1024)
        self.hits = 0

    def ask(self, ids: Sequence[int], starts: Sequence[int], ratio: float) -> tuple[int, float]:
        from lmcache_cli.engines.engine import Load

        self.session.choose(replace(self.spec, blend=BlendSettings(ratio)))
        [sample] = self.session.serve([request(ids, starts)], Load())
        self.session.settle()
        self.hits = sample.hits
        return sample.output_ids[0], sample.token_layer_share

    def known(self, document: Document) -> bool:
        prompts = self.session.prompts
        pieces = prompts.of(request(*prompt([document], [BOS]))).pieces
        # The first is the BOS.
        return all(prompts.seen.get(piece.key) is not None for piece in pieces[1:])

    def close(self) -> None:
        self.session.close()


class InVllm:
    """vLLM in this process, with the connector."""

    def __init__(self, documents: int) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        options = {"chunk_tokens": 32, "blend": True, "blend_unverified": True}
        self.llm = LLM(
            model=str(FOLDER),
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            max_model_len=1024,
            worker_cls="cache_core.adapters.vllm.blend_worker.BlendWorker",
            kv_transfer_config=connector(**options, cpu_size="3GiB"),
        )
        core: Any = self.llm.llm_engine.engine_core
        self.scheduler = core.engine_core.scheduler
        self.side = self.scheduler.connector.scheduler
        # vLLM takes the counts at each step: they are read before.
        self.computed, count = 0.0, self.side._count

        def counted(name: str, amount: float) -> None:
            self.computed += amount if name == "blend_computed_tokens" else 0.0
            count(name, amount)

        self.side._count = counted

    def ask(self, ids: Sequence[int], starts: Sequence[int], ratio: float) -> tuple[int, float]:
        from vllm import SamplingParams

        bounds = [[max(a, 1), b] for a, b in pairwise(starts)]
        ours = {"segments": bounds, "ratio": ratio}
        wanted = SamplingParams(
            temperature=0,
            max_tokens=1,
            ignore_eos=True,
            extra_args={"kv_transfer_params": {"lmcache": ours}},
        )
        self.computed = 0.0
        [done] = self.llm.generate([{"prompt_token_ids": list(ids)}], wanted, use_tqdm=False)
        while self.scheduler.has_requests():
            self.llm.llm_engine.step()
        loaded = done.num_cached_tokens or 0
        computed = len(ids) - loaded + self.computed
        return done.outputs[0].token_ids[0], computed / len(ids)

    def known(self, document: Document) -> bool:
        from cache_core.adapters.vllm.blend.scheduler_side import alone
        from cache_core.adapters.vllm.identity import Adapter

        hasher = alone(self.side._hashers.hasher(Adapter(), ""), [BOS])
        keys = segment_keys(np.array(document, dtype=np.int32), hasher)
        return all(self.side.blend_scheduler.seen.get(key) is not None for key in keys)

    def close(self) -> None:
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def request(ids: Sequence[int], starts: Sequence[int]) -> Request:
    """Returns a request of the parts that begin at ``starts``."""
    parts = tuple(Segment(a, b, "passage") for a, b in pairwise([*starts, len(ids)]))
    return Request("q", "s", 0.0, np.array(ids, dtype=np.int32), parts, 1)


def prompt(documents: Sequence[Document], question: Sequence[int]) -> tuple[list[int], list[int]]:
    """Returns a BOS, the documents and the question, and where each part starts."""
    ids, starts = [BOS], [0]
    for number, document in enumerate(documents):
        if number:
            starts.append(len(ids))
        ids += document
    return [*ids, *question], [*starts, len(ids)]


def documents(asked: Sequence[Question]) -> list[Document]:
    """Returns the documents of all questions, each once."""
    parts = [q.ids[max(a, 1) : b] for q in asked for a, b in pairwise(q.starts)]
    return list(dict.fromkeys(parts))


def learn(engine: Blended, asked: Sequence[Question], count: int, rng: random.Random) -> int:
    """Has every document seen, in prompts of ``count`` of any of them. Returns the requests."""
    pool = documents(asked)
    question, served = asked[0].ids[asked[0].starts[-1] :], 0
    for first, _ in product(range(0, len(pool), TOGETHER), range(ROUNDS)):
        some = pool[first : first + TOGETHER]
        waiting = [document for document in some if not engine.known(document)]
        rng.shuffle(waiting)
        for start in range(0, len(waiting), count):
            some = waiting[start : start + count]
            some += rng.sample(pool, count - len(some))
            engine.ask(*prompt(some, question), BlendSettings().ratio)
            served += 1
    return served


def wilson(right: int, n: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a share."""
    p, z = right / n, 1.96
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return middle - half, middle + half


def main() -> None:
    """Prints a table for each number of documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--prompts", type=int, default=600)
    parser.add_argument("--documents", default="6,12")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ratios", default=f"0,{BlendSettings().ratio:g},1")
    wanted = parser.parse_args()
    for count in map(int, wanted.documents.split(",")):
        asked = questions(wanted.seed, wanted.prompts, count, ("cross",))
        engine: Blended = (InVllm if wanted.engine == "vllm" else InTransformers)(
            (count + 1) * wanted.prompts
        )
        served = learn(engine, asked, count, random.Random(wanted.seed))
        table = Table("ratio", "right", "95 %", "work")
        table.title = (
            f"{wanted.engine}, {count} documents, n = {len(asked)}, seed {wanted.seed},"
            f" after {served} requests"
        )
        for ratio in map(float, wanted.ratios.split(",")):
            done = [engine.ask(q.ids, q.starts, ratio) for q in asked]
            right = sum(token == q.answer for (token, _), q in zip(done, asked, strict=True))
            low, high = wilson(right, len(asked))
            work = sum(work for _, work in done) / len(asked)
            name = f"{ratio:g}" + (" (default)" if ratio == BlendSettings().ratio else "")
            share = f"{right / len(asked):.3f}"
            table.add_row(name, share, f"{low:.3f}-{high:.3f}", f"{work:.3f}")
        Console(width=100).print(table)
        engine.close()


if __name__ == "__main__":
    main()
