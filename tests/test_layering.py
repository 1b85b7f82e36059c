"""The shape of the code: who imports whom, what a command loads, names, and lengths."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import LONGEST_FIRST, NIGHTLY, OF_ONE_SERVER, SLOW

ROOT = Path(__file__).parents[1]
PACKAGES = ("cache_core", "lmcache_cli", "reports", "workloads")
CODE = (*PACKAGES, "benchmarks", "csrc", "tests")
# Down only: the command line may import everything, the rest only itself.
MAY_IMPORT = {name: {name} for name in PACKAGES} | {"lmcache_cli": set(PACKAGES)}
MOST_LINES = 400
MOST_FILES = 16  # of code, in one folder
MOST_PYTHON_FILES = 280  # in the product
# Every module's, and what `lmcache --help` asks of every command's.
OF_EACH_MODULE = {"logger", "SHORT", "EXAMPLES"}
# Names that say nothing about what a thing is.
EMPTY_NAME = re.compile(r"\w*(Manager|Factory)|Base[A-Z]\w*|\w*_?(utils?|helpers?|misc)")
SLOW_TO_IMPORT = ("torch", "transformers", "pyarrow", "pandas", "aiohttp", "httpx", "scipy")


def sources(*folders: str, kinds: tuple[str, ...] = (".py",)) -> list[Path]:
    found = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in kinds]
    return sorted(p for p in found if "__pycache__" not in p.parts)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Top-level names of all imports, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    files = sources(package)
    assert files
    for file in files:
        ours = set(imported(parsed(file), package)) & set(PACKAGES)
        assert ours <= MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {ours}"


def modules() -> dict[str, ast.Module]:
    """The product's, by dotted name."""
    files = {f: ".".join(f.relative_to(ROOT).with_suffix("").parts) for f in sources(*PACKAGES)}
    return {n.removesuffix(".__init__"): parsed(f) for f, n in files.items()}


def circles(trees: dict[str, ast.Module]) -> list[list[str]]:
    """Modules that import one another, by whatever way. Imports for types and those inside
    functions count."""
    arrows: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                arrows[name] |= {alias.name for alias in node.names} & trees.keys()
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names} & trees.keys()
                arrows[name] |= inner or {node.module} & trees.keys()
    try:
        tuple(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        return [error.args[1]]
    return []


def test_no_circle_of_imports() -> None:
    assert not circles(modules())


def test_what_a_circle_is() -> None:
    one = ast.parse("if TYPE_CHECKING:\n    from pkg.two import x")
    two = ast.parse("def f():\n    from pkg import one")
    assert circles({"pkg.one": one, "pkg.two": two})
    assert not circles({"pkg.one": one, "pkg.two": ast.parse("import pkg.three")})


def public(tree: ast.Module) -> Iterator[str]:
    """Names that a module defines: classes, functions, constants and aliases."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.AsyncFunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_a_name_is_defined_once() -> None:
    where: dict[str, list[str]] = {}
    for module, tree in modules().items():
        for name in public(tree):
            if not name.startswith("_") and name not in OF_EACH_MODULE:
                where.setdefault(name, []).append(module)
    assert not {name: found for name, found in where.items() if len(found) > 1}


def test_folders_are_no_crowds() -> None:
    kinds = (".py", ".pyi", ".cpp", ".h", ".cu", ".inc")
    folders = Counter(file.parent for file in sources(*PACKAGES, "csrc", kinds=kinds))
    assert not {str(f.relative_to(ROOT)): n for f, n in folders.items() if n > MOST_FILES}
    assert len(sources(*PACKAGES)) <= MOST_PYTHON_FILES


def test_an_import_inside_a_function_counts() -> None:
    tree = ast.parse("def f():\n    from lmcache_cli.errors import UserError\n    from . import x")
    assert set(imported(tree, "reports")) == {"lmcache_cli", "reports"}


def test_only_the_binding_files_know_python() -> None:
    files = sources("csrc", kinds=(".cpp", ".h", ".hpp", ".cu", ".cuh"))
    assert files
    python = re.compile(r'#\s*include\s*[<"](Python\.h|nanobind/|pybind11/|bind/)')
    knowing = [file.name for file in files if python.search(file.read_text())]
    # Their folder says so.
    assert knowing == [file.name for file in files if file.parent.name == "bind"]
    assert "bind.cpp" in knowing


def test_cache_core_reads_no_environment() -> None:
    for file in sources("cache_core", "reports", "workloads"):
        for node in ast.walk(parsed(file)):
            name = node.attr if isinstance(node, ast.Attribute) else ""
            assert name not in ("environ", "getenv"), f"{file.relative_to(ROOT)} reads it"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["bench", "--help"],
        ["doctor", "--help"],
        ["trace", "record", "--help"],
        ["trace", "info", "--help"],
        ["trace", "synth", "--help"],
        ["tune", "--help"],
        ["probe", "--help"],
        ["check", "--help"],
        ["compare", "--help"],
        ["report", "--help"],
    ],
)
def test_help_loads_nothing_slow(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from lmcache_cli.main import run\n"
        f"sys.argv = ['lmcache', *{arguments}]\n"
        "try:\n    run()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('LOADED', [name for name in {SLOW_TO_IMPORT} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: lmcache" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_files_are_short() -> None:
    kinds = (".py", ".pyi", ".cpp", ".h", ".hpp", ".cu", ".cuh")
    lengths = {file: len(file.read_text().splitlines()) for file in sources(*CODE, kinds=kinds)}
    long = {str(f.relative_to(ROOT)): n for f, n in lengths.items() if n > MOST_LINES}
    assert not long


def test_names_say_what_a_thing_is() -> None:
    for file in sources(*CODE):
        names = {file.stem, *(part for part in file.relative_to(ROOT).parts[:-1])}
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
        empty = {name for name in names if EMPTY_NAME.fullmatch(name)}
        assert not empty, f"{file.relative_to(ROOT)}: {empty}"


@pytest.mark.parametrize(
    ("name", "empty"),
    [
        ("CacheManager", True),
        ("TierFactory", True),
        ("BaseTier", True),
        ("utils", True),
        ("path_utils", True),
        ("Baseline", False),
        ("Tier", False),
    ],
)
def test_what_an_empty_name_is(name: str, empty: bool) -> None:
    assert bool(EMPTY_NAME.fullmatch(name)) is empty


def test_marked_tests_exist() -> None:
    """A name that is misspelt, or stayed behind, would leave a test out of nothing."""
    for name in (*LONGEST_FIRST, *OF_ONE_SERVER, *SLOW, *NIGHTLY):
        file, _, test = name.partition("::")
        text = (ROOT / file).read_text()
        assert not test or f"def {test.partition('[')[0]}(" in text, name
