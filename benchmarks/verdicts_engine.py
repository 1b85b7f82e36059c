"""``lmcache check`` on a real engine: itself against itself many times, a delay of 10 % on
every hit, then with another chunk length. The model is a Llama of random weights (17M parameters).

    python benchmarks/verdicts_engine.py [--trials 20] [--max-time 120s]

A FAIL of itself is a false alarm; there should be none. The delay is what `--tier-latency` adds to
each read of a tier (`Throttled`), chosen from a first run so that TTFT p50 grows by a tenth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from models.random_llama import random_llama

WORK = "long-context --documents 1 --questions 6 --context-tokens 96 --question-tokens 16"
_PROBE_LATENCY = 0.5


def lmcache(*args: str, cwd: str) -> dict[str, Any]:
    """The command's JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "lmcache_cli.main", *args, "--quiet", "--json", "-"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def described(found: dict[str, Any]) -> str:
    """A line on one check."""
    [ttft] = [m for m in found["metrics"] if m["metric"] == "ttft.p50"]
    failed = [m["metric"] for m in found["metrics"] if m["verdict"] == "FAIL"]
    low, high = ttft["interval"]["low"], ttft["interval"]["high"]
    interval = "" if low is None else f" ({low:+.1%} to {high:+.1%})"
    change = "no estimate" if ttft["change"] is None else f"{ttft['change']:+.1%}"
    return (
        f"{found['verdict']:12}  ttft.p50 {change}{interval}, {ttft['rounds']} rounds"
        f"{'; failed: ' + ', '.join(failed) if failed else ''}"
    )


def main() -> None:
    """Prints a line per check, and the count of A/A verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--max-time", default="120s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = random_llama(Path(folder) / "model")
        bench = f"{WORK} --output-tokens 1 --chunk-tokens 16 --model {model}"

        def check(candidate: str, seed: int) -> dict[str, Any]:
            flags = ["--bench", bench, "--candidate", candidate, "--max-time", args.max_time]
            return lmcache("check", *flags, "--seed", str(seed), cwd=folder)

        def p50(*flags: str) -> float:
            found = lmcache("bench", *bench.split(), "--reuse", "prefix", *flags, cwd=folder)
            return float(found["cells"][0]["ttft_ms"]["p50"]) / 1e3

        # How many calls a hit makes is the cache's affair: ask it with a latency that stands out.
        plain = p50("--repeat", "3")
        slowed = p50("--repeat", "3", "--tier-latency", str(_PROBE_LATENCY))
        calls = max(1, round((slowed - plain) / _PROBE_LATENCY))
        latency = 0.10 * plain / calls
        print(
            f"TTFT p50 {plain * 1e3:.1f} ms; a hit makes {calls} calls: {latency * 1e3:.2f} ms each"
        )
        print("delay of 10 %", described(check(f"--tier-latency {latency:.6f}", 0)), flush=True)
        print("chunks of 20 ", described(check("--chunk-tokens 20", 0)), flush=True)
        # Nothing is evicted, so the policy makes no difference: both sides are the same.
        outcomes: Counter[str] = Counter()
        for trial in range(args.trials):
            found = check("--policy gdsf", trial)
            outcomes[found["verdict"]] += 1
            print("itself       ", described(found), flush=True)
        print(f"itself, {args.trials} times: {dict(outcomes)}")


if __name__ == "__main__":
    main()
