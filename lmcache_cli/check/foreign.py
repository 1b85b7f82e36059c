"""Reads result files of other tools: vLLM, SGLang, aiperf, guidellm, LMCache, LLMPerf,
inference-perf. docs/check.md tells
how far each is verified."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from lmcache_cli.errors import UserError
from reports.verdict.round import Round

TOOLS = (
    "lmcache bench, vllm bench serve, SGLang bench_serving, aiperf, genai-perf, guidellm, LMCache's"
    " bench, LLMPerf, inference-perf"
)
_STATISTIC = re.compile(r"(mean|median|p\d{1,2}(?:\.\d+)?)_(\w+?)_ms")
_SERVING_TIMES = {
    "ttft": "ttft",
    "itl": "itl",
    "tpot": "tpot",
    "e2el": "e2e",
    "e2e_latency": "e2e",
    "request_latency": "e2e",
}
_AIPERF_TIMES = {
    "time_to_first_token": "ttft",
    "inter_token_latency": "tpot",  # its mean gap of each request
    "request_latency": "e2e",
}
_GUIDELLM_TIMES = {
    "time_to_first_token_ms": ("ttft", 1e-3),
    "inter_token_latency_ms": ("tpot", 1e-3),  # likewise
    "request_latency": ("e2e", 1.0),
}
_LLMPERF_TIMES = {"ttft": "ttft", "inter_token_latency": "tpot", "end_to_end_latency": "e2e"}
_LLMPERF = re.compile(r"results_(\w+?)_s_(?:quantiles_)?(mean|p\d+)")
_INFERENCE_PERF_TIMES = {
    "time_to_first_token": "ttft",
    "inter_token_latency": "itl",
    "time_per_output_token": "tpot",
    "request_latency": "e2e",
}
_UNIT_S = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


_TIME_LIMITS = ("max_seconds", "max_duration", "benchmark_duration", "duration")
"""Settings that end a run after a time, so that its number of requests is chance."""


class NoRunError(UserError):
    """A file that is of no tool that is known. ``why`` says so without the file's name."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}; these can be read: {TOOLS}")
        self.why = why


@dataclass(frozen=True, slots=True)
class ForeignRun:
    """A run of another tool: the rounds of a file by its cells, one for each load that the file
    has; ``parts`` is what it holds of each round. ``timed``: bound by time, so that the number of
    requests is chance. ``facts`` and ``when`` are those of
    :class:`lmcache_cli.check.stored_runs.ComparedRun`."""

    tool: str
    cells: dict[str, list[Round]]
    facts: dict[str, str] = field(default_factory=dict)
    when: str = ""
    timed: bool = False
    parts: Sequence[Mapping[str, Any]] = ()


def read_foreign(path: Path, document: Any) -> ForeignRun:
    """Reads a run from ``document``, the file's JSON or the list of its lines. Raises ``UserError``
    for a format that is not known, or a file of one that lacks what a run must have."""
    first = document[0] if isinstance(document, list) and document else document
    if not isinstance(first, Mapping):
        raise NoRunError(path, "no run")
    read = _reader(first)
    if read is None:
        raise NoRunError(path, "of no tool that is known")
    try:
        found = read(document if isinstance(document, list) else [document])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        raise UserError(
            f"{path}: looks like a known format, but {type(error).__name__}: {error}; these can be"
            f" read: {TOOLS}"
        ) from error
    rounds = list(chain(*found.cells.values()))
    if not any(one.n for one in rounds):
        failed = sum(one.failed for one in rounds)
        what = f"all {failed} requests failed" if failed else "no request was completed"
        raise UserError(f"{path}: {found.tool}: {what}: there is nothing to compare")
    return found


def _reader(first: Mapping[str, Any]) -> Callable[[Sequence[Any]], ForeignRun] | None:
    if isinstance(first.get("benchmarks"), list):
        return _guidellm
    if isinstance(first.get("results"), Mapping) and "successful_requests" in first["results"]:
        return _lmcache_engine
    failed = "input_config" in first and "error_request_count" in first
    if isinstance(first.get("request_latency"), Mapping) or failed:
        return _aiperf
    if "completed" in first and "request_throughput" in first:
        return _serving
    if "results_num_completed_requests" in first:
        return _llmperf
    if "load_summary" in first and isinstance(first.get("successes"), Mapping):
        return _inference_perf
    return None


