"""``lmcache verify blend --calibrate``: check layer, ratio and encoding of a model.

Self-labelled: the quality of a setting is the KL divergence from the model's own full prefill, so
no answers are needed. Half of the prompts choose a check layer for each encoding and ratio, the
other half, held out, judges those that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from lmcache_cli.bench.requests import read_dataset
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.errors import UserError
from lmcache_cli.options.verify import BlendGateFlags
from lmcache_cli.output import columns
from reports.quality import quality_of
from reports.sample import Sample, frame
from workloads import (
    CorpusError,
    FolderCorpus,
    GeneratedCorpus,
    Request,
    Settings,
    answering,
    generate,
    warming,
)

if TYPE_CHECKING:
    from lmcache_cli.engines.transformers.blend.session import BlendSession
    from lmcache_cli.engines.transformers.engine import TransformersEngine

TRIED_RATIOS = (0.05, 0.15, 0.3)
LAYERED = ("hkvd", "query")
BOUND = 0.2
RULE = (
    "the least work whose held-out KL is at most best + bound * (naive - best), where best is the"
    " lowest held-out KL of all settings and naive that of reuse without recomputing"
)
_PASSAGES, _SYSTEM, _QUESTION, _ANSWER = 4, 32, 32, 16
_DATASET_CHUNK = 64


@dataclass(frozen=True, slots=True)
class SettingTrial:
    """One setting over some prompts: ``work`` is the share of token-layers run, ``kl`` in nats with
    a 95 % interval (null with fewer than five prompts), ``ttft_ms`` the median on this machine."""

    encoding: str
    ratio: float
    check_layer: int
    work: float
    kl: float
    low: float | None
    high: float | None
    ttft_ms: float


def calibrate_settings(
    engine: TransformersEngine, wanted: BlendGateFlags, say: Callable[[str], None]
) -> dict[str, Any]:
    """Tries settings, and returns what goes into the certificate as ``calibration``. Raises
    ``UserError`` for prompts that can't be made or do not fit the model."""
    requests = _requests(engine, wanted)
    held, fitting = requests[1::2], requests[::2]
    need = max(len(r.token_ids) + r.max_tokens for r in (*requests, *warming(requests)))
    room = 2 * sum(len(r.token_ids) for r in requests) * engine.token_bytes()
    # A passage is a chunk; those of a data set differ in length.
    chunk = _DATASET_CHUNK if wanted.dataset else wanted.passage_tokens
    selection = wanted.blend_selection
    first = CacheSpec(chunk, {"cpu": room}, mode="blend")
    fitted: list[SettingTrial] = []
    judged: list[SettingTrial] = []
    naive: list[SettingTrial] = []
    for encoding in ("system", "none" if engine.bos is None else "bos"):
        settings = BlendSettings(selection=selection, encoding=encoding)
        spec = replace(first, blend=settings)
        session: BlendSession = engine.open(spec, need)  # type: ignore[assignment]
        try:
            for request in warming(requests):
                _serve(session, request)
            naive.append(_trial(session, spec, replace(settings, ratio=0.0), held))
            for ratio in TRIED_RATIOS:
                say(f"calibrating: encoding {encoding}, ratio {ratio:g}")
                layers = [
                    _trial(
                        session, spec, replace(settings, ratio=ratio, check_layer=layer), fitting
                    )
                    for layer in _layers(engine, selection)
                ]
                fitted += layers
                best = min(layers, key=lambda trial: trial.kl)
                settled = replace(settings, ratio=ratio, check_layer=best.check_layer)
                judged.append(_trial(session, spec, settled, held))
        finally:
            session.close()
    chosen = choose_setting(judged, min(trial.kl for trial in naive))
    return {
        "chosen": {
            "selection": selection,
            "encoding": chosen.encoding,
            "ratio": chosen.ratio,
            "check_layer": chosen.check_layer,
        },
        "rule": RULE,
        "bound": BOUND,
        "text": str(wanted.dataset or wanted.corpus or "generated"),
        "seed": wanted.seed,
        "passage_tokens": wanted.passage_tokens,
        "chunk_tokens": chunk,
        "prompts": {"calibration": len(fitting), "held_out": len(held)},
        "calibration": [asdict(trial) for trial in fitted],
        "naive": [asdict(trial) for trial in naive],
        "held_out": [asdict(trial) for trial in judged],
    }


