"""``lmcache verify blend``: the gates that blend must pass on a model, and its quality curve."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cache_core.blend.certificate import BlendTerms, Certificate, certificate_name
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import UserError
from lmcache_cli.machine import versions
from lmcache_cli.modes.blend import certificates, lessons
from lmcache_cli.options.verify import BlendGateFlags
from lmcache_cli.output import columns
from lmcache_cli.sizes import parse_count
from lmcache_cli.verify.gates import QUESTION_TOKENS, Gate, check_fits, conclude, gate_table
from workloads import (
    Corpus,
    CorpusError,
    FolderCorpus,
    GeneratedCorpus,
    Request,
    Settings,
    generate,
)
from workloads.request import Part, Prompt, TokenIds

if TYPE_CHECKING:
    import torch

    from lmcache_cli.engines.transformers.blend.session import BlendSession
    from lmcache_cli.engines.transformers.engine import TransformersEngine

VERIFY_BLEND_SCHEMA = "lmcache.verify-blend/2"
LEAST_PROMPTS = 16
MOST_OF_NAIVE, LEAST_TOP_1 = 0.6, -0.01
"""What blend must reach: this share of plain reuse's KL, and top-1 as near a full prefill's."""
_PASSAGES, _TRUTH, _POOL = 4, 24, 24
_VERDICTS = {
    "passed": "passed: bench and the vLLM connector blend this model from now on",
    "failed": "failed: this model is not blended; a larger --blend-ratio computes more again",
    "inconclusive": "inconclusive: an interval holds the limit, so it is not blended yet; more"
    " prompts tell: --prompts {}",
}
_DRAWS, _MOST_DRAWS = 4000, 20_000


@dataclass(frozen=True, slots=True)
class RatioPoint:
    """Quality at one ratio, over ``positions`` of text that goes on from a passage: KL to a full
    prefill in nats, how much of the text its likeliest tokens are, and as many of a full prefill's;
    the 95 % interval is of the prompts' means. ``token_layer_share``
    is the share of token-layers run, the question's included."""

    ratio: float
    kl: float
    low: float
    high: float
    top_1: float
    full_top_1: float
    positions: int
    token_layer_share: float


