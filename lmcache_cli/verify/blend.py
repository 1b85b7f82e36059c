"""``lmcache verify --blend``: the gates that blend must pass on a model, and its quality curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from rich.console import Console
from rich.table import Table

from cache_core.blend.certificate import Certificate, CertificateError, read_certificate
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import EXIT_FAILED, UserError
from lmcache_cli.machine import versions
from lmcache_cli.modes.blend import certificate_path
from lmcache_cli.output import write_output
from lmcache_cli.verify.blend_settings import Calibration, calibrate_settings, calibration_table
from workloads import GeneratedCorpus, Request, Segment, Settings, generate
from workloads.request import TokenIds

if TYPE_CHECKING:
    import torch

    from lmcache_cli.engines.transformers.blend.session import BlendSession
    from lmcache_cli.engines.transformers.engine import TransformersEngine

RATIOS = (0.0, 0.05, 0.15, 0.3, 0.6, 1.0)
VERIFY_BLEND_SCHEMA = "lmcache.verify-blend/1"
_PROMPTS, _PASSAGES, _ANSWER = 4, 4, 24
_QUESTION = 16
_NOTHING = 1e-4


@dataclass(frozen=True, slots=True)
class Gate:
    """One thing that must hold, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True, slots=True)
class RatioPoint:
    """Quality at one ratio: KL to a full prefill in nats over all positions of all answers, with
    the 95 % interval of the prompts' means, and top-1 agreement."""

    ratio: float
    kl: float
    low: float
    high: float
    agreement: float
    positions: int


@dataclass(frozen=True, slots=True)
class BlendOptions:
    """The flags of ``lmcache verify --blend``. ``out`` is where the passport goes; None is the
    model's own place."""

    model: str | None = None
    dtype: str = "auto"
    passage_tokens: int = 160
    selection: str = "hkvd"
    check_layer: int = 1
    seed: int = 0
    out: Path | None = None
    calibration: Calibration | None = None


def run_verify_blend(options: BlendOptions, json_file: str | None, quiet: bool) -> int:
    """Writes the passport, prints gates and curve (or JSON) and returns the exit code: 1 if a gate
    fails."""
    talk = Console(stderr=True, quiet=quiet)
    passage_tokens = options.passage_tokens
    with talk.status("loading the model"):
        engine: Any = start_engine("transformers", options.model, "cpu", options.dtype)
    need = _PASSAGES * passage_tokens + 64 + _QUESTION + _ANSWER
    if need > engine.max_context:
        raise UserError(
            f"--passage-tokens: {passage_tokens} needs {need} tokens, but {engine.model}'s context"
            f" is {engine.max_context}"
        )
    spec = CacheSpec(
        passage_tokens,
        {"cpu": 4 * _PASSAGES * (_PROMPTS + 1) * passage_tokens * engine.token_bytes()},
        salt=f"verify {uuid4().hex}",
        mode="blend",
        selection=options.selection,
        check_layer=options.check_layer,
    )
    prompts = _prompts(engine, passage_tokens, options.seed)
    with talk.status("measuring quality at each ratio"):
        measured = {ratio: _measure(engine, spec, ratio, prompts, need) for ratio in RATIOS}
    points = [point for point, _ in measured.values()]
    with talk.status("proving the gates"):
        full = _cold(engine, prompts[0])
        gates = [_rotation(engine), _causality(engine, prompts[0])]
        apart = float((measured[1.0][1] - full).abs().max())
        gates.append(
            Gate("ratio 1 equals a full prefill, to the bit", apart == 0, f"largest {apart:g}")
        )
        moved = float((measured[0.0][1] - full).abs().max())
        gates.append(Gate("ratio 0 is another answer", moved > 0, f"largest {moved:g}"))
        kls = [point.kl for point in points]
        # Neighbours may lie within each other's intervals. Of a model that hardly looks back,
        # random weights for one, there is nothing to tell.
        falls = kls[0] < _NOTHING or (kls[0] > kls[3] > kls[5] and kls[1] >= kls[4])
        gates.append(Gate("KL falls with the ratio", falls, ", ".join(f"{kl:.4f}" for kl in kls)))
    passed = all(gate.passed for gate in gates)
    calibration: Mapping[str, Any] | None = None
    if passed and options.calibration is not None:
        with talk.status("calibrating") as status:
            calibration = calibrate_settings(engine, options.calibration, status.update)
    engine.close()
    details = _details(spec, gates, points)
    path = _keep(engine, options, gates, details, calibration)
    talk.print(f"passport: {path}", highlight=False, soft_wrap=True)
    if json_file is not None:
        document = {
            "schema": VERIFY_BLEND_SCHEMA,
            "model": engine.model,
            **details,
            "passed": passed,
        }
        document["passport"] = str(path)
        document["calibration"] = calibration
        write_output(json_file, json.dumps(document, indent=1) + "\n")
    if json_file != "-":
        Console().print(_tables(engine.model, gates, points))
        if calibration is not None:
            Console().print(calibration_table(calibration))
    return 0 if passed else EXIT_FAILED


