"""``lmcache check`` on a real engine, many times: itself against itself; 10 % slower; and twice as
slow in a tenth of the requests. The model is a Llama of random weights.

    python benchmarks/verdicts_engine.py [--trials 20] [--slowed 5] [--slowed-rounds 60]

A FAIL of itself is a false alarm. The two sides differ in the policy of a cache that evicts
nothing, so in nothing. What slows the candidate is a loop at the end of its prefills that takes a
share of the time that the prefill took, so that it is the same share on a busy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from models.random_llama import random_llama

from lmcache_cli.engines.transformers.session import TransformersSession
from lmcache_cli.main import make_app

WORK = (
    "long-context --documents 1 --questions 10 --context-tokens 96 --question-tokens 16"
    " --output-tokens 1 --chunk-tokens 16 --seed 0"
)
CANDIDATE = "gdsf"
CASES = {
    "itself": (0.0, 0.0),
    "10 % slower": (0.1, 1.0),
    "a tenth of requests +100 %": (1.0, 0.1),
}
"""By how much a request of the candidate is slowed, and which share of them."""


class Slower:
    """Makes the candidate's prefills slower: a ``share`` of them, drawn, by ``delay`` of their
    time."""

    def __init__(self) -> None:
        self.delay, self.share, self.rng = 0.0, 0.0, random.Random()
        self._prefill = TransformersSession._prefill
        TransformersSession._prefill = self._slowed()  # type: ignore[method-assign]

    def of(self, case: str, trial: int) -> None:
        """From now on slows as ``case`` says."""
        self.delay, self.share = CASES[case]
        self.rng = random.Random(trial)

    def _slowed(self) -> Any:
        def prefill(session: TransformersSession, *args: Any) -> Any:
            now = session.engine.now
            began = now()
            served = self._prefill(session, *args)
            if session.spec.policy == CANDIDATE and self.rng.random() < self.share:
                until = now() + self.delay * (now() - began)
                while now() < until:
                    pass
            return served

        return prefill


def check(bench: str, seed: int, rounds: int, folder: str) -> dict[str, Any]:
    """The JSON of one check."""
    found = Path(folder) / "check.json"
    flags = ["--bench", bench, "--candidate", f"--policy {CANDIDATE}", "--seed", str(seed)]
    flags += ["--max-rounds", str(rounds), "--out", folder, "--json", str(found), "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        make_app("check")(["check", *flags], standalone_mode=False)
    document: dict[str, Any] = json.loads(found.read_text())
    return document


def described(found: dict[str, Any]) -> str:
    """A line on one check."""
    timed = [m for m in found["metrics"] if m["metric"].startswith("ttft.")]
    said = []
    for m in timed:
        low, high = m["interval"]["low"], m["interval"]["high"]
        interval = "no interval" if low is None else f"{low:+.1%} to {high:+.1%}"
        said.append(f"{m['metric'].removeprefix('ttft.')} {m['verdict'][0]} {interval}")
    counters = [m["metric"] for m in found["metrics"] if m["exact"] and m["verdict"] != "PASS"]
    moved = f"; counters: {', '.join(counters)}" if counters else ""
    return f"{found['verdict']:12} {timed[0]['rounds']} rounds; {', '.join(said)}{moved}"


def main() -> None:
    """Prints a line per check, and the count of verdicts by case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--slowed", type=int, default=5, help="trials of each slowdown")
    parser.add_argument("--slowed-rounds", type=int, default=60, help="limit for slowdowns")
    args = parser.parse_args()
    slower = Slower()
    outcomes: dict[str, Counter[str]] = {case: Counter() for case in CASES}
    loads = []
    with tempfile.TemporaryDirectory() as folder:
        bench = f"{WORK} --model {random_llama(Path(folder) / 'model', 'tiny')}"
        for trial in range(max(args.trials, args.slowed)):
            for case, slows in zip(CASES, (False, True, True), strict=True):
                if trial >= (args.slowed if slows else args.trials):
                    continue
                slower.of(case, trial)
                found = check(bench, trial, args.slowed_rounds if slows else 60, folder)
                outcomes[case][found["verdict"]] += 1
                loads.append(os.getloadavg()[0])
                print(f"{case:27} {described(found)}; load {loads[-1]:.0f}", flush=True)
    for case, counts in outcomes.items():
        print(f"{case}: {dict(counts)}")
    print(f"load average {min(loads):.0f} to {max(loads):.0f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
