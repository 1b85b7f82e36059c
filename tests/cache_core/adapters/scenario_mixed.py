"""Many requests that share beginnings, with and without the connector: the same tokens?

Prints one JSON object. Arguments: model folder, scratch folder, JSON list of cases, each
``{"settings": vLLM's, "options": the connector's}``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import drive, engine, mixed, scheduler_half

REQUESTS = 100


def count_preempted(half: Any) -> list[str]:
    """Grows by every request that vLLM preempts."""
    seen: list[str] = []
    step = half.step

    def watched(scheduled: Any, blocks_of: Any, preempted: Any) -> Any:
        seen.extend(preempted)
        return step(scheduled, blocks_of, preempted)

    half.step = watched
    return seen


def main() -> None:
    model, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    cases: list[dict[str, Any]] = json.loads(sys.argv[3])
    asks = mixed(REQUESTS)
    base: dict[str, Any] = {}
    found = []
    for number, case in enumerate(cases):
        settings = case["settings"]
        if json.dumps(settings) not in base:
            with engine(model, None, **settings) as (llm, _):
                base[json.dumps(settings)] = drive(llm, asks, 8)
        plain = base[json.dumps(settings)]
        options = case["options"]
        if options.get("disk_size"):
            options["disk_path"] = str(scratch / f"disk-{number}")
        with engine(model, options, **settings) as (llm, counts):
            preempted = count_preempted(scheduler_half(llm))
            ours = drive(llm, asks, 8)
        both = plain.tokens.keys() & ours.tokens.keys()
        found.append(
            {
                "compared": len(both),
                "different": sorted(n for n in both if plain.tokens[n] != ours.tokens[n]),
                "failed": ours.failed,
                "counts": counts,
                "preempted": len(preempted),
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
