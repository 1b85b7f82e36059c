"""What share of a decode step in real vLLM is spent inside our connector, both of its sides.

    python benchmarks/vllm_step.py [--model FOLDER] [--contexts 256,4000] [--requests 4]

Two servers of the very same code differ by several percent in what a step takes on a CPU, for as
long as they run, so that a table of servers can't tell a cost of one percent. Here the connector's
own calls are timed inside one engine, while it does nothing but decode; the rest is vLLM's. Calls
that vLLM makes for each layer are counted with the time that their timing takes.

Without --model: that of models/random_llama.py.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from models.random_llama import SETTINGS, connector, random_llama
from rich.console import Console
from rich.table import Table

_PREFILL_STEPS = 200


class Inside:
    """The seconds since :meth:`start` that are spent in methods of a class, the outermost call of
    each counted."""

    def __init__(self, kind: type) -> None:
        self.seconds, self.calls, self._depth = 0.0, 0, 0
        for name, method in list(vars(kind).items()):
            if callable(method) and not name.startswith("_"):
                setattr(kind, name, self._timed(method))

    def start(self) -> None:
        """Begins anew."""
        self.seconds, self.calls = 0.0, 0

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(*arguments: Any, **more: Any) -> Any:
            began = time.perf_counter()
            self._depth += 1
            try:
                return method(*arguments, **more)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began
                    self.calls += 1

        return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--contexts", default="256,4000")
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if find_spec("vllm") is None:
        print("vLLM is not installed: make vllm")
        return
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams

    from cache_core.adapters.vllm import TieredKVConnector

    inside = Inside(TieredKVConnector)
    table = Table("context", "steps", "a step, ms (10 % to 90 %)", "calls", "inside, us", "share %")
    with TemporaryDirectory(prefix="lmcache-vllm-", dir=".") as scratch:
        model = args.model or random_llama(Path(scratch) / "model")
        options = {"chunk_tokens": 128, "cpu_size": "1GiB"}
        llm = LLM(
            model=model,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            kv_transfer_config=connector(**options),
        )
        engine, draw = llm.llm_engine, random.Random(0)
        answer = SamplingParams(temperature=0, max_tokens=args.steps + 8, ignore_eos=True)
        for context in map(int, args.contexts.split(",")):
            names = [f"{context}-{number}" for number in range(args.requests)]
            for name in names:
                ids = [draw.randrange(5, 1000) for _ in range(context)]
                engine.add_request(name, {"prompt_token_ids": ids}, answer)
            waiting = set(names)
            for _ in range(_PREFILL_STEPS):
                waiting -= {out.request_id for out in engine.step() if out.outputs[0].token_ids}
                if not waiting:
                    break
            inside.start()
            taken: list[float] = []
            while engine.has_unfinished_requests() and len(taken) < args.steps // 2:
                began = time.perf_counter()
                engine.step()
                taken.append(time.perf_counter() - began)
            steps, spent, calls = sorted(taken), inside.seconds, inside.calls
            while engine.has_unfinished_requests():
                engine.step()
            low, high = steps[len(steps) // 10], steps[-1 - len(steps) // 10]
            table.add_row(
                f"{args.requests} x {context}",
                str(len(steps)),
                f"{1e3 * median(steps):.1f} ({1e3 * low:.1f} to {1e3 * high:.1f})",
                f"{calls / len(steps):.0f}",
                f"{1e6 * spent / len(steps):.0f}",
                f"{100 * spent / sum(steps):.2f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
