"""Look-ups and admissions of the Ledger, in microseconds.

python benchmarks/ledger.py [--chunks 100] [--repeats 9] [--policy lru]
"""

from __future__ import annotations

import argparse
import os
import timeit
from statistics import median

from rich.console import Console
from rich.table import Table

from cache_core.ledger import Ledger
from cache_core.policy import POLICIES

_CALLS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--policy", choices=tuple(POLICIES), default="lru")
    args = parser.parse_args()
    prompts = [[os.urandom(32) for _ in range(args.chunks)] for _ in range(100)]
    ledger = Ledger([40 * args.chunks, 80 * args.chunks], POLICIES[args.policy])
    for keys in prompts:
        ledger.settle(ledger.admit(keys).moves, stored=True)
    held, absent = prompts[-1], [os.urandom(32) for _ in range(args.chunks)]
    turn = iter(range(1 << 40))

    def admit() -> None:
        keys = prompts[next(turn) % len(prompts)]
        ledger.settle(ledger.admit(keys).moves, stored=True)

    cases = {
        f"look up {args.chunks} chunks, all held": lambda: ledger.lookup(held),
        f"look up {args.chunks} chunks, none held": lambda: ledger.lookup(absent),
        "look up, pin, unpin, all held": lambda: ledger.unpin(ledger.pin(ledger.lookup(held))),
        f"admit {args.chunks} chunks, all evicting": admit,
    }
    table = Table(title=f"Ledger, two tiers, {args.policy}, n={args.repeats} x {_CALLS} calls")
    for name in ("call", "median", "min", "max"):
        table.add_column(name, justify="left" if name == "call" else "right")
    for name, call in cases.items():
        times = [t / _CALLS * 1e6 for t in timeit.repeat(call, repeat=args.repeats, number=_CALLS)]
        table.add_row(name, *(f"{t:.1f} us" for t in (median(times), min(times), max(times))))
    Console().print(table)


if __name__ == "__main__":
    main()
