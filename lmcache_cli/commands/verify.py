"""``lmcache verify``: is a hit the same as computing it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmcache_cli.config_file import load_config

EXAMPLES = (
    "Examples:  lmcache verify --model ./my-llama --context-tokens 500 --chunk-tokens 16,64   |"
    "   lmcache verify --blend --passage-tokens 160"
)


def verify(
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face id or folder. [default: the embedded SmolLM2-135M]",
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
    seed: Annotated[int, typer.Option(help="Of the generated prompts.")] = 0,
    json: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write JSON; - for stdout.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of these flags; flags win.",
            is_eager=True,
            callback=load_config,
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Compares the logits and greedy tokens of a hit from each tier with those of a cold prefill.
    Exit code 1 if any differs by more than the dtype's rounding."""
    if blend:
        from lmcache_cli.bench.modes import BLEND_SELECTIONS, one_of
        from lmcache_cli.sizes import parse_count
        from lmcache_cli.verify_blend import run_verify_blend

        one_of("--blend-selection", blend_selection, BLEND_SELECTIONS)
        length = parse_count(str(passage_tokens), "--passage-tokens")
        code = run_verify_blend(
            model, dtype, length, blend_selection, blend_check_layer, seed, json, quiet
        )
        raise typer.Exit(code)
    from lmcache_cli.verify import VerifyOptions, run_verify

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
