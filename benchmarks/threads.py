"""What threads, and their waiting for each other, cost the embedded engine: alone, and beside a
busy loop on every core.

    python benchmarks/threads.py [--repeats 5] [--layers 6]

Layers of the embedded model's width with random weights prefill 256 tokens and decode 8, in one
process per setting of OpenMP, which take turns: ``CPU`` is what all threads of one took, ``wall``
the time that passed. Each is a median over repeats, with the least and the greatest. Ctrl-C prints
what was measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

PROMPT, ANSWER = 256, 8


def settings(cores: int) -> dict[str, dict[str, str]]:
    """Returns variables of OpenMP by the name of what they set."""
    return {
        "as it comes": {},
        "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
        "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
        "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
        "a thread less": {"OMP_NUM_THREADS": str(max(1, cores - 1))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        serve(args.layers)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cores = len(os.sched_getaffinity(0))
    known = settings(cores)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}
    command = [sys.executable, __file__, "--child", "--layers", str(args.layers)]
    children = {
        name: subprocess.Popen(
            command, env=clean | more, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, more in known.items()
    }
    found: dict[tuple[str, str], list[list[float]]] = {}
    try:
        for name in known:
            ask(children[name])  # imports and first calls
        order = random.Random(0)
        for _ in range(args.repeats):
            for beside in ("alone", "beside busy loops"):
                with busy(cores if beside != "alone" else 0):
                    for name in order.sample(list(known), len(known)):
                        found.setdefault((beside, name), []).append(ask(children[name]))
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    count = min(map(len, found.values()), default=0)
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f} at the end, n = {count}")
    print("| | | prefill CPU s | wall s | decode CPU s | wall s |\n|---|---|---|---|---|---|")
    for (beside, name), rows in found.items():
        print(f"| {beside} | {name} | {' | '.join(map(spread, zip(*rows, strict=True)))} |")


def ask(child: subprocess.Popen[str]) -> list[float]:
    """Has the child do its work once; returns CPU and wall seconds of prefill and of decoding."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    answer: list[float] = json.loads(child.stdout.readline())
    return answer


def spread(values: tuple[float, ...]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Runs so many busy loops meanwhile."""
    processes = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(loops)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def serve(layers: int) -> None:
    """Does the work once for each line of stdin."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **shape, **heads)).eval()
    prompt = torch.arange(PROMPT)[None]
    for _ in sys.stdin:
        with torch.inference_mode():
            began = time.process_time(), time.perf_counter()
            out = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
            between = time.process_time(), time.perf_counter()
            for _ in range(ANSWER):
                token = out.logits[:, -1:].argmax(-1)
                out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
            ended = time.process_time(), time.perf_counter()
        steps = [
            b - a
            for x, y in ((began, between), (between, ended))
            for a, b in zip(x, y, strict=True)
        ]
        print(json.dumps(steps), flush=True)


if __name__ == "__main__":
    main()
