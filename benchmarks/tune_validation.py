"""Does what ``lmcache tune`` predicts happen? Three workloads x three sizes on a real engine.

    python benchmarks/tune_validation.py [--engine vllm] [--quick] [--model FOLDER_OR_ID] [--disk]
                                         [--json FILE]

First the engine's costs are probed, then each workload is served from a cold start under a cpu tier
of a quarter, a half and all of what it uses. The sizes take turns request by request, with a
reference prefill between them that tells how far the machine's speed has moved since the probe.
Exit code 1 if a hit differs, or TTFT p50 or p90 is further off than 15 and 25 %; 3 if the machine
drifted. With SmolLM2 on two cores it takes 6 to 10 minutes; ``--quick`` takes one, and its times
say little.

With ``--engine vllm`` it is vLLM's servers (without ``--model``: a random Llama), their own prefix
cache on and as large as one and a half of the longest prompts, our cpu tier below it with twice,
three and eight times as much: four servers are started, one of each size and one for the probe and
the reference, and serve all three workloads, with a probe before each. Hits may differ by a point,
TTFT p50 by 20 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.http.clients import SaturatedError
from lmcache_cli.engines.http.engine import SALT_TOKENS
from lmcache_cli.engines.http.settings import ServerSettings
from lmcache_cli.engines.measured_costs import probed_engine
from lmcache_cli.engines.start import start_engine
from lmcache_cli.engines.vllm.flags import OWN_BLOCK_TOKENS
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.probe.engine import probe_engine
from lmcache_cli.probe.report import engine_tables
from lmcache_cli.probe.served import ServedProbe
from lmcache_cli.tune.candidates import Prices, TierConfiguration
from lmcache_cli.tune.cost import DeviceRoom, probed_cost
from lmcache_cli.tune.report_sections import drift_text, point_table, validation_json
from lmcache_cli.tune.source import RequestSource, TuneOptions, made_source
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.validate import SERVED_HITS, Tolerance, Validation, validate
from workloads import WORKLOAD_USES

WORKLOADS = ("long-context", "rag", "chat")
SHARES = (("1/4", 4), ("1/2", 2), ("all", 1))
DEVICE, BELOW = 1.5, (("2 x", 2), ("3 x", 3), ("8 x", 8))
"""Of vLLM: its own cache in longest prompts, and the tier below it in sizes of that."""
_CHUNK = 64
_ANSWER = 4
_DISK_FLOOR = 32 << 20


def bench_options(
    workload: str, quick: bool, requests: int, seed: int, served: bool = False
) -> BenchOptions:
    """Prompts of 500 to 1,500 tokens; ``quick``: of 100 to 400. More documents and sessions where
    they are ``served``: an engine's own cache holds some, and sizes below it are to differ. In no
    cell does the median stand where hits end and misses begin, where one request moves it far."""
    small = dict(context_tokens="200", passage_tokens=64, system_tokens=64, rounds=2)
    full = dict(context_tokens="1000", passage_tokens=300, system_tokens=256, rounds=4)
    chosen: dict[str, Any] = small if quick else full
    knobs: dict[str, Any] = {
        "documents": 3,
        "questions": 4,
        "passages": 3,
        "corpus_passages": 4,
        "sessions": 3,
    }
    if served:
        knobs |= {"documents": 5, "corpus_passages": 8, "sessions": 6}
        if workload == "chat":
            knobs["question_tokens"] = 256
    knobs |= chosen
    return BenchOptions(
        workloads=(workload,),
        engine="simulated",
        requests=requests,
        output_tokens=_ANSWER,
        seed=seed,
        **{name: value for name, value in knobs.items() if name in WORKLOAD_USES[workload]},
    )


def stacks(study: Study, source: RequestSource, disk: bool) -> list[tuple[str, TierConfiguration]]:
    """Shares of the distinct chunks that the requests use; with ``disk``, all of them below."""
    used = study.references(_CHUNK).distinct * study.cost.chunk_bytes(_CHUNK)
    below = (("disk", max(4 * used, _DISK_FLOOR)),) if disk else ()
    return [
        (
            name,
            TierConfiguration(
                (("cpu", max(study.cost.chunk_bytes(_CHUNK), used // share)), *below), _CHUNK
            ),
        )
        for name, share in SHARES
    ]


def served_stacks(device: int) -> list[tuple[str, TierConfiguration]]:
    """The same sizes for every workload, so that one server of each is enough."""
    return [
        (name, TierConfiguration((("device", device), ("cpu", times * device)), _CHUNK))
        for name, times in BELOW
    ]


def say(text: str) -> None:
    print(text, file=sys.stderr)


def started(served: bool, model: str | None, folder: Path) -> Any:
    """The engine; vLLM's without what takes a minute to compile."""
    if not served:
        return start_engine("transformers", model, "cpu", "auto")
    if model is None:
        model = str(folder / "model")
        make = Path(__file__).parent / "models" / "random_model.py"
        subprocess.run([sys.executable, make, "llama", model], check=True, stdout=sys.stderr)
    serving = ServerSettings(args=("--enforce-eager",), folder=folder / "logs", say=say)
    return start_engine("vllm", model, "auto", "auto", serving)


