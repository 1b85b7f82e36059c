"""``lmcache verify cross-model``: what a base's KV costs a fine-tune, by recomputed layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.start import start_engine
from lmcache_cli.engines.transformers.cross_model.layers import entries, layer_groups, layers_text
from lmcache_cli.errors import UserError
from lmcache_cli.modes.cross_model import layer_set
from lmcache_cli.options.verify import CrossModelFlags
from lmcache_cli.output import columns
from lmcache_cli.sizes import parse_count, parse_list
from lmcache_cli.verify.gates import (
    QUESTION_TOKENS,
    Gate,
    conclude,
    gate_table,
    long_contexts,
)
from reports.quality import Quality, pooled
from reports.units import EN_DASH
from workloads import Request

if TYPE_CHECKING:
    from lmcache_cli.engines.transformers.cross_model.forward import CrossModelBase
    from lmcache_cli.engines.transformers.cross_model.quality_by_layer import LayerProfile
    from lmcache_cli.engines.transformers.engine import TransformersEngine

CROSS_MODEL_SCHEMA = "lmcache.verify-between/1"
PROMPTS = 4
"""The number of prompts of each length."""


def verify_cross_model(
    flags: CrossModelFlags, base_model: str, json_file: str | None, quiet: bool
) -> int:
    """Prints gates, curve and single layers (or JSON) and returns the exit code: 1 if a gate
    fails. Raises ``UserError``."""
    from lmcache_cli.engines.transformers.cross_model.quality_by_layer import profile

    lengths = parse_list(flags.context_tokens, "--context-tokens", parse_count)
    parse_count(str(flags.output_tokens), "--output-tokens")
    texts = parse_list(flags.recompute_layers, "--recompute-layers", layer_set)
    talk = Console(stderr=True, quiet=quiet)
    with BenchProgress(talk, quiet) as progress:
        progress.step("loading the models")
        engine: Any = start_engine("transformers", flags.model, flags.device, flags.dtype)
        base: CrossModelBase = engine.shared_base(base_model)
    layers = len(engine.layers().layers)
    try:
        sets = {text: layer_groups(text, layers) for text in texts}
    except ValueError as error:
        raise UserError(f"--recompute-layers: {error}") from error
    # each with the length of its document
    requests = [
        (replace(request, id=f"{length} {request.id}"), len(request.token_ids) - QUESTION_TOKENS)
        for length in lengths
        for request in long_contexts(engine, length, PROMPTS, flags.output_tokens, flags.seed)
    ]
    with BenchProgress(talk, quiet) as progress:
        progress.expect(len(requests), what="prompts")
        found = profile(engine, base, requests, sets, on_prompt=progress.advance)
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
    document = {
        "schema": CROSS_MODEL_SCHEMA,
        "model": engine.model,
        "base": base.loaded.id,
        "prompts": len(found.base),
        "context_tokens": lengths,
        "output_tokens": flags.output_tokens,
        "seed": flags.seed,
        "kv_bytes_per_token": engine.token_bytes(),
        "gates": [asdict(gate) for gate in gates],
        **_curves(engine, found, sets),
        "passed": all(gate.passed for gate in gates),
    }
    return conclude(document, _tables(document), json_file)


def _keys(engine: TransformersEngine, base: CrossModelBase, request: Request) -> Gate:
    from cache_core.keys import ChunkHasher

    spec = CacheSpec(16)
    hashers = [ChunkHasher(engine.namespace(spec)), ChunkHasher(base.namespace(spec))]
    own, theirs = (set(hasher.keys(request.token_ids).prefix) for hasher in hashers)
    same = len(own & theirs)
    return Gate("the two models have no key in common", not same, f"{same} of {len(own)}")


def _curves(
    engine: TransformersEngine, found: LayerProfile, sets: Mapping[str, tuple[range, ...]]
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
        | _quality(found.sets[name])
        for name, groups in sets.items()
    ]
    single = [
        {"layer": layer} | _quality(qualities) for layer, qualities in enumerate(found.layers)
    ]
    base = _quality(found.base)
    return {"curve": curve, "base_itself": base, "single_layers": single}


def _quality(found: Sequence[Quality]) -> dict[str, Any]:
    summary = pooled([[quality] for quality in found])
    return {
        "kl": summary.kl,
        "kl_interval": {"low": summary.kl_low, "high": summary.kl_high},
        "agreement": summary.agreement,
        "positions": summary.positions,
    }


def _tables(document: Mapping[str, Any]) -> list[Table]:
    title = f"{document['model']} over the KV of {document['base']}"
    curve = columns("recomputed", "layers", "run %", "KL nats", "95 %", "top-1 %")
    for point in document["curve"]:
        share = f"{100 * point['token_layer_share']:.1f}"
        curve.add_row(point["recompute_layers"], str(point["recomputed"]), share, *_shown(point))
    curve.add_row("the base itself", "", "", *_shown(document["base_itself"]))
    single = columns("only this layer is the base's", "KL nats", "95 %", "top-1 %")
    for point in document["single_layers"]:
        single.add_row(str(point["layer"]), *_shown(point))
    single.caption = (
        f"{document['prompts']} prompts of {document['context_tokens']} tokens behind which"
        f" {QUESTION_TOKENS} are computed; KL to the model's own full prefill over"
        f" {document['base_itself']['positions']} positions; bootstrap over prompts"
    )
    return [gate_table(title, document["gates"]), curve, single]


def _shown(quality: Mapping[str, Any]) -> tuple[str, str, str]:
    low, high = quality["kl_interval"]["low"], quality["kl_interval"]["high"]
    interval = EN_DASH if low is None else f"{low:.4f}{EN_DASH}{high:.4f}"
    return f"{quality['kl']:.4f}", interval, f"{100 * quality['agreement']:.1f}"