def _by_load(
    rounds: Sequence[Round], settings: Sequence[Mapping[str, str]]
) -> tuple[dict[str, list[Round]], dict[str, str]]:
    """Returns the rounds by cell, which is named by the settings that are not the same throughout
    the file, and the others, which are facts of the run."""
    names = list(dict.fromkeys(chain(*settings)))
    differ = [name for name in names if len({each.get(name) for each in settings}) > 1]
    cells: dict[str, list[Round]] = {}
    for one, each in zip(rounds, settings, strict=True):
        label = ", ".join(["serving", *(f"{name} {each.get(name)}" for name in differ)])
        cells.setdefault(label, []).append(one)
    return cells, {name: settings[0][name] for name in names if name not in differ}


def _flat(values: object, name: str) -> dict[str, str]:
    """Returns the single settings of a nested one, as text by their paths (``phases.rate``)."""
    if isinstance(values, list) and len(values) == 1:
        return _flat(values[0], name)
    inner: Mapping[Any, Any] = {}
    if isinstance(values, Mapping):
        inner = values
    elif isinstance(values, list):
        inner = dict(enumerate(values))
    if inner:
        return {
            k: v for key, each in inner.items() for k, v in _flat(each, f"{name}.{key}").items()
        }
    return {} if values is None or inner is values else {name: str(values)}


def _by_time(settings: Mapping[str, str]) -> bool:
    return any(name.rpartition(".")[2] in _TIME_LIMITS for name in settings)


def _serving(lines: Sequence[Any]) -> ForeignRun:
    """Reads a file of vLLM (``--save-result``) or of SGLang (``--output-file``), which descends
    from it. SGLang adds a line per run, vLLM's sweeps sum them up in a list; each is a round."""
    first = lines[0]
    sglang = "server_info" in first or "total_output_tokens_retokenized" in first
    named = ("dataset_name", "num_prompts", "request_rate", "burstiness", "max_concurrency")
    lengths = ("sharegpt_output_len", "random_input_len", "random_output_len", "random_range_ratio")
    settings = []
    for line in lines:
        about = {n: str(line[n]) for n in (*named, *lengths) if line.get(n) is not None}
        server = line.get("server_info")
        model = line.get("model_id")
        if model is None and isinstance(server, Mapping):
            model = server.get("model_path")
        if model is not None:
            about["model"] = str(model)
        if line.get("backend"):
            about["engine"] = str(line["backend"])
        settings.append(about)
    cells, facts = _by_load([_serving_round(line) for line in lines], settings)
    tool = "sglang" if sglang else "vllm"
    return ForeignRun(tool, cells, facts, str(first.get("date", "")), parts=lines)


def _asked(line: Mapping[str, Any], done: int) -> int:
    """Returns how many requests were sent, where the file tells, else how many were answered."""
    if line.get("num_prompts") is not None:
        return int(line["num_prompts"])
    length = line.get("random_input_len")
    if length and line.get("random_range_ratio") == 1:  # each prompt has it
        return round(int(line["total_input_tokens"]) / int(length))
    return done


def _serving_round(line: Mapping[str, Any]) -> Round:
    errors = line.get("errors") or []
    done = int(line["completed"])
    failed = line.get("failed")
    if failed is None:
        failed = sum(map(bool, errors)) or max(0, _asked(line, done) - done)
    failed = int(failed)
    times: dict[str, list[float]] = {}
    if line.get("ttfts") and len(errors) == len(line["ttfts"]):
        good = [i for i, error in enumerate(errors) if not error]
        times["ttft"] = [float(line["ttfts"][i]) for i in good]
        if line.get("itls"):
            times["itl"] = [float(x) for x in chain(*(line["itls"][i] for i in good))]
    counters = {"n": done, "failed": failed, "prompt_tokens": int(line["total_input_tokens"])}
    report = line.get("cache_report")
    rate = None
    if isinstance(report, Mapping) and report.get("total_prompt_tokens"):
        rate = report["total_cached_tokens"] / report["total_prompt_tokens"]
        rate = rate if rate <= 1 else None  # what it counts is not the prompts'
    known = _flat_times(line, times) | _rates(line)
    return Round(done, failed, times, known, counters, rate)


