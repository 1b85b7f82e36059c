"""``lmcache verify --shared-from``: what a base's KV costs a fine-tune, by recomputed layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.start import start_engine
from lmcache_cli.engines.transformers.cross_model.layers import entries, layer_groups, layers_text
from lmcache_cli.errors import EXIT_FAILED, UserError
from lmcache_cli.output import write_output
from lmcache_cli.verify.blend import Gate
from reports.quality import QualitySummary, pooled
from reports.units import EN_DASH
from workloads import GeneratedCorpus, Request, Settings, generate

if TYPE_CHECKING:
    from lmcache_cli.engines.transformers.cross_model.base_model import CrossModelBase
    from lmcache_cli.engines.transformers.cross_model.quality_by_layer import LayerProfile
    from lmcache_cli.engines.transformers.engine import TransformersEngine

CROSS_MODEL_SCHEMA = "lmcache.verify-between/1"
PROMPTS = 4
"""Of each length."""
_QUESTION = 16


@dataclass(frozen=True, slots=True)
class BetweenOptions:
    """The flags, parsed. ``contexts`` are the lengths of what the base has prefilled, in tokens,
    ``sets`` the sets of layers as written."""

    model: str | None
    base: str
    dtype: str
    contexts: Sequence[int]
    output_tokens: int
    sets: Sequence[str]
    seed: int


def run_verify_between(options: BetweenOptions, json_file: str | None, quiet: bool) -> int:
    """Prints gates, curve and single layers (or JSON) and returns the exit code: 1 if a gate
    fails."""
    from lmcache_cli.engines.transformers.cross_model.quality_by_layer import profile

    talk = Console(stderr=True, quiet=quiet)
    with talk.status("loading the models"):
        engine: Any = start_engine("transformers", options.model, "cpu", options.dtype)
        base: CrossModelBase = engine.shared_base(options.base)
    layers = len(engine.layers().layers)
    try:
        sets = {text: layer_groups(text, layers) for text in options.sets}
    except ValueError as error:
        raise UserError(f"--recompute-layers: {error}") from error
    requests = _prompts(engine, options)
    with talk.status("comparing with full prefills"):
        found = profile(engine, base, requests, sets)
    gates = [
        Gate(
            "computing all layers equals a full prefill, to the bit",
            found.apart == 0,
            f"largest difference {found.apart:g}",
        ),
        Gate("KV that is computed again is not read", found.unread, "NaN in its place"),
        _keys(engine, base, requests[0][0]),
    ]
    engine.close()
    passed = all(gate.passed for gate in gates)
    document = _document(options, engine, base, gates, found, sets)
    if json_file is not None:
        write_output(json_file, json.dumps(document, indent=1) + "\n")
    if json_file != "-":
        Console().print(_tables(document))
    return 0 if passed else EXIT_FAILED


def _prompts(engine: TransformersEngine, options: BetweenOptions) -> list[tuple[Request, int]]:
    """Documents with a question each, and how long the document is."""
    made = []
    for length in options.contexts:
        settings = Settings(
            context_tokens=length,
            documents=PROMPTS,
            questions=1,
            question_tokens=_QUESTION,
            output_tokens=options.output_tokens,
            seed=options.seed,
        )
        corpus = GeneratedCorpus(options.seed)
        for request in generate("long-context", settings, corpus, engine.encode, engine.bos):
            need = len(request.token_ids) + request.max_tokens
            if need > engine.max_context:
                raise UserError(
                    f"--context-tokens: {length} needs {need} tokens, but {engine.model}'s context"
                    f" is {engine.max_context}"
                )
            named = replace(request, id=f"{length} {request.id}")
            made.append((named, len(request.token_ids) - _QUESTION))
    return made


def _keys(engine: TransformersEngine, base: CrossModelBase, request: Request) -> Gate:
    from cache_core.keys import ChunkHasher

    spec = CacheSpec(16)
    hashers = [ChunkHasher(engine.namespace(spec)), ChunkHasher(base.namespace(spec))]
    own, theirs = (set(hasher.keys(request.token_ids).prefix) for hasher in hashers)
    same = len(own & theirs)
    return Gate("the two models have no key in common", not same, f"{same} of {len(own)}")


def _document(
    options: BetweenOptions,
    engine: TransformersEngine,
    base: CrossModelBase,
    gates: Sequence[Gate],
    found: LayerProfile,
    sets: Mapping[str, tuple[range, ...]],
) -> dict[str, Any]:
    width = int(engine.loaded.config.hidden_size)
    item = engine.layout(1).head_bytes // engine.loaded.head_dim
    curve = [
        {
            "recompute_layers": name,
            "layers": layers_text(groups),
            "recomputed": sum(map(len, groups)),
            "token_layer_share": found.shares[name],
            "hidden_bytes_per_token": len(entries(groups)) * width * item,
        }
        | _quality(pooled([[q] for q in found.sets[name]]))
        for name, groups in sets.items()
    ]
    single = [
        {"layer": layer} | _quality(pooled([[q] for q in qualities]))
        for layer, qualities in enumerate(found.layers)
    ]
    return {
        "schema": CROSS_MODEL_SCHEMA,
        "model": engine.model,
        "base": base.loaded.id,
        "prompts": len(found.base),
        "context_tokens": list(options.contexts),
        "output_tokens": options.output_tokens,
        "seed": options.seed,
        "kv_bytes_per_token": engine.token_bytes(),
        "gates": [{"name": g.name, "passed": g.passed, "found": g.found} for g in gates],
        "curve": curve,
        "base_itself": _quality(pooled([[q] for q in found.base])),
        "single_layers": single,
        "passed": all(gate.passed for gate in gates),
    }


def _quality(summary: QualitySummary) -> dict[str, Any]:
    return {
        "kl": summary.kl,
        "kl_interval": {"low": summary.kl_low, "high": summary.kl_high},
        "agreement": summary.agreement,
        "positions": summary.positions,
    }


def _tables(document: Mapping[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 0, 1, 0))
    first = Table(box=None, pad_edge=False, title_justify="left")
    first.title = f"{document['model']} over the KV of {document['base']}"
    for name in ("gate", "", "found"):
        first.add_column(name)
    for gate in document["gates"]:
        first.add_row(gate["name"], "ok" if gate["passed"] else "FAILED", gate["found"])
    second = Table(box=None, pad_edge=False)
    for name in ("recomputed", "layers", "run %", "KL nats", "95 %", "top-1 %"):
        second.add_column(name, justify="right")
    for point in document["curve"]:
        share = f"{100 * point['token_layer_share']:.1f}"
        second.add_row(point["recompute_layers"], str(point["recomputed"]), share, *_shown(point))
    second.add_row("the base itself", "", "", *_shown(document["base_itself"]))
    third = Table(box=None, pad_edge=False)
    for name in ("only this layer is the base's", "KL nats", "95 %", "top-1 %"):
        third.add_column(name, justify="right")
    for point in document["single_layers"]:
        third.add_row(str(point["layer"]), *_shown(point))
    for table in (first, second, third):
        grid.add_row(table)
    grid.add_row(
        f"{document['prompts']} prompts of {document['context_tokens']} tokens behind which"
        f" {_QUESTION} are computed; KL to the model's own full prefill over"
        f" {document['base_itself']['positions']} positions; bootstrap over prompts"
    )
    return grid


def _shown(quality: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = quality["kl_interval"]["low"], quality["kl_interval"]["high"]
    interval = EN_DASH if low is None else f"{low:.4f}{EN_DASH}{high:.4f}"
    return f"{quality['kl']:.4f}", interval, f"{100 * quality['agreement']:.1f}"
