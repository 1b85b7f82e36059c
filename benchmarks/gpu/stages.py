"""The stages of `make gpu` in order of worth, and the sizes of the real thing and its rehearsal."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.stage import Stage

# A rehearsal has kernels of a GPU that a CPU plays: these tests move the fewest bytes.
_FEW_TESTS = ("-k", "512")
_LESS_PROBED = tuple(
    f"lmcache_cli.probe.transfer.{setting}"
    for setting in ("MOST_BYTES=1048576", "RUN_BYTES=2048,8192,65536", "RUNS=4,16")
)
_TOOLKIT = "/usr/local/cuda/bin"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured. ``dry``: on a CPU, with emulated GPUs where a stage needs the driver."""

    dry: bool
    device: str
    model: str
    context_tokens: int
    chunk_tokens: int
    passage_tokens: int
    tier: str
    repeats: int
    transfer: str
    """Arguments of benchmarks/transfer.py."""
    patience: int = 1
    """Limits times this: nobody waits for the GPU of a rehearsal, and its machine may be busy."""


# 2 documents of 25,000 tokens are 6.6 GB of KV at the 131,072 bytes a token of an 8B model.
REAL = Sizes(
    dry=False,
    device="cuda",
    model="8b",
    context_tokens=25_000,
    chunk_tokens=256,
    passage_tokens=2000,
    tier="8GiB",
    repeats=5,
    transfer="",
)
DRY = Sizes(
    dry=True,
    device="cpu",
    model="tiny",
    context_tokens=700,
    chunk_tokens=64,
    passage_tokens=120,
    tier="128MiB",
    repeats=3,
    transfer="--shapes tiny --pages 8,64 --tokens 512 --ctas 8 --peak-mib 1",
    patience=5,
)


