"""``lmcache verify blend``: the gates that blend must pass on a model, and its quality curve."""

from __future__ import annotations

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
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.start import start_engine
from lmcache_cli.errors import UserError
from lmcache_cli.machine import versions
from lmcache_cli.modes.blend import certificate_path
from lmcache_cli.options.verify import BlendGateFlags
from lmcache_cli.output import columns
from lmcache_cli.sizes import parse_count
from lmcache_cli.verify.blend_settings import calibrate_settings, calibration_table
from lmcache_cli.verify.gates import (
    QUESTION_TOKENS,
    Gate,
    check_fits,
    conclude,
    gate_table,
)
from workloads import GeneratedCorpus, Request, Settings, generate
from workloads.request import Part, Prompt, TokenIds

if TYPE_CHECKING:
    import torch

    from lmcache_cli.engines.transformers.blend.session import BlendSession
    from lmcache_cli.engines.transformers.engine import TransformersEngine

RATIOS = (0.0, 0.05, 0.15, 0.3, 0.6, 1.0)
VERIFY_BLEND_SCHEMA = "lmcache.verify-blend/1"
_PROMPTS, _PASSAGES, _ANSWER = 4, 4, 24
_NOTHING = 1e-4


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


def verify_blend(flags: BlendGateFlags, json_file: str | None, quiet: bool) -> int:
    """Writes the certificate, prints gates and curve (or JSON) and returns the exit code: 1 if a
    gate fails. Raises ``UserError``."""
    talk = Console(stderr=True, quiet=quiet)
    passage_tokens = parse_count(str(flags.passage_tokens), "--passage-tokens")
    with talk.status("loading the model"):
        engine: Any = start_engine("transformers", flags.model, flags.device, flags.dtype)
    need = _PASSAGES * passage_tokens + 64 + QUESTION_TOKENS + _ANSWER
    check_fits(engine, "--passage-tokens", passage_tokens, need)
    settings = BlendSettings(selection=flags.blend_selection, check_layer=flags.blend_check_layer)
    spec = CacheSpec(
        passage_tokens,
        {"cpu": 4 * _PASSAGES * (_PROMPTS + 1) * passage_tokens * engine.token_bytes()},
        salt=f"verify {uuid4().hex}",
        mode="blend",
        blend=settings,
    )
    prompts = _prompts(engine, passage_tokens, flags.seed)
    with talk.status("measuring quality at each ratio"):
        measured = {ratio: _measure(engine, spec, ratio, prompts, need) for ratio in RATIOS}
    points = [point for point, _ in measured.values()]
    with talk.status("proving the gates"):
        cold = engine.forward(engine.kv_buffer(), prompts[0].token_ids, 0)
        full = cold.float().clone()
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
    if passed and flags.calibrate:
        with talk.status("calibrating") as status:
            calibration = calibrate_settings(engine, flags, status.update)
    engine.close()
    details: dict[str, Any] = {
        "selection": settings.selection,
        "check_layer": settings.check_layer,
        "passage_tokens": spec.chunk_tokens,
        "gates": [asdict(gate) for gate in gates],
        "curve": [asdict(point) for point in points],
    }
    path = _keep(engine, flags.out, gates, details, calibration)
    talk.print(f"certificate: {path}", highlight=False, soft_wrap=True)
    document = {"schema": VERIFY_BLEND_SCHEMA, "model": engine.model, **details, "passed": passed}
    document |= {"certificate": str(path), "calibration": calibration}
    tables = [gate_table(f"blend on {engine.model}", details["gates"]), _curve(points)]
    if calibration is not None:
        tables.append(calibration_table(calibration))
    return conclude(document, tables, json_file)


def _prompts(engine: TransformersEngine, passage: int, seed: int) -> list[Request]:
    """Makes prompts of a BOS (or a first token), passages of the same length, and a question."""
    # Longer than is taken: a passage must fill its chunk.
    length = passage + QUESTION_TOKENS
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
        made.append(_request(f"p{number}", head, passages, mine[-1][1 : QUESTION_TOKENS + 1]))
    return made


def _request(
    name: str, head: TokenIds, passages: Sequence[TokenIds], question: TokenIds
) -> Request:
    middle = [Part("passage", passage) for passage in passages]
    parts = (Part("system", head), *middle, Part("question", question))
    return Prompt(name, name, parts).request(0.0, _ANSWER)


def _reordered(request: Request) -> Request:
    """Returns a request with the same passages, the last first."""
    cut = [request.token_ids[part.start : part.end] for part in request.segments]
    return replace(_request(f"{request.id} warm", cut[0], cut[-2:0:-1], cut[-1]), max_tokens=1)


def _measure(
    engine: TransformersEngine, spec: CacheSpec, ratio: float, prompts: list[Request], need: int
) -> tuple[RatioPoint, torch.Tensor]:
    """Measures the quality at one ratio, and returns it with the first prompt's logits."""
    assert spec.blend is not None
    with_ratio = replace(spec, blend=replace(spec.blend, ratio=ratio))
    session: BlendSession = engine.open(with_ratio, need)  # type: ignore[assignment]
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


def _rotation(engine: TransformersEngine) -> Gate:
    import torch

    rope = engine.layers().rope
    k = torch.randn(2, engine.loaded.kv_heads, 7, engine.loaded.head_dim)
    same = torch.equal(rope.rotate(k.clone(), 0), k)
    return Gate("turning K by 0 is a bit copy", same, "equal" if same else "different")


def _causality(engine: TransformersEngine, request: Request) -> Gate:
    """Checks that changed KV after a position moves no computed row up to it."""
    import torch

    from cache_core.blend.selection import KV, Fixed, Reused
    from lmcache_cli.engines.transformers.blend.forward import blend

    like = engine.kv_buffer().tensor
    ids = torch.from_numpy(request.token_ids.astype(np.int64)).to(like.device)
    n, start = len(ids), torch.randn(like.shape).to(like)
    end = n - QUESTION_TOKENS
    chosen = torch.arange(1, end, 3)
    probe = end // 2
    other = start.clone()
    other[..., probe + 1 :, :] += 5.0
    for buffer in (start, other):
        kv = KV(buffer[:, 0].transpose(1, 2), buffer[:, 1].transpose(1, 2))
        reused = Reused(ids, (0, 1, end), 1, ((1, end),), kv)
        blend(engine.layers(), reused, buffer, np.arange(end, n), Fixed(lambda _: chosen))
    moved = float((start - other)[..., : probe + 1, :].abs().max())
    return Gate("no row sees the future", moved == 0, f"largest change {moved:g}")


def _curve(points: list[RatioPoint]) -> Table:
    table = columns("ratio", "KL nats", "95 %", "top-1 %", "positions")
    for p in points:
        interval = f"{p.low:.4f}-{p.high:.4f}"
        agreement = f"{100 * p.agreement:.1f}"
        table.add_row(f"{p.ratio:g}", f"{p.kl:.4f}", interval, agreement, str(p.positions))
    return table


def _keep(
    engine: TransformersEngine,
    out: Path | None,
    gates: list[Gate],
    details: dict[str, Any],
    calibration: Mapping[str, Any] | None,
) -> Path:
    """Writes the certificate. What was calibrated for the very same model stays in it."""
    subject = engine.blend_subject()
    path = out or certificate_path(subject)
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
