"""Declares ``lmcache verify``: is a hit the same as computing it?"""

from __future__ import annotations

from typing import Annotated

import typer

from lmcache_cli.options.flags import Config, Json, Quiet, flattened
from lmcache_cli.options.verify import BlendGateFlags, CrossModelFlags, HitsFlags

SHORT = "Is a hit the same as computing it? Compares logits."
HITS_EXAMPLES = (
    "Example:  lmcache verify hits --model ./my-llama --context-tokens 500 --chunk-tokens 16,64"
)
BLEND_EXAMPLES = "Example:  lmcache verify blend --passage-tokens 160 --corpus docs"
CROSS_MODEL_EXAMPLES = "Example:  lmcache verify cross-model BASE --model FINE_TUNE"

verify_app = typer.Typer(
    name="verify",
    short_help=SHORT,
    help="Is a hit the same as computing it? Compares logits. Exit code 1 if a gate fails.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@verify_app.command("hits", short_help="A hit from each tier.", epilog=HITS_EXAMPLES)
@flattened
def hits_command(
    flags: HitsFlags, json: Json = None, config: Config = None, quiet: Quiet = False
) -> None:
    """Compares the logits and greedy tokens of a hit from each tier with those of a cold prefill.
    Exit code 1 if any differs by more than the dtype's rounding."""
    from lmcache_cli.verify.hits import verify_hits

    raise typer.Exit(verify_hits(flags, json, quiet))


@verify_app.command(
    "blend", short_help="Passages in another order (bench --reuse blend).", epilog=BLEND_EXAMPLES
)
@flattened
def blend_command(
    flags: BlendGateFlags, json: Json = None, config: Config = None, quiet: Quiet = False
) -> None:
    """Proves the gates that blend must pass on a model, measures its quality beside plain reuse,
    and writes the certificate that bench and the vLLM connector ask for. Exit code 1 if a gate
    fails, 3 if too few prompts tell."""
    from lmcache_cli.verify.blend import verify_blend

    raise typer.Exit(verify_blend(flags, json, quiet))


@verify_app.command(
    "cross-model",
    short_help="A base's KV in its fine-tune (bench --reuse shared).",
    epilog=CROSS_MODEL_EXAMPLES,
)
@flattened
def cross_model_command(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="Base whose KV --model is served, or embedded."),
    ],
    flags: CrossModelFlags,
    json: Json = None,
    config: Config = None,
    quiet: Quiet = False,
) -> None:
    """Measures what the KV of a base costs its fine-tune, by the layers that are computed again.
    Exit code 1 if a gate fails."""
    from lmcache_cli.verify.cross_model import verify_cross_model

    raise typer.Exit(verify_cross_model(flags, base, json, quiet))
