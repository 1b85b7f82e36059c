"""Declares the flags of ``lmcache verify``'s commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cache_core.blend.certificate import DEFAULT_RATIO
from lmcache_cli.options.bench import ModelFlags
from lmcache_cli.options.flags import WORKLOAD, flag


@dataclass(frozen=True)
class VerifyFlags(ModelFlags):
    """The flags of the model, and of the seed of what it is asked."""

    seed: Annotated[int, flag("Seed of the generated prompts.", WORKLOAD)] = 0


@dataclass(frozen=True)
class HitsFlags(VerifyFlags):
    """The flags of ``lmcache verify hits``."""

    chunk_tokens: Annotated[str, flag("Chunk lengths, in tokens.", WORKLOAD, metavar="LIST")] = "64"
    context_tokens: Annotated[str, flag("Prompt lengths, in tokens.", WORKLOAD, metavar="LIST")] = (
        "300,700"
    )
    output_tokens: Annotated[int, flag("Greedy tokens that are compared.", WORKLOAD)] = 16
    remote: Annotated[
        str | None, flag("Remote tier to verify too.", "The cache", metavar="URL")
    ] = None
    codec: Annotated[
        str | None,
        flag("Codecs whose cost in quality to measure too: fp8,int8.", "The cache", metavar="LIST"),
    ] = None


@dataclass(frozen=True)
class BlendGateFlags(VerifyFlags):
    """The flags of ``lmcache verify blend``."""

    passage_tokens: Annotated[int, flag("Length of a passage, in tokens.", WORKLOAD)] = 160
    prompts: Annotated[int, flag("Prompts to measure with, at least 16.", WORKLOAD)] = 16
    corpus: Annotated[
        Path | None,
        flag(
            "File or folder of real text for the prompts. Default: generated text.",
            WORKLOAD,
            metavar="FILE",
        ),
    ] = None
    blend_ratio: Annotated[
        float, flag("Share of reused tokens that is computed again.", WORKLOAD)
    ] = DEFAULT_RATIO
    blend_encoding: Annotated[
        Literal["auto", "system", "bos", "none"],
        flag("Tokens after which passages are encoded.", WORKLOAD),
    ] = "auto"
    out: Annotated[
        Path | None,
        flag(
            "File for the model's certificate, which bench and the vLLM connector ask for."
            " Default: below $XDG_CACHE_HOME or ~/.cache.",
            metavar="FILE",
        ),
    ] = None


@dataclass(frozen=True)
class CrossModelFlags(VerifyFlags):
    """The flags of ``lmcache verify cross-model``."""

    context_tokens: Annotated[
        str,
        flag("Lengths of what the base has prefilled, in tokens.", WORKLOAD, metavar="LIST"),
    ] = "300,700"
    output_tokens: Annotated[int, flag("Greedy tokens that are compared.", WORKLOAD)] = 16
    recompute_layers: Annotated[
        str,
        flag(
            "Sets of layers computed again: none, all, 25% (the lowest), 0-3+12.",
            WORKLOAD,
            metavar="LIST",
        ),
    ] = "none,10%,25%,50%,75%,all"
