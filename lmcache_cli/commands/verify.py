"""``lmcache verify``: is a hit the same as computing it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.errors import UserError
from lmcache_cli.options.flags import Config, Json, Quiet

SHORT = "Is a hit the same as computing it? Compares logits, by tier."
EXAMPLES = (
    "Examples:  lmcache verify --model ./my-llama --context-tokens 500 --chunk-tokens 16,64   |"
    "   lmcache verify --blend --passage-tokens 160"
)


def verify(
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face id or folder. \\[default: the embedded SmolLM2-135M]",
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    chunk_tokens: Annotated[str, typer.Option(help="Chunk lengths, with commas.")] = "64",
    context_tokens: Annotated[str, typer.Option(help="Prompt lengths, with commas.")] = "300,700",
    output_tokens: Annotated[int, typer.Option(help="Greedy tokens that are compared.")] = 16,
    remote: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Remote tier to verify too.", show_default=False),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="Codecs whose cost in quality to measure too: fp8,int8.", show_default=False
        ),
    ] = None,
    blend: Annotated[
        bool,
        typer.Option("--blend", help="Instead: the gates of blend, and its quality curve."),
    ] = False,
    passage_tokens: Annotated[int, typer.Option(help="Length of a passage (--blend).")] = 160,
    blend_selection: Annotated[str, typer.Option(help="As of bench (--blend).")] = "hkvd",
    blend_check_layer: Annotated[int, typer.Option(help="As of bench (--blend).")] = 1,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="Find the model's check layer, ratio and encoding too; bench --reuse blend then"
            " uses them (--blend).",
        ),
    ] = False,
    calibration_prompts: Annotated[
        int, typer.Option(help="Prompts to calibrate with, half of them held out.")
    ] = 12,
    corpus: Annotated[
        Path | None,
        typer.Option(
            help="File or folder of real text to calibrate with, in place of generated text.",
            show_default=False,
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Questions with passages to calibrate with, as of bench; answers are not used.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the model's passport goes, which bench asks for (--blend)."
            " Default: below $XDG_CACHE_HOME or ~/.cache.",
            show_default=False,
        ),
    ] = None,
    shared_from: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Instead: what KV of this base ('embedded' is one) costs --model.",
            show_default=False,
        ),
    ] = None,
    recompute_layers: Annotated[
        str, typer.Option(help="As of bench (--shared-from).")
    ] = "none,10%,25%,50%,75%,all",
    seed: Annotated[int, typer.Option(help="Of the generated prompts.")] = 0,
    json: Json = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Compares the logits and greedy tokens of a hit from each tier with those of a cold prefill.
    Exit code 1 if any differs by more than the dtype's rounding."""
    if calibrate and not blend:
        raise UserError("--calibrate goes with --blend: lmcache verify --blend --calibrate")
    if shared_from is not None:
        from lmcache_cli.modes.cross_model import layer_set
        from lmcache_cli.sizes import parse_count, parse_list
        from lmcache_cli.verify.cross_model import BetweenOptions, run_verify_between

        between = BetweenOptions(
            model=model,
            base=shared_from,
            dtype=dtype,
            contexts=parse_list(context_tokens, "--context-tokens", parse_count),
            output_tokens=parse_count(str(output_tokens), "--output-tokens"),
            sets=parse_list(recompute_layers, "--recompute-layers", layer_set),
            seed=seed,
        )
        raise typer.Exit(run_verify_between(between, json, quiet))
    if blend:
        from lmcache_cli.modes.blend import BLEND_SELECTIONS
        from lmcache_cli.modes.mode import one_of
        from lmcache_cli.sizes import parse_count
        from lmcache_cli.verify.blend import BlendOptions, run_verify_blend
        from lmcache_cli.verify.blend_settings import Calibration

        one_of("--blend-selection", blend_selection, BLEND_SELECTIONS)
        length = parse_count(str(passage_tokens), "--passage-tokens")
        wanted = None
        if calibrate:
            wanted = Calibration(
                length, blend_selection, calibration_prompts, seed, corpus, dataset
            )
        given = BlendOptions(
            model, dtype, length, blend_selection, blend_check_layer, seed, out, wanted
        )
        raise typer.Exit(run_verify_blend(given, json, quiet))
    from lmcache_cli.verify.hits import VerifyOptions, run_verify

    options = VerifyOptions(
        model=model,
        device=device,
        dtype=dtype,
        chunk_tokens=chunk_tokens,
        context_tokens=context_tokens,
        output_tokens=output_tokens,
        seed=seed,
        remote=remote or "",
        codecs=codec or "",
    )
    raise typer.Exit(run_verify(options, json, quiet))
