"""What ``--help`` and ``--version`` show."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version

import pytest

from tests.lmcache_cli.command_line import COMMAND, ROOT, environment, lmcache
from tests.processes import run_alone

COMMANDS = ("bench", "tune", "probe", "check", "compare", "verify", "report", "trace", "doctor")
OF_TRACE = ("record", "info", "convert", "synth")
OF_VERIFY = ("hits", "blend", "cross-model")
GROUPS = {"trace": OF_TRACE, "verify": OF_VERIFY}
SHARED = {"bench": ("bench",), "tune": ("tune",), "check": ("verdict",), "compare": ("verdict",)}
"""Files of ``options/`` that hold flags of a command."""
WRITTEN_DEFAULT = re.compile(r"\[default: ([^]]+)\]")


def shown(*args: str, columns: int = 80) -> str:
    done = lmcache(*args, cwd=ROOT, COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_list_of_commands_imports_none_of_them() -> None:
    done = run_alone(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"],
        60,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0 and "Commands:" in done.stdout
    for slow in ("lmcache_cli.options", "lmcache_cli.commands.", "rich", "numpy", "psutil"):
        assert f" {slow}" not in done.stderr, slow


def test_the_help_of_a_command_draws_no_boxes() -> None:
    """They would take longer to import than all else; its flags stand by panel all the same."""
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "bench", "--help"]
    done = run_alone(command, 60, cwd=ROOT, env=environment())
    assert done.returncode == 0 and "│" not in done.stdout
    for slow in (" rich", " numpy", " psutil", "lmcache_cli.bench"):
        assert slow not in done.stderr, slow
    lines = done.stdout.splitlines()
    cache, load = lines.index("The cache:"), lines.index("The load:")
    assert any(line.startswith("  --policy ") for line in lines[cache:load])
    assert not any(line.startswith("  --rate ") for line in lines[:load])


@pytest.mark.parametrize("args", [(), ("trace",), ("verify",)])
def test_without_a_command_the_help_is_shown(args: tuple[str, ...]) -> None:
    done = lmcache(*args, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Usage: lmcache") and "\nCommands:\n" in done.stderr


def test_the_version() -> None:
    assert shown("--version") == f"lmcache-bench {version('lmcache-bench')}\n"


@pytest.mark.parametrize(
    ("args", "names"), [((), COMMANDS), *(((name,), names) for name, names in GROUPS.items())]
)
def test_a_command_is_one_line(args: tuple[str, ...], names: tuple[str, ...]) -> None:
    rows = shown(*args, "--help").partition("Commands")[2].splitlines()
    lines = [line.strip("│ ") for line in rows if line.startswith(("│", "  "))]
    assert sorted(line.split()[0] for line in lines) == sorted(names)
    assert all(line.endswith((".", "?")) for line in lines)


@pytest.mark.parametrize(
    "args",
    [
        *((name,) for name in COMMANDS),
        *((name, inner) for name, names in GROUPS.items() for inner in names),
    ],
    ids=" ".join,
)
def test_brackets(args: tuple[str, ...]) -> None:
    """Those of usage stand once, and a default that is told in words is not taken for markup."""
    found = shown(*args, "--help")
    usage = next(line for line in found.splitlines() if "Usage:" in line)
    assert "[[" not in usage and "]]" not in usage
    source = (ROOT / "lmcache_cli" / "commands" / f"{args[0]}.py").read_text()
    assert "\\[" not in found
    if args[0] not in GROUPS:  # one file, several commands
        for name in SHARED.get(args[0], ()):
            source += (ROOT / "lmcache_cli" / "options" / f"{name}.py").read_text()
        joined = re.sub(r'"\s*\n\s*"', "", source)
        for default in WRITTEN_DEFAULT.findall(joined):
            assert f"[default: {default}]" in " ".join(found.split())
