"""``lmcache verify hits``: a hit from every tier against a cold prefill of the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from cache_core.transfer.codec import CODECS
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import UserError
from lmcache_cli.machine import machine, versions
from lmcache_cli.modes.mode import one_of
from lmcache_cli.options.verify import HitsFlags
from lmcache_cli.output import columns
from lmcache_cli.sizes import parse_count, parse_list
from lmcache_cli.verify.gates import conclude, long_contexts
from workloads import Request

if TYPE_CHECKING:
    from lmcache_cli.engines.transformers.engine import TransformersEngine

# Largest logit difference allowed, as a share of the logits' spread. A hit runs the same tokens in
# forwards of other shapes, so sums are rounded in another order; through 30 layers that was 2e-5
# of the spread in float32 (docs/log.md). A wrong chunk gives differences of the spread itself.
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 8e-2}
# A codec changes logits, and greedy tokens with them; KV of other tokens changes them by their
# spread.
CODEC_TOLERANCE = 0.3

VERIFIED_TIERS = ("device", "cpu", "disk", "remote")
_DISK_EXTRA = 16 << 20


@dataclass(frozen=True, slots=True)
class HitVerdict:
    """The verdict on one prompt served from one tier. ``logit_error`` is the largest difference of
    the next token's logits over the spread (max - min) of the cold ones, ``kl`` the divergence of
    its distribution from the cold one in nats. ``codec`` is how the tier keeps KV."""

    tier: str
    context_tokens: int
    chunk_tokens: int
    hit_tokens: int
    logit_error: float
    tolerance: float
    tokens_identical: bool
    kl: float
    codec: str = "none"

    @property
    def passed(self) -> bool:
        """Returns whether a hit took place and changed nothing; with a codec, no more than a codec
        may."""
        right = self.logit_error <= self.tolerance
        if self.codec == "none":
            right = right and self.tokens_identical
        return self.hit_tokens > 0 and right


def verify_hits(flags: HitsFlags, json_file: str | None, quiet: bool) -> int:
    """Prints the table (or JSON) and returns the exit code. Raises ``UserError``."""
    chunks = parse_list(flags.chunk_tokens, "--chunk-tokens", parse_count)
    lengths = parse_list(flags.context_tokens, "--context-tokens", parse_count)
    names: list[str] = []
    if flags.codec:
        names = parse_list(
            flags.codec, "--codec", lambda name, flag: one_of(flag, name, CODECS[1:])
        )
    parse_count(str(flags.output_tokens), "--output-tokens")
    for length in lengths:
        if length <= max(chunks):
            raise UserError(
                f"--context-tokens: {length} holds no full chunk of {max(chunks)} tokens and a"
                " token more; make it longer or --chunk-tokens smaller"
            )
    talk = Console(stderr=True, quiet=quiet)
    with BenchProgress(talk, quiet) as progress:
        progress.step("loading the model")
        engine: Any = start_engine("transformers", flags.model, flags.device, flags.dtype)
    tiers = VERIFIED_TIERS if flags.remote else VERIFIED_TIERS[:-1]
    verdicts: list[HitVerdict] = []
    cases = [(tier, "none") for tier in tiers] + [("cpu", name) for name in names]
    with BenchProgress(talk, quiet) as progress:
        progress.expect(len(lengths) * len(chunks) * len(cases), what="hits")
        for length in lengths:
            [request] = long_contexts(engine, length, 1, flags.output_tokens, flags.seed)
            for chunk, (tier, codec) in product(chunks, cases):
                remote = flags.remote or ""
                verdicts.append(_compare(engine, request, chunk, tier, remote, codec))
                progress.advance(f"{length} tokens, {tier}")
    engine.close()
    document = {
        "schema": "lmcache.verify/1",
        "machine": machine(),
        "versions": versions(),
        "engine": engine.facts(),
        "passed": all(verdict.passed for verdict in verdicts),
        "checks": [asdict(v) | {"passed": v.passed} for v in verdicts],
    }
    return conclude(document, [_table(engine.model, verdicts)], json_file)


def _compare(
    engine: TransformersEngine,
    request: Request,
    chunk: int,
    tier: str,
    remote: str,
    codec: str,
) -> HitVerdict:
    """Serves the prompt cold, then as a hit from ``tier``, and compares."""
    need = len(request.token_ids) + request.max_tokens
    # Twice the chunks of each group and some: a disk tier keeps space for its own order.
    chunks = len(engine.groups(chunk)) * (need // chunk + 8)
    size = 2 * engine.layout(chunk).chunk_bytes * chunks + _DISK_EXTRA
    with TemporaryDirectory(prefix="lmcache-verify-") as folder:
        spec = CacheSpec(
            chunk,
            {tier: 0 if tier == "remote" else size},
            salt=f"verify {uuid4().hex}",
            folder=Path(folder),
            remote=remote,
            codec=codec,
        )
        return _serve_twice(engine, request, spec, tier)


def _serve_twice(
    engine: TransformersEngine, request: Request, spec: CacheSpec, tier: str
) -> HitVerdict:
    session = engine.open(spec, len(request.token_ids) + request.max_tokens)
    session.keep_logits = True
    try:
        [cold] = session.serve([request], Load())
        before = session.logits
        session.settle()
        [warm] = session.serve([request], Load())
        after = session.logits
        session.settle()
        session.clear()
    finally:
        session.close()
    from lmcache_cli.engines.transformers.blend.quality import compared

    spread = float(before.max() - before.min())
    return HitVerdict(
        tier=tier,
        context_tokens=len(request.token_ids),
        chunk_tokens=spec.chunk_tokens,
        hit_tokens=sum(warm.hit_tokens.values()),
        logit_error=float((after - before).abs().max()) / spread,
        tolerance=TOLERANCE[engine.loaded.dtype] if spec.codec == "none" else CODEC_TOLERANCE,
        tokens_identical=warm.output_ids == cold.output_ids,
        kl=compared(before.reshape(1, -1), after.reshape(1, -1)).kl,
        codec=spec.codec,
    )


def _table(model: str, verdicts: Sequence[HitVerdict]) -> Table:
    # What a codec costs is reported beside what is allowed; without one there is nothing to report.
    coded = any(v.codec != "none" for v in verdicts)
    names = ("tier", "prompt", "chunk", "hit", "logit error", "KL" if coded else "allowed")
    title = f"verify: {model}, a hit against a cold prefill"
    table = columns(*names, "greedy tokens", "", left=("tier", ""), title=title)
    for v in verdicts:
        table.add_row(
            v.tier if v.codec == "none" else f"{v.tier} {v.codec}",
            str(v.context_tokens),
            str(v.chunk_tokens),
            str(v.hit_tokens),
            f"{v.logit_error:.1e}",
            f"{v.kl:.1e}" if coded else f"{v.tolerance:.0e}",
            "identical" if v.tokens_identical else "DIFFER" if v.codec == "none" else "differ",
            "[green]pass[/]" if v.passed else "[red]FAIL[/]",
        )
    table.caption = "logit error: largest difference over the spread of the logits; lengths: tokens"
    if coded:
        table.caption += "; KL: of the next token's distribution, in nats"
    return table