def _prompts(engine: TransformersEngine, passage: int, seed: int) -> list[Request]:
    """Prompts of a BOS (or a first token), passages of the same length, and a question."""
    # Longer than is taken: a passage must fill its chunk.
    length = passage + _QUESTION
    settings = Settings(context_tokens=length, requests=_PROMPTS * (_PASSAGES + 1), seed=seed)
    corpus = GeneratedCorpus(seed)
    texts = [
        request.token_ids
        for request in generate("random", settings, corpus, engine.encode, engine.bos)
    ]
    made = []
    for number in range(_PROMPTS):
        mine = texts[number * (_PASSAGES + 1) : (number + 1) * (_PASSAGES + 1)]
        head = mine[0][:1] if engine.bos is None else np.array([engine.bos], dtype=np.int32)
        passages = [text[1 : passage + 1] for text in mine[:_PASSAGES]]
        made.append(_request(f"p{number}", head, passages, mine[-1][1 : _QUESTION + 1]))
    return made


def _request(
    name: str, head: TokenIds, passages: Sequence[TokenIds], question: TokenIds
) -> Request:
    parts = [head, *passages, question]
    kinds = ["system", *["passage"] * len(passages), "question"]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    segments = tuple(
        Segment(end - len(part), end, kind)
        for part, end, kind in zip(parts, ends, kinds, strict=True)
    )
    return Request(name, name, 0.0, np.concatenate(parts), segments, _ANSWER)


def _reordered(request: Request) -> Request:
    """The same passages, the last first."""
    cut = [request.token_ids[part.start : part.end] for part in request.segments]
    return replace(_request(f"{request.id} warm", cut[0], cut[-2:0:-1], cut[-1]), max_tokens=1)


def _measure(
    engine: TransformersEngine, spec: CacheSpec, ratio: float, prompts: list[Request], need: int
) -> tuple[RatioPoint, torch.Tensor]:
    """Quality at one ratio, and the first prompt's logits."""
    session: BlendSession = engine.open(replace(spec, ratio=ratio), need)  # type: ignore[assignment]
    session.keep_logits = True
    kls, same, first = [], [], None
    try:
        for request in prompts:
            [_] = session.serve([_reordered(request)], Load())
            session.settle()
            [sample] = session.serve([request], Load())
            if ratio < 1 and not sample.blended_tokens:
                raise RuntimeError("nothing was reused: the gates would prove nothing")
            if first is None:
                first = session.logits.clone()
            quality = session.judge(request)
            kls.append(quality.kl)
            same.append(quality.agreement)
    finally:
        session.close()
    assert first is not None
    mean = float(np.mean(kls))
    half = 3.182 * float(np.std(kls, ddof=1)) / len(kls) ** 0.5  # Student's t, 3 degrees, 95 %
    point = RatioPoint(
        ratio, mean, max(0.0, mean - half), mean + half, float(np.mean(same)), _ANSWER * len(kls)
    )
    return point, first