class KeptServers:
    """An engine whose servers outlive their sessions: one of each size serves every workload. What
    an earlier one left is older than all that comes, and LRU drops it first."""

    def __init__(self, engine: Any, longest: int) -> None:
        self._engine, self._longest = engine, longest
        self._open: dict[tuple[tuple[str, int], ...], Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def start(self, stacks: Iterable[TierConfiguration]) -> None:
        """Starts them before the probe: it is to be close to what is predicted from it."""
        for stack in stacks:
            spec = CacheSpec(stack.chunk_tokens, stack.sizes, salt="kept")
            self.open(spec, self._longest).ready()

    def open(self, spec: CacheSpec, max_tokens: int) -> Any:
        key = tuple(spec.tiers.items())
        if key not in self._open:
            self._open[key] = KeptSession(self._engine.open(spec, self._longest))
        return self._open[key]


class KeptSession:
    """A session that is not closed."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def serve(self, requests: Any, load: Any) -> Iterator[Any]:
        try:
            yield from self._session.serve(requests, load)
        except SaturatedError as error:  # hits are right all the same; the drift tells of times
            say(str(error))

    def close(self) -> None:
        """Does nothing."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--model", default=None, help="default: the embedded SmolLM2-135M")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--disk", action="store_true", help="with a disk tier below the cpu tier")
    parser.add_argument("--requests", type=int, help="of each workload; default: 12, vllm 24")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--probe-rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for disk tiers; default: a temporary one")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    console, began = Console(width=110), time.perf_counter()
    served = asked.engine == "vllm"
    if served and asked.disk:
        parser.error("--disk: servers are kept for all workloads, and a disk tier is of one")
    count = asked.requests or (24 if served else 12)
    found: dict[str, Validation] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder) as made, ExitStack() as stack:
        folder = Path(made)
        engine = started(served, asked.model, folder)
        stack.callback(engine.close)
        own = (SALT_TOKENS, OWN_BLOCK_TOKENS) if served else (0, 0)
        sources = {
            name: made_source(
                TuneOptions(source=name, chunk_tokens=str(_CHUNK)),
                bench_options(name, asked.quick, count, asked.seed, served),
                engine.encode,
                engine.bos,
                *own,
            )
            for name in WORKLOADS
        }
        longest = max(int(source.arrays.input_tokens.max()) for source in sources.values())
        device = reference = probed = None
        if served:
            prober = ServedProbe(engine, folder, longest, _CHUNK)
            stack.callback(prober.close)
            reference, measure = prober.prefill_s, prober.measure
            room = int(DEVICE * longest) // OWN_BLOCK_TOKENS * OWN_BLOCK_TOKENS
            token_bytes = engine.token_bytes()
            device = DeviceRoom(token_bytes, given=room * token_bytes)
            engine = KeptServers(engine, longest + _ANSWER)
            sizes = served_stacks(room * token_bytes)
            engine.start(size for _, size in sizes)
        for name, source in sources.items():
            if served:
                probe = measure(asked.probe_rounds, engine.model, say)
            elif probed is None:
                probe = probe_engine(engine, folder, longest + 1, asked.probe_rounds)
            if served or probed is None:
                for shown in engine_tables(probe):
                    console.print(shown)
                print(f"probed: {time.perf_counter() - began:.0f} s", file=sys.stderr)
                probed = probed_engine(json.loads(json.dumps(asdict(probe))), "probed just now")
            cost = replace(probed_cost(probed), device=device)
            study = Study(source.arrays, cost, Prices(), clients=1)
            found[name] = validate(
                study,
                source,
                engine,
                sizes if served else stacks(study, source, asked.disk),
                tolerance=Tolerance(0.2, 0.3, SERVED_HITS) if served else Tolerance(),
                folder=folder,
                repeats=asked.repeats,
                prefill_points=probed.prefill_points,
                reference=reference,
            )
            print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    console.print(point_table(found))
    for name, validation in found.items():
        drift = drift_text(validation)
        console.print(f"{name}: {validation.verdict}; {drift}", highlight=False)
        for warning in validation.warnings:
            console.print(f"{name}: warning: {warning}", highlight=False)
    if asked.json is not None:
        document = {name: validation_json(validation) for name, validation in found.items()}
        asked.json.write_text(json.dumps(document, indent=1) + "\n")
    codes = [validation.exit_code for validation in found.values()]
    return 1 if 1 in codes else max(codes)


if __name__ == "__main__":
    sys.exit(main())