def verify_blend(flags: BlendGateFlags, json_file: str | None, quiet: bool) -> int:
    """Writes the certificate, prints gates and curve (or JSON) and returns the exit code: 1 if a
    gate fails, 3 if one can't be told. Raises ``UserError``."""
    talk = Console(stderr=True, quiet=quiet)
    passage_tokens = parse_count(str(flags.passage_tokens), "--passage-tokens")
    if flags.prompts < LEAST_PROMPTS:
        raise UserError(f"--prompts: {flags.prompts} is too few to tell; at least {LEAST_PROMPTS}")
    if not 0 < flags.blend_ratio <= 1:
        raise UserError(f"--blend-ratio: {flags.blend_ratio} is not above 0, and up to 1")
    try:
        corpus = FolderCorpus(flags.corpus) if flags.corpus else GeneratedCorpus(flags.seed)
    except CorpusError as error:
        raise UserError(f"--corpus: {error}") from error
    with BenchProgress(talk, quiet) as progress:
        progress.step("loading the model")
        engine: Any = start_engine("transformers", flags.model, flags.device, flags.dtype)
    need = _PASSAGES * passage_tokens + 64 + QUESTION_TOKENS + _TRUTH
    check_fits(engine, "--passage-tokens", passage_tokens, need)
    settings = BlendSettings(flags.blend_ratio, flags.blend_encoding)
    spec = CacheSpec(
        passage_tokens,
        {"cpu": 4 * max(_POOL, flags.prompts) * passage_tokens * engine.token_bytes()},
        salt=f"verify {uuid4().hex}",
        mode="blend",
        blend=settings,
    )
    ratios = sorted({0.0, settings.ratio / 2, settings.ratio, min(1.0, 2 * settings.ratio)})
    session: Any = engine.open(spec, need)
    session.keep_logits = True
    session.prompts.beginnings.most = 0  # what is tried was learnt elsewhere
    tried, teaching = _prompts(engine, corpus, passage_tokens, flags, session.prompts.seen.learning)
    with BenchProgress(talk, quiet) as progress:
        progress.expect(len(teaching) + len(tried), what="prompts")
        _learn(session, teaching, progress)
        trials = [_measured(engine, session, spec, ratios, one, progress) for one in tried]
    full, naive = _first_logits(engine, session, spec, tried[0], need)
    session.close()
    points = [_point(ratio, [trial[ratio] for trial in trials]) for ratio in ratios]
    gates = [_rotation(engine), _causality(engine, tried[0].request)]
    apart = float((full[1] - full[0]).abs().max())
    gates.append(
        Gate("ratio 1 equals a full prefill, to the bit", apart == 0, f"largest {apart:g}")
    )
    moved = float((naive - full[0]).abs().max())
    gates.append(Gate("ratio 0 is another answer", moved > 0, f"largest {moved:g}"))
    gates += quality_gates(trials, settings.ratio)
    engine.close()
    failed, unsure = _names(gates, unsure=False), _names(gates, unsure=True)
    details: dict[str, Any] = {
        "passage_tokens": spec.chunk_tokens,
        "prompts": len(tried),
        "text": str(flags.corpus or "generated"),
        "gates": [asdict(gate) for gate in gates],
        "curve": [asdict(point) for point in points],
    }
    subject = engine.blend_subject()
    kept = details | {"versions": versions(), "created": datetime.now(UTC).isoformat()}
    terms = BlendTerms(settings.ratio, settings.encoding)
    certificate = Certificate(subject, terms, failed, unsure, kept)
    path = flags.out or certificates() / certificate_name(subject, terms)
    try:
        certificate.write(path)
    except OSError as error:
        raise UserError(
            f"--out: {path} can't be written: {error.strerror}; name another file"
        ) from error
    document = {"schema": VERIFY_BLEND_SCHEMA, "model": engine.model, **asdict(terms), **details}
    document |= {"passed": certificate.verdict == "passed", "verdict": certificate.verdict}
    document |= {"certificate": str(path)}
    tables = [gate_table(f"blend on {engine.model}", details["gates"]), _curve(points)]
    said = Text(f"{_VERDICTS[certificate.verdict].format(2 * len(tried))}\ncertificate: {path}")
    return conclude(document, [*tables, said], json_file)


@dataclass(frozen=True, slots=True)
class BlendTrial:
    """A prompt's quality at one ratio: KL, the shares of the text that blend's and the full
    prefill's likeliest tokens are, and the share of token-layers run."""

    kl: float
    top_1: float
    full_top_1: float
    token_layer_share: float


def quality_gates(trials: Sequence[Mapping[float, BlendTrial]], ratio: float) -> list[Gate]:
    """Returns the gates of quality at ``ratio``, over prompts. KL's is held or missed where the
    whole 95 % interval says so, else unsure; top-1's is held where the mean says so, missed where
    the whole interval does, else unsure."""
    kl = np.array([trial[ratio].kl for trial in trials])
    naive = np.array([trial[0.0].kl for trial in trials])
    worse = np.array([trial[ratio].top_1 - trial[ratio].full_top_1 for trial in trials])
    draws = np.random.default_rng(0).integers(0, len(trials), (_DRAWS, len(trials)))
    shares = kl[draws].mean(1) / np.maximum(naive[draws].mean(1), 1e-12)
    low, high = np.percentile(shares, [2.5, 97.5])
    share = kl.mean() / max(naive.mean(), 1e-12)
    found = f"{share:.2f} ({low:.2f}-{high:.2f})"
    name = f"KL is at most {MOST_OF_NAIVE:g} of plain reuse's"
    gates = [Gate(name, bool(high <= MOST_OF_NAIVE), found, bool(low <= MOST_OF_NAIVE < high))]
    low, high = np.percentile(worse[draws].mean(1), [2.5, 97.5])
    found = f"{100 * worse.mean():+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    ok = bool(worse.mean() >= LEAST_TOP_1)
    name = "top-1 within a point of a full prefill's"
    return [*gates, Gate(name, ok, found, not ok and bool(high >= LEAST_TOP_1))]


