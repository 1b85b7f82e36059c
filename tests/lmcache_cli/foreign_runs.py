"""Result files as other tools write them, cut down to what they have in common between versions.
The names are those of the tools' own source: see docs/check.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOOLS = ("vllm", "vllm-detailed", "sglang", "aiperf", "guidellm", "lmcache-engine", "llmperf")


def write(tool: str, path: Path, ttft_ms: float, n: int = 200, model: str = "m") -> Path:
    """A run with that median TTFT."""
    made = {
        "vllm": _vllm,
        "vllm-detailed": _vllm_detailed,
        "sglang": _sglang,
        "aiperf": _aiperf,
        "guidellm": _guidellm,
        "lmcache-engine": _lmcache_engine,
        "llmperf": _llmperf,
        "inference-perf": _inference_perf,
    }[tool](ttft_ms, n, model)
    path.write_text(json.dumps(made) + "\n")
    return path


def _serving(ttft_ms: float, n: int) -> dict[str, Any]:
    return {
        "duration": 20.0,
        "completed": n,
        "total_input_tokens": 1000 * n,
        "total_output_tokens": 16 * n,
        "request_throughput": n / 20.0,
        "output_throughput": 16 * n / 20.0,
        "mean_ttft_ms": ttft_ms * 1.1,
        "median_ttft_ms": ttft_ms,
        "std_ttft_ms": 3.0,
        "p99_ttft_ms": ttft_ms * 2,
        "mean_itl_ms": 8.0,
        "median_itl_ms": 7.5,
    }


def _vllm(ttft_ms: float, n: int, model: str) -> dict[str, Any]:
    about = {
        "date": "20260101-120000",
        "backend": "openai",
        "model_id": model,
        "num_prompts": n,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": 8,
    }
    return about | _serving(ttft_ms, n) | {"failed": 0, "median_e2el_ms": 150.0}


def _vllm_detailed(ttft_ms: float, n: int, model: str) -> dict[str, Any]:
    """With --save-detailed; one request more has failed."""
    raw = {
        "failed": 1,
        "ttfts": [ttft_ms / 1e3] * n + [0.0],
        "itls": [[0.008, 0.007]] * n + [[]],
        "errors": [""] * n + ["timeout"],
    }
    return _vllm(ttft_ms, n, model) | raw


def _sglang(ttft_ms: float, n: int, model: str) -> dict[str, Any]:
    about = {
        "tag": None,
        "backend": "sglang",
        "dataset_name": "random",
        "request_rate": 4.0,
        "max_concurrency": None,
        "random_input_len": 1024,
        "server_info": {"model_path": model},
        "median_e2e_latency_ms": 150.0,
        "total_output_tokens_retokenized": 16 * n,
        "cache_report": {"total_prompt_tokens": 1000 * n, "total_cached_tokens": 250 * n},
    }
    return _serving(ttft_ms, n) | about


def _aiperf(ttft_ms: float, n: int, model: str) -> dict[str, Any]:
    return {
        "schema_version": "1.4",
        "request_throughput": {"unit": "requests/sec", "avg": n / 20.0},
        "request_latency": {"unit": "ms", "avg": 160.0, "p50": 150.0, "p99": 300.0},
        "request_count": {"unit": "requests", "avg": float(n)},
        "time_to_first_token": {"unit": "ms", "avg": ttft_ms * 1.1, "p1": 1.0, "p50": ttft_ms},
        "inter_token_latency": {"unit": "ms", "avg": 8.0, "p50": 7.5},
        "input_config": {"endpoint": {"model_names": [model]}, "loadgen": {"concurrency": 8}},
        "start_time": "2026-01-01T12:00:00",
    }


def _guidellm(ttft_ms: float, n: int, model: str) -> dict[str, Any]:
    def summary(p50: float) -> dict[str, Any]:
        percentiles = {"p001": 0.1, "p01": 0.2, "p50": p50, "p90": p50 * 1.5, "p99": p50 * 2}
        good = {"mean": p50 * 1.1, "median": p50, "percentiles": percentiles, "count": n}
        return {"successful": good, "errored": None, "incomplete": None, "total": good}

    benchmark = {
        "type_": "generative_benchmark",
        "config": {"strategy": {"type_": "concurrent", "streams": 8}},
        "metrics": {
            "request_totals": {"successful": n, "errored": 0, "incomplete": 0, "total": n},
            "requests_per_second": summary(10.0),
            "request_latency": summary(0.15),
            "time_to_first_token_ms": summary(ttft_ms),
            "inter_token_latency_ms": summary(7.5),
        },
    }
    return {
        "metadata": {},
        "config": {"spec": {"backend": {"model": model}}},
        "benchmarks": [benchmark],
    }


def _lmcache_engine(ttft_ms: float, n: int, model: str) -> dict[str, Any]:
    results = {
        "total_requests": n,
        "successful_requests": n,
        "failed_requests": 0,
        "elapsed_time": 20.0,
        "mean_ttft_ms": ttft_ms * 1.1,
        "p50_ttft_ms": ttft_ms,
        "p50_request_latency_ms": 150.0,
        "input_throughput": 50.0 * n,
        "output_throughput": 0.8 * n,
        "total_input_tokens": 1000 * n,
        "total_output_tokens": 16 * n,
    }
    return {"config": {"model": model, "workload": "long-doc-qa", "seed": 1}, "results": results}


def _llmperf(ttft_ms: float, n: int, model: str) -> dict[str, Any]:
    about: dict[str, Any] = {"version": "2023-08-31", "name": "m_550_150_summary", "model": model}
    about |= {"mean_input_tokens": 550, "num_concurrent_requests": 8, "timestamp": 1718209276}
    times = {"quantiles_p50": ttft_ms / 1e3, "quantiles_p90": ttft_ms / 5e2}
    times |= {"mean": ttft_ms * 1.1e-3, "min": 0.01, "stddev": 0.001}
    return (
        about
        | {f"results_ttft_s_{name}": value for name, value in times.items()}
        | {f"results_inter_token_latency_s_{name}": 0.0075 for name in times}
        | {f"results_end_to_end_latency_s_{name}": 0.15 for name in times}
        | {
            "results_number_input_tokens_quantiles_p50": 550.0,
            "results_number_input_tokens_min": "550",
            "results_num_requests_started": n,
            "results_number_errors": 0,
            "results_error_code_frequency": "{}",
            "results_mean_output_throughput_token_per_s": 124.3,
            "results_num_completed_requests": n,
            "results_num_completed_requests_per_min": 3.0 * n,
        }
    )


def _inference_perf(ttft_ms: float, n: int, model: str) -> dict[str, Any]:
    """A stage; it names no model."""

    def times(p50: float) -> dict[str, float]:
        return {"mean": p50 * 1.1, "min": 0.0, "p0.1": 0.1, "median": p50, "p90": p50 * 2, "max": 9}

    return {
        "load_summary": {"count": n, "requested_rate": 8.0, "schedule_delay": times(0.001)},
        "successes": {
            "count": n,
            "latency": {
                "request_latency": times(0.15),
                "time_per_output_token": None,
                "time_to_first_token": times(ttft_ms / 1e3),
                "inter_token_latency": times(0.0075),
            },
            "throughput": {"requests_per_sec": 8.0, "output_tokens_per_sec": 100.0},
            "prompt_len": times(500.0),
        },
        "failures": {"count": 0, "request_latency": None, "prompt_len": None},
    }
