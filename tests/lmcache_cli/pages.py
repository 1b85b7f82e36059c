"""Commands that pages of docs/engines show."""

from __future__ import annotations

import re
import shlex

from tests.lmcache_cli.command_line import ROOT

FENCE = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Each line behind a ``$`` that is ours, as words; pip's are only held to be pip's."""
    text = (ROOT / "docs" / "engines" / page).read_text()
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
    assert lines and all(line.startswith(("$ lmcache ", "$ pip ")) for line in lines)
    ours = [line for line in lines if line.startswith("$ lmcache ")]
    return [shlex.split(line.removeprefix("$ ")) for line in ours]
