"""The two sides of a check, from the command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import typer

from lmcache_cli.bench.plan import BenchOptions
from lmcache_cli.errors import UserError


@dataclass(frozen=True, slots=True)
class Side:
    """``name`` is baseline or candidate. ``args`` are flags of bench, for ``python`` (None: this
    one); or ``stored`` is a run file."""

    name: str
    args: tuple[str, ...] = ()
    python: Path | None = None
    stored: Path | None = None

    def options(self) -> BenchOptions:
        """The flags, parsed as ``lmcache bench`` does. Raises ``UserError``."""
        # Typer brings its own copy of click, or uses the installed one.
        from typer.main import get_command

        from lmcache_cli.commands.bench import bench

        # With typer's flags for completion a YAML file could set them, too.
        app = typer.Typer(add_completion=False)
        app.command("bench")(bench)
        command = get_command(app)
        try:
            with command.make_context("bench", list(self.args)) as context:
                return BenchOptions.of(context.params)
        except UserError as error:
            raise UserError(f"--{self.name}: {error}") from error
        except typer.Exit as error:
            raise UserError(f"--{self.name}: --help is no flag of a run; leave it out") from error
        except Exception as error:
            message = getattr(error, "format_message", None)
            if message is None:
                raise
            raise UserError(f"--{self.name}: {message()} Flags are those of bench") from error


def parse_side(name: str, text: str | None, python: Path | None) -> Side:
    """``text`` is flags of bench, a YAML file of them, or a run file. Raises ``UserError``."""
    if python is not None and not python.exists():
        raise UserError(
            f"--{name}-python: {python} does not exist; give a Python of an environment"
        )
    path = Path(text) if text else None
    if path is not None and path.suffix in (".parquet", ".json") and "\n" not in str(path):
        if name == "candidate" or python is not None:
            raise UserError(f"--{name}: {path} is a run; to judge runs use lmcache compare")
        if not path.exists():
            raise UserError(f"--{name}: {path} does not exist; give a run file, or flags of bench")
        return Side(name, stored=path)
    if path is not None and path.suffix in (".yaml", ".yml"):
        return Side(name, ("--config", str(path)), python)
    try:
        return Side(name, tuple(shlex.split(text or "")), python)
    except ValueError as error:
        raise UserError(f"--{name}: {error}; quote it as for a shell") from error


def shared_flags(text: str) -> tuple[str, ...]:
    """Of ``--bench``. Raises ``UserError``."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UserError(f"--bench: {error}; quote it as for a shell") from error