def _flat_times(line: Mapping[str, Any], raw: Mapping[str, object]) -> dict[str, float]:
    """Reads ``median_ttft_ms`` as ``ttft.p50`` in seconds, unless the raw values are there."""
    known = {}
    for key, value in line.items():
        match = _STATISTIC.fullmatch(key)
        name = _SERVING_TIMES.get(match[2]) if match else None
        if match and name and name not in raw and isinstance(value, int | float):
            known[f"{name}.{match[1].replace('median', 'p50')}"] = value / 1e3
    return known


def _rates(line: Mapping[str, Any]) -> dict[str, float]:
    names = {
        "request_throughput": "requests_per_s",
        "input_throughput": "input_tokens_per_s",
        "output_throughput": "output_tokens_per_s",
    }
    return {
        f"throughput.{ours}": float(line[theirs])
        for theirs, ours in names.items()
        if line.get(theirs) is not None
    }


def _aiperf(lines: Sequence[Any]) -> ForeignRun:
    """Reads aiperf's ``profile_export_aiperf.json``, and that of genai-perf, from which it
    descends."""
    document = lines[0]
    known = {}
    for theirs, ours in _AIPERF_TIMES.items():
        found = document.get(theirs)
        if not found:
            continue
        scale = _UNIT_S[found["unit"]]
        for key, value in found.items():
            if (key == "avg" or re.fullmatch(r"p\d+", key)) and value is not None:
                known[f"{ours}.{key.replace('avg', 'mean')}"] = value * scale
    for theirs, ours in (
        ("request_throughput", "requests_per_s"),
        ("output_token_throughput", "output_tokens_per_s"),
    ):
        if document.get(theirs):
            known[f"throughput.{ours}"] = float(document[theirs]["avg"])
    done = int((document.get("request_count") or {"avg": 0})["avg"])
    failed = int((document.get("error_request_count") or {"avg": 0})["avg"])
    counters = {"n": done, "failed": failed}
    if document.get("total_isl"):
        counters["prompt_tokens"] = int(document["total_isl"]["avg"])
    asked = document.get("input_config") or {}
    facts = {}
    analyzer = asked.get("perf_analyzer")
    models = asked.get("models") or asked.get("model_names")
    models = models or (asked.get("endpoint") or {}).get("model_names")
    if models:
        facts["model"] = ", ".join(_flat(models, "").values())
    for group in ("loadgen", "input", "phases", "datasets"):
        facts |= _flat(asked.get(group), group)
    facts |= _flat((analyzer or {}).get("stimulus"), "stimulus")
    phases = [p for p in asked.get("phases") or [] if p.get("name") != "warmup"]
    limits = [p.get("requests") for p in phases]
    counted = bool(limits) and None not in limits
    timed = _by_time(facts) or (counted and sum(limits) != done + failed)
    when = str(document.get("start_time") or "")
    if document.get("is_complete") is False or document.get("was_cancelled"):
        raise ValueError("the run says of itself that it is incomplete")
    tool = "genai-perf" if analyzer else "aiperf"
    cells = {"serving": [Round(done, failed, {}, known, counters)]}
    return ForeignRun(tool, cells, facts, when, timed)


def _guidellm(lines: Sequence[Any]) -> ForeignRun:
    """Reads guidellm's ``benchmarks.json``: a cell for each load, of which each benchmark is a
    round. The rates of a sweep are what the server could do, so its cells go by their place."""
    document = lines[0]
    # Older versions have them flat, in `args`.
    asked = (document.get("config") or {}).get("spec") or document.get("args") or {}
    sweep = "sweep" in _flat(asked.get("profile"), "").values()
    timed = _by_time(_flat(asked, ""))
    rounds, settings = [], []
    for benchmark in document["benchmarks"]:
        metrics = benchmark["metrics"]
        known = {}
        for theirs, (ours, scale) in _GUIDELLM_TIMES.items():
            found = (metrics.get(theirs) or {}).get("successful")
            if not found:
                continue
            known[f"{ours}.mean"] = found["mean"] * scale
            for key, value in found["percentiles"].items():
                if re.fullmatch(r"p[1-9]\d", key):  # p01 is the first, p001 the tenth of it
                    known[f"{ours}.{key}"] = value * scale
        for theirs, ours in (
            ("requests_per_second", "requests_per_s"),
            ("prompt_tokens_per_second", "input_tokens_per_s"),
            ("output_tokens_per_second", "output_tokens_per_s"),
        ):
            found = (metrics.get(theirs) or {}).get("successful")
            if found:
                known[f"throughput.{ours}"] = float(found["mean"])
        totals = metrics["request_totals"]
        done, failed = int(totals["successful"]), int(totals["errored"])
        rounds.append(Round(done, failed, {}, known, {"n": done, "failed": failed}))
        timed = timed or bool(totals.get("incomplete"))
        strategy = (benchmark.get("config") or {}).get("strategy")
        place = {"sweep": str(len(rounds))}
        settings.append(place if sweep else _flat(strategy, "strategy"))
    cells, facts = _by_load(rounds, settings)
    backend = asked.get("backend")
    model = backend.get("model") if isinstance(backend, Mapping) else asked.get("model")
    facts |= _flat(model, "model") | _flat(asked.get("data"), "data")
    return ForeignRun("guidellm", cells, facts, timed=timed)


