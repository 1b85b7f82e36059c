"""Declares the flags that ``lmcache check`` and ``compare`` share: what fails, and where verdicts
go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from lmcache_cli.options.flags import flag

_VERDICT, _OUTPUT = "The verdict", "Outputs"


@dataclass(frozen=True)
class JudgementFlags:
    """The flags of what fails: rules for metrics, and how strictly counters are compared."""

    fail_on: Annotated[
        list[str] | None,
        flag(
            "Rule METRIC>LIMIT or METRIC<-LIMIT; may be given several times."
            " \\[default: ttft.p50>5%, ttft.mean>5%, ttft.p90>10%]",
            _VERDICT,
            metavar="RULE",
        ),
    ] = None
    counters: Annotated[
        Literal["exact", "worse", "ignore"],
        flag(
            "Strictness; exact: any change of a counter fails; worse: only one for the"
            " worse; ignore.",
            _VERDICT,
            metavar="NAME",
        ),
    ] = "exact"
    inconclusive: Annotated[
        Literal["fail", "pass"],
        flag(
            "What INCONCLUSIVE is; fail: exit code 3; pass: 0, unless nothing was measured.",
            _VERDICT,
            metavar="NAME",
        ),
    ] = "fail"
    noise: Annotated[
        str | None,
        flag(
            "Known noise from one day's runs to another's, for stored runs: 0.05 for 5 %, or a"
            " folder of old runs to take it from.",
            _VERDICT,
            metavar="SHARE|FOLDER",
            show_default=False,
        ),
    ] = None
    allow_different: Annotated[
        list[str] | None,
        flag(
            "Judge stored runs although they differ in this; may be given several times.",
            _VERDICT,
            metavar="NAME",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class VerdictFiles:
    """The flags of the files that verdicts go to; ``-`` is stdout. ``github`` appends the Markdown
    to the step's summary."""

    json: Annotated[str | None, flag("Write JSON; - for stdout.", _OUTPUT, metavar="FILE")] = None
    markdown: Annotated[
        str | None, flag("Write Markdown; - for stdout.", _OUTPUT, metavar="FILE")
    ] = None
    junit: Annotated[
        str | None, flag("Write JUnit XML; - for stdout.", _OUTPUT, metavar="FILE")
    ] = None
    github: Annotated[
        bool, flag("Append the Markdown to $GITHUB_STEP_SUMMARY.", _OUTPUT, "--github")
    ] = False
    comment: Annotated[
        bool,
        flag("Write it as a comment of the pull request, by gh.", _OUTPUT, "--comment"),
    ] = False
