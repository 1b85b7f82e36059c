"""4,000 tokens of known segments in a new order, and 50 plain and blended requests mixed.

Prints one JSON object. Arguments: model folder, scratch folder.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import VOCABULARY, engine, scheduler_half, settle
from tests.cache_core.adapters.scenario_blend import WORKER, together

SEGMENT, SEGMENTS, REQUESTS = 960, 4, 50
Asked = tuple[list[int], dict[str, Any]]


def main() -> None:
    model = Path(sys.argv[1])
    rng = random.Random(5)

    def text(length: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(length)]

    documents = [text(SEGMENT) for _ in range(SEGMENTS)]
    question = text(60)

    def prompt(order: list[int], head: list[int], length: int = SEGMENT) -> Asked:
        tokens, segments = [1, *head], []
        for number in order:
            segments.append([len(tokens), len(tokens) + length])
            tokens += documents[number][:length]
        return tokens + question, {"segments": segments}

    moved, where = prompt([2, 0, 3, 1], text(100))
    mixed: list[Asked] = []
    for number in range(REQUESTS):
        order = rng.sample(range(SEGMENTS), 2)
        tokens, segments = prompt(order, text(number % 7), 320)
        tokens = tokens + text(rng.randrange(1, 40))
        mixed.append((tokens, segments | {"ratio": 0.1} if number % 2 else {}))
    settings = {"max_logprobs": -1, "max_model_len": 8192}
    with engine(model, None, **settings) as (llm, _):
        full = distribution(llm, moved)
        fresh = together(llm, [(tokens, {}) for tokens, _ in mixed])
    options = {"chunk_tokens": 32, "cpu_size": "128MiB", "blend": True, "blend_unverified": True}
    with engine(model, options, worker_cls=WORKER, enable_prefix_caching=True, **settings) as (
        llm,
        _,
    ):
        # Behind one that is known already, each is seen once in a context that is long enough.
        scheduler_half(llm).blend_scheduler.seen.least = 0.5
        for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
            learning, told = prompt(order, [])
            distribution(llm, learning, **told, ratio=0.15)
        naive = distribution(llm, moved, **where, ratio=0.0)
        whole = distribution(llm, moved, **where, ratio=0.9999)
        served = []
        for first in range(0, REQUESTS, 5):
            served += together(llm, mixed[first : first + 5])
        alone = [together(llm, [asked])[0] for asked in mixed]
    plain = [number for number, (_, ours) in enumerate(mixed) if not ours]
    print(
        json.dumps(
            {
                "cached": whole[2],
                "tokens": [full[1], whole[1]],
                "kl": [divergence(full[0], naive[0]), divergence(full[0], whole[0])],
                "plain": len(plain),
                "differ": [n for n in plain if fresh[n] != served[n] or fresh[n] != alone[n]],
            }
        )
    )


def distribution(llm: Any, tokens: list[int], **ours: Any) -> tuple[list[float], list[int], int]:
    """Log-probabilities of the first token, ``[vocabulary]``; all tokens; cached tokens."""
    from vllm import SamplingParams

    extra = {"kv_transfer_params": {"lmcache": ours}} if ours else None
    wanted = SamplingParams(
        temperature=0, max_tokens=8, ignore_eos=True, extra_args=extra, logprobs=-1
    )
    (done,) = llm.generate([{"prompt_token_ids": tokens}], wanted, use_tqdm=False)
    settle(llm)
    first = done.outputs[0].logprobs[0]
    found = [first[token].logprob for token in range(VOCABULARY)]
    return found, list(done.outputs[0].token_ids), done.num_cached_tokens or 0


def divergence(p: list[float], q: list[float]) -> float:
    """KL of ``q`` from ``p``, nats."""
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


if __name__ == "__main__":
    main()
