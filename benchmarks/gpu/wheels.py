"""Installs carried wheels beside a machine's Python, and says what it still lacks.

    python -m benchmarks.gpu.wheels FOLDER [--carried WHEELS]

Nothing is fetched. Exits with 4 where a requirement is missing, with what to carry.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from benchmarks.gpu.files import ROOT

# Reads the weights of the embedded model and of quantised ones; the stages make their own.
_NOT_HERE = {"gguf"}
_TESTS = ("pytest", "hypothesis")


def required() -> list[str]:
    """Distributions without which a stage would fail, as pyproject.toml names them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *project["optional-dependencies"]["transformers"]]
    found = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in listed]
    return [name for name in (*found, *_TESTS) if name not in _NOT_HERE]


def lacking(names: list[str], folder: Path) -> list[str]:
    """Those that are installed neither beside this Python nor in ``folder``."""
    path = [str(folder), *sys.path]
    return [name for name in names if not any(metadata.distributions(name=name, path=path))]


def install(carried: Path, folder: Path) -> None:
    """Raises ``SystemExit`` where there is no wheel, or pip refuses one."""
    wheels = sorted(map(str, carried.glob("*.whl")))
    if not wheels:
        raise SystemExit(f"{carried} has no wheels; fill it: pip download -d {carried} NAME")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(folder)]
    code = subprocess.run([*pip, *options, *wheels], check=False).returncode
    if code:
        raise SystemExit(code if code == 1 else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--carried", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.carried is not None:
        install(args.carried, args.folder)
    missing = lacking(required(), args.folder)
    if missing:
        names = " ".join(missing)
        print(
            f"{sys.executable} lacks {names}; where there is a network: pip download --no-deps"
            f" -d whl {names}, then here: make gpu GPU_WHEELS=whl"
        )
        raise SystemExit(4)
    (args.folder / "complete").touch()
    print(f"all there: {' '.join(required())}")


if __name__ == "__main__":
    main()