@dataclass(frozen=True, slots=True)
class _Tried:
    """A request whose question goes on from one of its passages, and the text behind that."""

    request: Request
    truth: TokenIds


def _prompts(
    engine: TransformersEngine,
    corpus: Corpus,
    passage: int,
    flags: BlendGateFlags,
    together: int | None = None,
) -> tuple[list[_Tried], list[Request]]:
    """Makes prompts of a BOS (or a first token), passages of a pool, and text that goes on from one
    of them; and requests after which each passage was seen often enough. No two passages of a
    prompt meet there: what is reused must not have been computed beside what it is tried with.
    ``together`` tokens can be learnt at a time.

    One of those takes about as long as trying a prompt: it computes and encodes three passages."""
    length = passage + QUESTION_TOKENS + _TRUTH + 1
    pool = max(_POOL, flags.prompts)
    settings = Settings(context_tokens=length, requests=pool, seed=flags.seed)
    try:
        texts = [
            request.token_ids[1:]
            for request in generate("random", settings, corpus, engine.encode, engine.bos)
        ]
    except CorpusError as error:
        raise UserError(f"--corpus: {error}") from error
    bos = engine.blend_bos()
    head = texts[0][:1] if bos is None else np.array([bos], dtype=np.int32)
    rng = np.random.default_rng(flags.seed)
    orders = list(lessons([passage] * pool, _PASSAGES, together=together, seed=flags.seed))
    met = {frozenset(pair) for order in orders for pair in combinations(order, 2)}
    made = []
    for number in range(flags.prompts):
        mine = _strangers(pool, met, rng)
        asked = texts[mine[int(rng.integers(_PASSAGES))]][passage:]
        passages = [texts[i][:passage] for i in mine]
        request = _request(f"p{number}", head, passages, asked[:QUESTION_TOKENS])
        made.append(_Tried(request, asked[QUESTION_TOKENS : QUESTION_TOKENS + _TRUTH]))
    question = texts[0][passage : passage + QUESTION_TOKENS]
    return made, [
        _request(f"learn {number}", head, [texts[i][:passage] for i in order], question)
        for number, order in enumerate(orders)
    ]