@dataclass(frozen=True, slots=True)
class Where:
    """``results``: what stages write; ``scratch``: the model, packages and objects, which are large
    and can be made again; ``wheels`` and ``modules``: what was carried, or None;
    ``architecture``: as CMake names the card's, or None."""

    python: str
    results: Path
    scratch: Path
    wheels: Path | None = None
    modules: Path | None = None
    architecture: str | None = None

    @property
    def site(self) -> Path:
        """Where carried packages are installed."""
        return self.scratch / "site"

    @property
    def model(self) -> Path:
        return self.scratch / "model"

    @property
    def build(self) -> Path:
        """CMake's folder."""
        return self.scratch / "build"

    @property
    def cache(self) -> Path:
        """Of the packages that keep one."""
        return self.scratch / "cache"

    def clear(self) -> None:
        """Removes what stages keep for one another: 16 GB, most often in memory. What else is in
        ``scratch`` stays."""
        for folder in (self.site, self.model, self.build, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.scratch.rmdir()


class _Table:
    """The stages of some sizes in some place."""

    def __init__(self, sizes: Sizes, where: Where) -> None:
        self._sizes, self._where = sizes, where
        self._ready = ("wheels", "modules")
        self._emulated = "on emulated GPUs" if sizes.dry else ""
        self._tests = self._on_gpu(
            "pytest",
            *["tests/cache_core/test_cuda.py", "-x", "-rs", "-p", "no:cacheprovider"],
            *(_FEW_TESTS if sizes.dry else ()),
        )

    def _python(self, text: str, *more: str) -> tuple[str, ...]:
        """``text`` without paths, which may have blanks."""
        return (self._where.python, *text.split(), *more)

    def _on_gpu(self, name: str, *more: str, less: tuple[str, ...] = ()) -> tuple[str, ...]:
        """A module or a script; in a rehearsal on emulated GPUs, with ``less`` of it."""
        if self._sizes.dry:
            settings = (word for setting in less for word in ("--set", setting))
            return self._python("-m benchmarks.gpu.emulated", *settings, name, *more)
        return self._python("" if name.endswith(".py") else "-m", name, *more)

    def _result(self, name: str) -> Path:
        return self._where.results / name

    def wheels(self) -> Stage:
        where, command = self._where, self._python("-m benchmarks.gpu.wheels")
        carried = ("--carried", str(where.wheels)) if where.wheels else ()
        return Stage(
            "wheels",
            (*command, str(where.site), *carried),
            limit_s=30,
            yields=(where.site / "complete",),
            serves=True,
        )

    def model(self) -> Stage:
        where, sizes = self._where, self._sizes
        options = f"--size {sizes.model} --device {sizes.device}".split()
        return Stage(
            "model",
            self._python("benchmarks/models/random_llama.py", str(where.model), *options),
            limit_s=120,
            needs=("wheels",),
            yields=(where.model / "config.json", where.model / "tokenizer.json"),
            serves=True,
            beside=True,
        )

    def modules(self) -> Stage:
        where, command = self._where, self._python("-m benchmarks.gpu.modules")
        carried = ("--carried", str(where.modules)) if where.modules else ()
        target = ("--architecture", where.architecture) if where.architecture else ()
        cuda = () if self._sizes.dry else ("--gpu",)
        return Stage(
            "modules",
            (*command, str(where.build), *carried, *target, *cuda),
            limit_s=150,
            needs=("wheels",),
            serves=True,
        )

    def facts(self) -> Stage:
        file = self._result("facts.json")
        return Stage(
            "facts",
            self._python("-m benchmarks.gpu.card", str(file)),
            limit_s=30,
            after=self._ready,
            yields=(file,),
        )

    def cuda_tests(self) -> Stage:
        file = self._result("cuda_tests.xml")
        return Stage(
            "cuda_tests",
            (*self._tests, "--junitxml", str(file)),
            limit_s=60,
            needs=self._ready,
            yields=(file,),
            exit_missing=None,
            remark=self._emulated,
        )

    def probe(self) -> Stage:
        words = f"--transfer --device cuda --repeat {self._sizes.repeats}".split()
        files = ("--out", str(self._where.results), "--json", str(self._result("probe.json")))
        return Stage(
            "probe",
            self._on_gpu("lmcache_cli.main", "probe", *words, *files, less=_LESS_PROBED),
            limit_s=40,
            needs=self._ready,
            after=("model",),
            yields=(self._result("probe.json"), self._result("transfer.json")),
            remark=self._emulated,
        )

    def long(self) -> Stage:
        sizes = self._sizes
        return self._bench(
            "long",
            f"long-context --reuse off,prefix --context-tokens {sizes.context_tokens}"
            f" --documents 2 --questions 3 --repeat 2 --device-size 0,{sizes.tier}",
            limit_s=130,
        )

    def rag(self) -> Stage:
        return self._bench(
            "rag",
            "rag --reuse off,prefix,blend --unverified --warm --passages 4 --corpus-passages 8"
            f" --requests 6 --passage-tokens {self._sizes.passage_tokens}",
            limit_s=90,
        )

    def _bench(self, name: str, words: str, limit_s: float) -> Stage:
        sizes, runs, file = self._sizes, self._result(f"{name}-runs"), self._result(f"{name}.json")
        command = self._python(
            f"-m lmcache_cli.main bench {words} --engine transformers --device {sizes.device}"
            f" --chunk-tokens {sizes.chunk_tokens} --cpu-size {sizes.tier} --output-tokens 4"
            " --quiet"
        )
        paths = ("--model", self._where.model, "--out", runs, "--json", file)
        return Stage(
            name,
            (*command, *map(str, paths)),
            limit_s=limit_s,
            needs=(*self._ready, "model"),
            yields=(file, runs),
            least_s=30,
        )

    def memcheck(self) -> Stage:
        """A rehearsal runs the tests as they are."""
        dry = self._sizes.dry
        tool = None if dry else "compute-sanitizer"
        checked = (tool, "--tool", "memcheck", "--error-exitcode", "9") if tool else ()
        return Stage(
            "memcheck",
            (*checked, *self._tests),
            limit_s=90,
            needs=self._ready,
            after=("model",),
            tool=tool,
            least_s=20,
            exit_missing=None,
            remark=f"{self._emulated}, without compute-sanitizer" if dry else "",
        )

    def transfer(self) -> Stage:
        sizes, file = self._sizes, self._result("transfer_rows.json")
        words = f"--gpu --limit {{seconds}} --repeats {sizes.repeats} {sizes.transfer}".split()
        return Stage(
            "transfer",
            self._on_gpu("benchmarks/transfer.py", *words, "--json", str(file)),
            limit_s=100,
            needs=self._ready,
            after=("model",),
            yields=(file,),
            least_s=20,
            remark=self._emulated,
        )


def stages(sizes: Sizes, where: Where) -> list[Stage]:
    """In order of worth, but for the last: it can hang a GPU."""
    table = _Table(sizes, where)
    makers = (
        table.wheels, table.model, table.modules, table.facts, table.cuda_tests, table.probe,
        table.long, table.rag, table.memcheck, table.transfer,
    )  # fmt: skip
    made = [make() for make in makers]
    return [replace(stage, limit_s=stage.limit_s * sizes.patience) for stage in made]


def tool_path(path: str) -> str:
    """``PATH`` with the folder that toolkits put compute-sanitizer and nvcc in, at its end."""
    return f"{path}:{_TOOLKIT}"