def _cold(engine: TransformersEngine, request: Request) -> torch.Tensor:
    return engine.forward(engine.arena(), request.token_ids, 0).float().clone()


def _rotation(engine: TransformersEngine) -> Gate:
    import torch

    rope = engine.layers().rope
    k = torch.randn(2, engine.loaded.kv_heads, 7, engine.loaded.head_dim)
    same = torch.equal(rope.rotate(k.clone(), 0), k)
    return Gate("turning K by 0 is a bit copy", same, "equal" if same else "different")


def _causality(engine: TransformersEngine, request: Request) -> Gate:
    """Changed KV behind a position moves no computed row up to it."""
    import torch

    from cache_core.blend.selection import KV, Fixed, Reused
    from lmcache_cli.engines.transformers.blend.forward import blend

    like = engine.arena().tensor
    ids = torch.from_numpy(request.token_ids.astype(np.int64)).to(like.device)
    n, start = len(ids), torch.randn(like.shape).to(like)
    end = n - _QUESTION
    chosen = torch.arange(1, end, 3)
    probe = end // 2
    other = start.clone()
    other[..., probe + 1 :, :] += 5.0
    for arena in (start, other):
        kv = KV(arena[:, 0].transpose(1, 2), arena[:, 1].transpose(1, 2))
        reused = Reused(ids, (0, 1, end), 1, ((1, end),), kv)
        blend(engine.layers(), reused, arena, np.arange(end, n), Fixed(lambda _: chosen))
    moved = float((start - other)[..., : probe + 1, :].abs().max())
    return Gate("no row sees the future", moved == 0, f"largest change {moved:g}")


def _tables(model: str, gates: list[Gate], points: list[RatioPoint]) -> Table:
    grid = Table.grid(padding=(0, 0, 1, 0))
    first = Table(box=None, pad_edge=False, title=f"blend on {model}", title_justify="left")
    for name in ("gate", "", "found"):
        first.add_column(name)
    for gate in gates:
        first.add_row(gate.name, "ok" if gate.passed else "FAILED", gate.found)
    second = Table(box=None, pad_edge=False)
    for name in ("ratio", "KL nats", "95 %", "top-1 %", "positions"):
        second.add_column(name, justify="right")
    for p in points:
        interval = f"{p.low:.4f}-{p.high:.4f}"
        second.add_row(
            f"{p.ratio:g}", f"{p.kl:.4f}", interval, f"{100 * p.agreement:.1f}", str(p.positions)
        )
    grid.add_row(first)
    grid.add_row(second)
    return grid


def _details(spec: CacheSpec, gates: list[Gate], points: list[RatioPoint]) -> dict[str, Any]:
    return {
        "selection": spec.selection,
        "check_layer": spec.check_layer,
        "passage_tokens": spec.chunk_tokens,
        "gates": [asdict(gate) for gate in gates],
        "curve": [asdict(point) for point in points],
    }


def _keep(
    engine: TransformersEngine,
    options: BlendOptions,
    gates: list[Gate],
    details: dict[str, Any],
    calibration: Mapping[str, Any] | None,
) -> Path:
    """Writes the passport. What was calibrated for the very same model stays in it."""
    subject = engine.blend_subject()
    path = options.out or certificate_path(subject)
    if calibration is None:
        calibration = {}
        with suppress(CertificateError):
            old = read_certificate(path)
            calibration = old.calibration if old.subject.digest == subject.digest else {}
    failed = tuple(gate.name for gate in gates if not gate.passed)
    kept = details | {"versions": versions(), "created": datetime.now(UTC).isoformat()}
    try:
        Certificate(subject, failed, calibration, kept).write(path)
    except OSError as error:
        raise UserError(
            f"--out: {path} can't be written: {error.strerror}; name another file"
        ) from error
    return path