def _lmcache_engine(lines: Sequence[Any]) -> ForeignRun:
    """Reads ``bench_summary.json`` of LMCache's own ``lmcache bench engine``."""
    config, results = lines[0].get("config") or {}, lines[0]["results"]
    done, failed = int(results["successful_requests"]), int(results["failed_requests"])
    known = _flat_times(results, {}) | _rates(results)
    if results.get("elapsed_time"):
        known["throughput.requests_per_s"] = done / results["elapsed_time"]
    counters = {"n": done, "failed": failed, "prompt_tokens": int(results["total_input_tokens"])}
    names = ("model", "workload", "kv_cache_volume_gb", "tokens_per_gb_kvcache", "seed")
    facts = {name: str(config[name]) for name in names if config.get(name) is not None}
    cells = {"serving": [Round(done, failed, {}, known, counters)]}
    return ForeignRun("lmcache-engine", cells, facts, timed=_by_time(_flat(config, "")))


def _llmperf(lines: Sequence[Any]) -> ForeignRun:
    """Reads ``..._summary.json`` of LLMPerf's ``token_benchmark_ray.py``."""
    found = lines[0]
    known = {}
    for key, value in found.items():
        match = _LLMPERF.fullmatch(key)
        if match and match[1] in _LLMPERF_TIMES and isinstance(value, int | float):
            known[f"{_LLMPERF_TIMES[match[1]]}.{match[2]}"] = float(value)
    done, failed = int(found["results_num_completed_requests"]), int(found["results_number_errors"])
    known["throughput.requests_per_s"] = found["results_num_completed_requests_per_min"] / 60
    known["throughput.output_tokens_per_s"] = found["results_mean_output_throughput_token_per_s"]
    lengths = [f"{what}_{of}_tokens" for what in ("mean", "stddev") for of in ("input", "output")]
    names = ("model", "num_concurrent_requests", *lengths)
    facts = {n: str(found[n]) for n in names if n in found}
    if "num_concurrent_requests" in facts:
        facts["concurrency"] = facts.pop("num_concurrent_requests")
    when = datetime.fromtimestamp(found["timestamp"], UTC).isoformat()
    one = Round(done, failed, {}, known, {"n": done, "failed": failed})
    return ForeignRun("llmperf", {"serving": [one]}, facts, when)


def _inference_perf(lines: Sequence[Any]) -> ForeignRun:
    """Reads ``stage_N_lifecycle_metrics.json`` of inference-perf, a load each, or the summary of
    all of them."""
    load, good = lines[0]["load_summary"], lines[0]["successes"]
    known = {}
    for theirs, ours in _INFERENCE_PERF_TIMES.items():
        for key, value in ((good.get("latency") or {}).get(theirs) or {}).items():
            name = key.replace("median", "p50")
            known_name = name == "mean" or re.fullmatch(r"p[1-9]\d*", name)
            if known_name and value is not None:
                known[f"{ours}.{name}"] = float(value)
    for theirs, ours in (
        ("requests_per_sec", "requests_per_s"),
        ("input_tokens_per_sec", "input_tokens_per_s"),
        ("output_tokens_per_sec", "output_tokens_per_s"),
    ):
        if (rate := (good.get("throughput") or {}).get(theirs)) is not None:
            known[f"throughput.{ours}"] = float(rate)
    done, failed = int(good["count"]), int((lines[0].get("failures") or {}).get("count", 0))
    rate = load.get("requested_rate")
    facts = {} if rate is None else {"request_rate": str(rate)}
    # A stage lasts as long as it is told to, and arrivals are drawn.
    cells = {"serving": [Round(done, failed, {}, known, {"n": done, "failed": failed})]}
    return ForeignRun("inference-perf", cells, facts, timed=True)
