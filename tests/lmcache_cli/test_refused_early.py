"""What can't end well is refused before anything long begins: one line, exit code 2."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from lmcache_cli.engines.shape import check_model, model_shape
from lmcache_cli.errors import UserError
from tests.lmcache_cli.command_line import lmcache

# No such model: where it is named in the answer, it was looked for first.
REAL = ("bench", "rag", "--model", "no/such-model")
SIMULATED = ("bench", "rag", "--engine", "simulated", "--quiet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's configuration, which is all that is looked at before it is loaded."""
    shape = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = shape | {"hidden_size": 576, "max_position_embeddings": 8192}
    config |= {"vocab_size": 49152, "intermediate_size": 1536}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("long-context", "--context-tokens", "1000000"),
            "1000080 tokens, but the model's context",
        ),
        (("random", "--context-tokens", "8190"), "8206 tokens, but the model's context is 8192"),
        (("rag", "--passages", "17"), "prompts of rag and their answers have 8368 tokens"),
        (("rag", "--cpu-size", "1MiB"), "holds no chunk of 64 tokens (2949120 bytes)"),
        (("rag", "--dtype", "bfloat16", "--cpu-size", "1MiB"), "(1474560 bytes)"),
    ],
)
def test_what_a_configuration_tells(
    words: tuple[str, ...], says: str, folder: Path, tmp_path: Path
) -> None:
    with patch("lmcache_cli.bench.report.start_engine", side_effect=AssertionError("loaded")):
        done = lmcache("bench", *words, "--model", folder, "--quiet", cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "gemma2", "sliding_window": 512},
        {"model_type": "jamba", "attn_layer_period": 8, "attn_layer_offset": 4,
         "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2},
        {"kv_lora_rank": 512},
        {"num_attention_heads": 0},
    ],
    ids=["window", "state", "latent", "nothing"],
)  # fmt: skip
def test_layers_that_keep_something_else_are_not_sized_early(
    more: dict[str, object], folder: Path
) -> None:
    """Their slots are of groups: no chunk of all layers need fit a tier."""
    path = folder / "config.json"
    assert model_shape(str(folder), "cpu", "auto").layout is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    assert model_shape(str(folder), "cpu", "auto").layout is None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/no/such/model", "/no/such/model does not exist; give a folder with config.json"),
        ("./nowhere", "./nowhere does not exist"),
        (".", ". has no config.json"),
        ("two words", "neither a folder nor a Hugging Face id"),
        ("no/such-model", "no hub answers to fetch it from"),
    ],
)
def test_a_model_is_looked_for_before_anything_is_imported(
    name: str, says: str, tmp_path: Path
) -> None:
    with patch("lmcache_cli.bench.report.start_engine", side_effect=AssertionError("loaded")):
        done = lmcache("bench", "rag", "--model", name, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and says in done.stderr, done.stderr


def test_a_hub_is_asked_once_and_not_for_what_is_here(tmp_path: Path) -> None:
    with socket.socket() as taken, patch.dict(os.environ, {"HF_HOME": str(tmp_path)}):
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with patch.dict(os.environ, {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}):
            for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HF_HUB_CACHE"):
                os.environ.pop(name, None)
            with pytest.raises(UserError, match="no hub answers"):
                check_model("some/model")
            taken.listen()
            check_model("some/model")
        with patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
            os.environ.pop("HF_HUB_CACHE", None)
            kept = tmp_path / "hub" / "models--some--model" / "snapshots" / "1"
            kept.mkdir(parents=True)
            (kept / "config.json").write_text("{}")
            check_model("some/model")


def test_the_simulated_engine_takes_models_of_the_catalogue(tmp_path: Path) -> None:
    words = (*SIMULATED, "--requests", "3", "--json", "-", "--cpu-size", "8GiB")
    own = json.loads(lmcache(*words, cwd=tmp_path).stdout)["cells"]
    named = ("--model", "llama-3.1-8b", "--hardware", "h100")
    done = lmcache(*words, *named, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    off, prefix = json.loads(done.stdout)["cells"]
    assert off["model"] == "llama-3.1-8b on h100"
    assert off["ttft_ms"]["p50"] < own[0]["ttft_ms"]["p50"] / 10
    assert prefix["hit_tokens"] == own[1]["hit_tokens"]
    # 131,072 bytes of KV a token, as the catalogue has it; ours has 46,080.
    assert prefix["bytes_stored"] * 46080 == own[1]["bytes_stored"] * 131072
    latent = ("--model", "deepseek-v3", "--hardware", "h200")
    assert lmcache(*words, *latent, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*REAL, "--disk-path", "kv"), "--disk-path needs a disk tier; add --disk-size"),
        ((*REAL, "--cache-name", "q", "--disk-path", "kv"), "add --disk-size"),
        ((*REAL, "--admission", "second-touch"), "--admission is the disk tier's"),
        ((*REAL, "--disk-size", "9000TiB"), "--disk-size: 9000 TiB do not fit"),
        ((*REAL, "--cpu-size", "9000TiB"), "--cpu-size: what is kept in memory needs 9,4"),
        ((*REAL, "--json", "nowhere/a.json"), "--json: nowhere/a.json can't be written"),
        ((*REAL, "--csv", "."), "--csv: . can't be written: Is a directory"),
        ((*REAL, "--json", "-", "--csv", "-"), "would both take stdout"),
        (("report", "x.parquet", "--out", "nowhere/x.html"), "--out: nowhere/x.html can't be"),
        (("check", "--bench", "rag --polcy lru"), "No such option: --polcy"),
        (("check", "--bench", "rag --policy lruu"), "--policy"),
        (("check", "--bench", "rag --policy lru"), "both sides are the same"),
        (("bench", "trace"), "lmcache bench trace --trace FILE"),
        ((*REAL, "--sessions", "9"), "--sessions: workload rag does not use it, chat, agent would"),
        ((*REAL, "--context-tokens", "9"), "use --passages, --passage-tokens, "),
        ((*REAL, "--blend-ratio", "0.3"), "--blend-ratio: --reuse off, prefix does not use it"),
        ((*REAL, "--polcy", "lru"), "No such option: --polcy"),
        ((*REAL, "--passages", "some"), "'--passages'"),
        ((*REAL, "--chunk-tokens", "100000"), "is longer than any prompt of rag (2112)"),
        ((*REAL, "--cpu-size", "1GiB,"), "--cpu-size: '1GiB,' has a comma too many"),
        ((*REAL, "--reuse", ","), "--reuse: no value given"),
        ((*REAL, "--requests", "500000000"), "--requests: the tokens of 500,000,000 prompts"),
        ((*REAL, "--hardware", "h100"), "--hardware: --engine transformers does not use it"),
        ((*REAL, "--probe", "x.json"), "--probe: --engine transformers does not use it"),
        ((*REAL, "--start-timeout", "9"), "vllm would"),
        ((*SIMULATED, "--dtype", "bfloat16"), "--dtype: --engine simulated does not use it"),
        ((*SIMULATED, "--device", "cuda"), "--device: --engine simulated does not use it"),
        ((*SIMULATED, "--model", "llama-3.1-8b"), "--model and --hardware go together"),
        ((*SIMULATED, "--hardware", "h100"), "--model and --hardware go together"),
        ((*SIMULATED, "--model", "x", "--hardware", "h100"), "'x' is not in the catalogue"),
        ((*SIMULATED, "--model", "llama-3.1-8b", "--hardware", "z9"), "'z9' is not known"),
        (("bench", "chat", "--context-tokens", "9"), "workload chat does not use it"),
        (("tune", "rag", "--rounds", "x"), "see lmcache tune --help"),
        (("verify", "hits", "--model", "/no/such/model", "--quiet"), "/no/such/model does not"),
        (("trace", "info", "x.jsonl", "--tokenizer", "/no/such"), "--tokenizer: /no/such does not"),
        (("trace", "info", "x.jsonl", "--tokenizer", "a b"), "is neither a folder nor a Hugging"),
        (("probe", "--model", "/no/such/model", "--quiet"), "/no/such/model does not"),
        (("probe", "--device", "cuda"), "--device: it is the engine's; give --model"),
        ((*REAL, "--device", "tpu"), "--device: 'tpu' is not a device; use cpu, cuda"),
        ((*REAL, "--device", "cuda:x"), "--device: 'cuda:x' is not a device"),
        ((*REAL, "--passage-tokens", "0"), "--passage-tokens: 0 is too small"),
        ((*REAL, "--rate", "nan"), "--rate: nan must be a finite number above 0"),
    ],
)
def test_before_a_model_is_loaded(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = lmcache(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr and "no/such-model" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stdout == ""


@pytest.mark.parametrize(
    "words", [("bench", "rag"), ("probe", "--model", "embedded"), ("verify", "hits")]
)
def test_a_gpu_is_looked_for_before_torch_is_imported(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_driver(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("lmcache_cli.engines.shape.ctypes.CDLL", no_driver)
    monkeypatch.setitem(sys.modules, "torch", None)  # to import it fails
    there = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) != "/dev/kfd" and there(path))
    done = lmcache(*words, "--device", "cuda:1", "--quiet", cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "--device cuda:1 needs a GPU" in done.stderr


def test_a_mooncake_that_does_not_listen(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = taken.getsockname()[1]
        done = lmcache(*REAL, "--remote", f"mooncake://127.0.0.1:{port}", cwd=tmp_path)
    if "not installed" not in done.stderr:
        assert f"127.0.0.1:{port} does not answer" in done.stderr
    assert done.returncode in (2, 4) and len(done.stderr.strip().splitlines()) == 1


def test_a_check_is_no_run_to_resume(tmp_path: Path) -> None:
    short = ("--documents", "1", "--questions", "2", "--context-tokens", "200")
    bench = " ".join(("long-context", "--engine", "simulated", *short))
    done = lmcache(
        "check", "--bench", bench, "--candidate", "--policy gdsf", "--quiet", cwd=tmp_path
    )
    assert done.returncode in (0, 1, 3), done.stderr
    (kept,) = (tmp_path / "runs").glob("check-*.parquet")
    done = lmcache("bench", "--resume", str(kept), cwd=tmp_path)
    assert done.returncode == 2 and "no run of `lmcache bench`" in done.stderr
