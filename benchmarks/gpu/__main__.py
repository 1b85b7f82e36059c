"""`make gpu`: all that this project has to find out on a GPU, in one call of less than 8 minutes.

    python -m benchmarks.gpu [--dry] [--out FOLDER] [--wheels FOLDER] [--modules FOLDER]

Nothing is fetched. See docs/gpu.md. Exits with 0 if every stage has passed, 1 if one failed, 2 if
a folder can't be written, 3 if the time ran out, 4 if something is missing, a GPU above all, and
130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.card import Card, NoCard, card
from benchmarks.gpu.files import ROOT, sources_digest
from benchmarks.gpu.runner import BAD_INPUT, MISSING, PASSED, Runner
from benchmarks.gpu.stages import DRY, REAL, Where, stages, tool_path
from benchmarks.gpu.summary import Summary

_BUDGET_S = 470.0
_MEMORY = Path("/dev/shm")
# Weights of 8e9 parameters in bfloat16, and room to spare.
_MODEL_BYTES = 20 << 30


def main(arguments: list[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    found: Card | None = None
    if not args.dry:
        try:
            found = card()
        except NoCard as error:
            print(f"make gpu: no GPU: {error}; rehearse with: make gpu DRY=1", file=sys.stderr)
            return MISSING
    out = args.out.resolve()
    scratch = (args.scratch or _scratch(args.dry, out)).resolve()
    where = Where(
        sys.executable,
        out / "stages",
        scratch,
        args.wheels and args.wheels.resolve(),
        args.modules and args.modules.resolve(),
        found.architecture if found else None,
    )
    sizes = DRY if args.dry else REAL
    table = stages(sizes, where)
    sources = sources_digest()
    about = {"dry": args.dry, "commit": _commit(), "sources": sources}
    summary = Summary(out, where.results, table, found, about)
    inputs = f"{sources} {found} {sys.version}"
    try:
        where.results.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = f"{error.filename} can't be made: {error.strerror}"
        print(f"make gpu: {told}; name another with GPU_OUT or --scratch", file=sys.stderr)
        return BAD_INPUT
    os.chdir(ROOT)
    runner = Runner(
        table,
        where.results,
        inputs,
        args.budget * sizes.patience,
        _environment(os.environ, where),
        summary.write,
    )
    code = runner.run()
    if code == PASSED:
        where.clear()
    else:
        print(f"make gpu: {scratch} has what a second call will want", file=sys.stderr)
    summary.write(runner.outcomes())
    print((out / "gpu.md").read_text(), end="")
    print(f"make gpu: {out / 'gpu.json'}, gpu.md and gpu.log", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="rehearse it on a CPU, tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the results")
    parser.add_argument("--scratch", type=Path, help="folder of the model; best in memory")
    parser.add_argument("--wheels", type=Path, help="folder of carried *.whl")
    parser.add_argument("--modules", type=Path, help="folder of carried _native*.so and _cuda*.so")
    parser.add_argument("--budget", type=float, default=_BUDGET_S, metavar="SECONDS")
    return parser


def _scratch(dry: bool, out: Path) -> Path:
    """Memory where it has room for the model: reading 16 GB from a disk takes a minute."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _MODEL_BYTES
    return _MEMORY / f"lmcache-gpu-{os.getuid()}" if roomy and not dry else out / "scratch"


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def _environment(given: Mapping[str, str], where: Where) -> dict[str, str]:
    """No network, no caches elsewhere, and carried packages before the sources."""
    folders = (str(Path(where.python).parent), given.get("PATH", os.defpath))
    return {
        **given,
        "PATH": tool_path(os.pathsep.join(folders)),
        "PYTHONPATH": os.pathsep.join((str(where.site), str(ROOT))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(where.cache),
        # Tests that find no GPU fail: they would be skipped, and pass for nothing.
        "LMCACHE_REQUIRE": "gpu",
    }


if __name__ == "__main__":
    sys.exit(main())
