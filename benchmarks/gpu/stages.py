"""The stages of `make gpu`, in order of worth; and the sizes of the real thing and its rehearsal."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.stage import Stage

# A rehearsal has kernels of a GPU that a CPU plays: these tests move the fewest bytes.
_FEW_TESTS = ("-k", "512")
_SANITIZER = "/usr/local/cuda/bin"


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
    transfer: tuple[str, ...]
    """Arguments of benchmarks/transfer.py."""


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
    transfer=(),
)
DRY = Sizes(
    dry=True,
    device="cpu",
    model="tiny",
    context_tokens=1000,
    chunk_tokens=64,
    passage_tokens=150,
    tier="128MiB",
    repeats=3,
    transfer=("--shapes=tiny", "--pages=8,64", "--tokens=512", "--ctas=8", "--peak-mib=1"),
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


def stages(sizes: Sizes, where: Where) -> list[Stage]:
    """What can hang a GPU comes last."""
    python, results = (where.python,), where.results
    cuda = ("--device", sizes.device)
    emulated = ("-m", "benchmarks.gpu.emulated") if sizes.dry else ()
    less = ("--set", "lmcache_cli.probe.transfer.MOST_BYTES=131072") if sizes.dry else ()
    module = emulated or ("-m",)
    tests = (*python, *module, "pytest", "-p", "no:cacheprovider", "-rs", "-x")
    tests += (*(_FEW_TESTS if sizes.dry else ()), "tests/cache_core/test_cuda.py")
    lmcache, script = (*python, "-m", "lmcache_cli.main"), (*python, *emulated)
    ready = ("wheels", "modules")

    def bench(name: str, *arguments: str) -> tuple[str, ...]:
        return (
            *lmcache, "bench", *arguments, "--engine", "transformers", *cuda, "--quiet",
            "--model", str(where.model), "--chunk-tokens", str(sizes.chunk_tokens),
            "--cpu-size", sizes.tier, "--output-tokens", "4",
            "--out", str(results / f"{name}-runs"), "--json", str(results / f"{name}.json"),
        )  # fmt: skip

    carried = ("--carried", str(where.wheels)) if where.wheels else ()
    brought = ("--carried", str(where.modules)) if where.modules else ()
    target = ("--architecture", where.architecture) if where.architecture else ()
    return [
        Stage(
            "wheels",
            (*python, "-m", "benchmarks.gpu.wheels", str(where.site), *carried),
            limit_s=30,
            yields=(where.site / "complete",),
            serves=True,
        ),
        Stage(
            "model",
            (
                *python, "benchmarks/models/random_llama.py", str(where.model),
                "--size", sizes.model, *cuda,
            ),
            limit_s=120,
            needs=("wheels",),
            yields=(where.model / "config.json", where.model / "tokenizer.json"),
            serves=True,
            beside=True,
        ),
        Stage(
            "modules",
            (
                *python, "-m", "benchmarks.gpu.modules", str(where.scratch / "build"),
                *brought, *target, *(() if sizes.dry else ("--cuda",)),
            ),
            limit_s=150,
            needs=("wheels",),
            serves=True,
        ),
        Stage(
            "facts",
            (*python, "-m", "benchmarks.gpu.card", str(results / "facts.json")),
            limit_s=30,
            after=ready,
            yields=(results / "facts.json",),
        ),
        Stage(
            "cuda_tests",
            (*tests, "--junitxml", str(results / "cuda_tests.xml")),
            limit_s=60,
            needs=ready,
            yields=(results / "cuda_tests.xml",),
            exit_missing=None,
            remark="on emulated GPUs" if sizes.dry else "",
        ),
        Stage(
            "probe",
            (
                *script, *less, *(lmcache[2:] if sizes.dry else lmcache[1:]), "probe",
                "--transfer", "--device", "cuda", "--repeat", str(sizes.repeats),
                "--out", str(results), "--json", str(results / "probe.json"),
            ),
            limit_s=40,
            needs=ready,
            after=("model",),
            yields=(results / "probe.json", results / "transfer.json"),
            remark="on emulated GPUs" if sizes.dry else "",
        ),
        Stage(
            "long",
            (
                *bench("long", "long-context"), "--reuse", "off,prefix",
                "--context-tokens", str(sizes.context_tokens), "--documents", "2",
                "--questions", "3", "--repeat", "2", "--device-size", f"0,{sizes.tier}",
            ),
            limit_s=130,
            needs=(*ready, "model"),
            yields=(results / "long.json",),
            least_s=30,
        ),
        Stage(
            "rag",
            (
                *bench("rag", "rag"), "--reuse", "off,prefix,blend", "--unverified", "--warm",
                "--passages", "4", "--passage-tokens", str(sizes.passage_tokens),
                "--corpus-passages", "8", "--requests", "6",
            ),
            limit_s=90,
            needs=(*ready, "model"),
            yields=(results / "rag.json",),
            least_s=30,
        ),
        Stage(
            "memcheck",
            # A rehearsal runs the tests as they are, without the tool.
            tests
            if sizes.dry
            else (
                "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *tests
            ),
            limit_s=90,
            needs=ready,
            tool=None if sizes.dry else "compute-sanitizer",
            least_s=20,
            exit_missing=None,
            remark="rehearsed without the tool, on emulated GPUs" if sizes.dry else "",
        ),
        Stage(
            "transfer",
            (
                *script, "benchmarks/transfer.py", "--gpu", "--limit", "75",
                "--repeats", str(sizes.repeats), *sizes.transfer,
                "--json", str(results / "transfer_rows.json"),
            ),
            limit_s=100,
            needs=ready,
            after=("model",),
            yields=(results / "transfer_rows.json",),
            least_s=20,
            remark="on emulated GPUs" if sizes.dry else "",
        ),
    ]  # fmt: skip


def tool_path(path: str) -> str:
    """``PATH`` with the folder that toolkits put compute-sanitizer and nvcc in."""
    return path if shutil.which("compute-sanitizer", path=path) else f"{path}:{_SANITIZER}"
