"""Declares the flags of ``lmcache verify``'s commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from lmcache_cli.options.bench import ModelFlags
from lmcache_cli.options.flags import WORKLOAD, flag

_CALIBRATION = "Calibration"


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
    blend_selection: Annotated[
        Literal["hkvd", "query", "first", "random", "none", "full"],
        flag("Selection of the reused tokens that are computed again.", WORKLOAD),
    ] = "hkvd"
    blend_check_layer: Annotated[
        int, flag("Layer at which hkvd and query choose, from 0 on.", WORKLOAD)
    ] = 1
    out: Annotated[
        Path | None,
        flag(
            "File for the model's certificate, which bench and the vLLM connector ask for."
            " Default: below $XDG_CACHE_HOME or ~/.cache.",
            metavar="FILE",
        ),
    ] = None
    calibrate: Annotated[
        bool,
        flag(
            "Find the model's check layer, ratio and encoding too; bench --reuse blend then uses"
            " them.",
            _CALIBRATION,
            "--calibrate",
        ),
    ] = False
    calibration_prompts: Annotated[
        int, flag("Prompts to calibrate with, half of them held out.", _CALIBRATION)
    ] = 12
    corpus: Annotated[
        Path | None,
        flag(
            "File or folder of real text to calibrate with, in place of generated text.",
            _CALIBRATION,
            metavar="FILE",
        ),
    ] = None
    dataset: Annotated[
        Path | None,
        flag(
            "Questions with passages to calibrate with, as bench takes them; answers are not used.",
            _CALIBRATION,
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