def _strangers(
    pool: int, met: Container[frozenset[int]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draws passages of a pool of which no two have ``met``. Raises ``UserError`` if it finds
    none."""
    for _ in range(_MOST_DRAWS):
        mine = rng.permutation(pool)[:_PASSAGES]
        if not any(frozenset(pair) in met for pair in combinations(mine.tolist(), 2)):
            return mine
    raise UserError(
        f"--seed: of {pool} passages no {_PASSAGES} were found that were not learnt side by side;"
        " use another one, or more --prompts"
    )


def _request(
    name: str, head: TokenIds, passages: Sequence[TokenIds], question: TokenIds
) -> Request:
    middle = [Part("passage", passage) for passage in passages]
    parts = (Part("system", head), *middle, Part("question", question))
    return Prompt(name, name, parts).request(0.0, 1)


def _learn(session: BlendSession, teaching: Sequence[Request], progress: BenchProgress) -> None:
    """Serves requests, after which each of their passages must be known."""
    for request in teaching:
        _serve(session, request)
        progress.advance("learning passages")
    lack = [request for request in teaching if not _known(session, request)]
    if lack:
        raise RuntimeError(f"passages of {len(lack)} requests were not learnt")


def _known(session: BlendSession, request: Request) -> bool:
    prompt = session.prompts.of(request)
    parts = [piece for piece in prompt.pieces if not prompt.is_lead(piece)]
    return all(session.prompts.seen.get(piece.key) is not None for piece in parts)


def _serve(session: BlendSession, request: Request) -> Any:
    [sample] = session.serve([request], Load())
    session.settle()
    return sample


def _measured(
    engine: TransformersEngine,
    session: BlendSession,
    spec: CacheSpec,
    ratios: Sequence[float],
    tried: _Tried,
    progress: BenchProgress,
) -> dict[float, BlendTrial]:
    """Measures a prompt at every ratio against one full prefill."""
    import torch

    from lmcache_cli.engines.transformers.blend.quality import compared, forced_logits

    ids, n = tried.request.token_ids, len(tried.request.token_ids)
    truth = torch.from_numpy(tried.truth.astype(np.int64)).to(engine.layers().device)
    buffer = engine.kv_buffer()
    first = engine.forward(buffer, ids, 0)
    full = forced_logits(engine.layers(), first, truth, buffer.tensor, n)
    right = float((full.argmax(-1) == truth).double().mean())
    found: dict[float, BlendTrial] = {}
    for ratio in ratios:
        session.choose(replace(spec, blend=replace(spec.blend or BlendSettings(), ratio=ratio)))
        [sample] = session.serve([tried.request], Load())
        share = sample.token_layer_share
        if share is None or (ratio < 1 and not sample.blended_tokens):
            raise RuntimeError("nothing was reused: the gates would prove nothing")
        own = session.forced(truth, n)
        same = float((own.argmax(-1) == truth).double().mean())
        found[ratio] = BlendTrial(compared(full, own).kl, same, right, share)
        session.settle()
    progress.advance("comparing with full prefills")
    return found


def _first_logits(
    engine: TransformersEngine, session: BlendSession, spec: CacheSpec, tried: _Tried, need: int
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Returns the first logits of a full prefill and of ratio 1, and those of ratio 0."""
    cold = engine.forward(engine.kv_buffer(), tried.request.token_ids, 0).float().clone()
    found = []
    for ratio in (1.0, 0.0):
        session.choose(replace(spec, blend=replace(spec.blend or BlendSettings(), ratio=ratio)))
        _serve(session, tried.request)
        found.append(session.logits.clone())
    return (cold, found[0]), found[1]


def _point(ratio: float, trials: Sequence[BlendTrial]) -> RatioPoint:
    kl = np.array([trial.kl for trial in trials])
    draws = np.random.default_rng(0).integers(0, len(kl), (_DRAWS, len(kl)))
    low, high = np.percentile(kl[draws].mean(1), [2.5, 97.5])
    top_1 = float(np.mean([trial.top_1 for trial in trials]))
    full = float(np.mean([trial.full_top_1 for trial in trials]))
    work = float(np.mean([trial.token_layer_share for trial in trials]))
    interval = float(kl.mean()), float(low), float(high)
    return RatioPoint(ratio, *interval, top_1, full, _TRUTH * len(kl), work)


def _names(gates: Sequence[Gate], unsure: bool) -> tuple[str, ...]:
    return tuple(gate.name for gate in gates if not gate.passed and gate.unsure is unsure)


def _rotation(engine: TransformersEngine) -> Gate:
    import torch

    rope = engine.layers().rope
    k = torch.randn(2, engine.loaded.kv_heads, 7, engine.loaded.head_dim)
    same = torch.equal(rope.rotate(k.clone(), 0), k)
    return Gate("turning K by 0 is a bit copy", same, "equal" if same else "different")


def _causality(engine: TransformersEngine, request: Request) -> Gate:
    """Checks that changed KV after a position moves no computed row up to it."""
    import torch

    from lmcache_cli.engines.transformers.blend.forward import blend

    like = engine.kv_buffer().tensor
    ids = torch.from_numpy(request.token_ids.astype(np.int64)).to(like.device)
    n, start = len(ids), torch.randn(like.shape).to(like)
    end = n - QUESTION_TOKENS
    at = np.concatenate([np.arange(1, end, 3), np.arange(end, n)])
    probe = end // 2
    other = start.clone()
    other[..., probe + 1 :, :] += 5.0
    for buffer in (start, other):
        blend(engine.layers(), ids, buffer, at)
    moved = float((start - other)[..., : probe + 1, :].abs().max())
    return Gate("no row sees the future", moved == 0, f"largest change {moved:g}")


def _curve(points: list[RatioPoint]) -> Table:
    table = columns("ratio", "KL nats", "95 %", "top-1 %", "full's", "positions", "work %")
    for p in points:
        interval = f"{p.low:.4f}-{p.high:.4f}"
        shares = (f"{100 * share:.1f}" for share in (p.top_1, p.full_top_1))
        numbers = str(p.positions), f"{100 * p.token_layer_share:.1f}"
        table.add_row(f"{p.ratio:g}", f"{p.kl:.4f}", interval, *shares, *numbers)
    return table