def choose_setting(trials: Sequence[SettingTrial], naive: float) -> SettingTrial:
    """Chooses a setting by :data:`RULE`; ``naive`` is the KL of reuse without recomputing."""
    best = min(trial.kl for trial in trials)
    most = best + BOUND * max(0.0, naive - best)
    return min((t for t in trials if t.kl <= most), key=lambda trial: (trial.work, trial.kl))


def calibration_table(found: Mapping[str, Any]) -> Table:
    """Makes the table of the held-out trials; an arrow shows the one that was chosen."""
    prompts = found["prompts"]
    names = ("encoding", "ratio", "layer", "work %", "KL nats", "95 %", "TTFT ms", "")
    title = (
        f"calibrated on {prompts['calibration']} prompts, {prompts['held_out']} held out"
        f" (text: {found['text']})"
    )
    made = columns(*names, left=("encoding", ""), title=title)
    chosen = found["chosen"]
    for trial in (*found["naive"], *found["held_out"]):
        same = all(trial[name] == chosen[name] for name in ("encoding", "ratio", "check_layer"))
        interval = "" if trial["low"] is None else f"{trial['low']:.4f}-{trial['high']:.4f}"
        made.add_row(
            trial["encoding"],
            f"{trial['ratio']:g}",
            str(trial["check_layer"]) if trial["ratio"] else "",
            f"{100 * trial['work']:.1f}",
            f"{trial['kl']:.4f}",
            interval,
            f"{trial['ttft_ms']:.0f}",
            "<- chosen" if same else "",
        )
    made.caption = f"chosen: {found['rule']}; bound {found['bound']}"
    return made


def _requests(engine: TransformersEngine, wanted: BlendGateFlags) -> list[Request]:
    if wanted.calibration_prompts < 2:
        raise UserError("--calibration-prompts: at least 2, half of which are held out")
    settings = Settings(
        context_tokens=_PASSAGES * wanted.passage_tokens + _SYSTEM + _QUESTION,
        requests=wanted.calibration_prompts,
        passages=_PASSAGES,
        passage_tokens=wanted.passage_tokens,
        corpus_passages=_PASSAGES * wanted.calibration_prompts,
        zipf=0.0,
        system_tokens=_SYSTEM,
        question_tokens=_QUESTION,
        output_tokens=_ANSWER,
        seed=wanted.seed,
    )
    try:
        if wanted.dataset is not None:
            examples = read_dataset(wanted.dataset, wanted.calibration_prompts)
            return answering(examples, settings, engine.encode, engine.bos)[0]
        corpus = FolderCorpus(wanted.corpus) if wanted.corpus else GeneratedCorpus(wanted.seed)
        return generate("rag", settings, corpus, engine.encode, engine.bos)
    except (CorpusError, ValueError) as error:
        raise UserError(f"--calibrate: {error}") from error


def _layers(engine: TransformersEngine, selection: str) -> list[int]:
    """Returns the check layers to try: the first ones, a sixth and a third of the way up."""
    if selection not in LAYERED:
        return [1]
    count = len(engine.layers().layers)
    return sorted({layer for layer in (1, 2, count // 6, count // 3) if 1 <= layer < count} or {0})


def _trial(
    session: BlendSession, spec: CacheSpec, settings: BlendSettings, requests: Sequence[Request]
) -> SettingTrial:
    session.choose(replace(spec, blend=settings))
    samples = []
    for request in requests:
        sample = _serve(session, request)
        quality = session.judge(request)
        samples.append(
            replace(
                sample, kl=quality.kl, kl_positions=quality.positions, agreement=quality.agreement
            )
        )
    found = quality_of(frame(samples))
    assert found.kl is not None
    work = float(np.mean([s.token_layer_share or 0.0 for s in samples]))
    ttft = 1e3 * float(np.median([s.first_token_s - s.sent_s for s in samples]))
    return SettingTrial(
        settings.encoding,
        settings.ratio,
        settings.check_layer,
        work,
        found.kl,
        found.kl_low,
        found.kl_high,
        ttft,
    )


def _serve(session: BlendSession, request: Request) -> Sample:
    [sample] = session.serve([request], Load())
    session.settle()
    return sample
