"""What holds for every test: no network, no colours, no verdict from the clock, and which files
come first where several processes share them."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Before anything imports transformers: a test that asks a hub is a test that fails elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
# Several test processes whose models take all cores each wait for one another more than they work:
# three times the CPU time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Snapshots of what a terminal shows must not depend on whose terminal runs them.
for name in ("FORCE_COLOR", "PY_COLORS", "COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Started in the background of a script, a process ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes slow examples, not wrong ones.
settings.register_profile(
    "lmcache", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("lmcache")

# Files whose tests start models and servers take minutes; what comes last should be short.
LONGEST_FIRST = (
    "tests/lmcache_cli/test_engine_vllm.py",
    "tests/cache_core/adapters/test_vllm_connector.py",
    "tests/lmcache_cli/test_trace_record.py",
    "tests/cache_core/adapters/test_vllm_blend.py",
    "tests/cache_core/adapters/test_vllm_families.py",
    "tests/benchmarks/test_vllm_grouped.py",
    "tests/benchmarks/test_vllm_simulation.py",
    "tests/cache_core/adapters/test_vllm_weights.py",
    "tests/lmcache_cli/test_check_command.py",
    "tests/cache_core/test_kernels.py",
    "tests/lmcache_cli/test_bench_tiers.py",
    "tests/lmcache_cli/test_verify_cross_model.py",
    "tests/benchmarks/test_vllm_scheduler.py",
    "tests/lmcache_cli/test_resume.py",
)
# What asks the same server goes to the same process, which starts it once.
OF_ONE_SERVER = (
    "tests/lmcache_cli/test_trace_record.py",
    "tests/lmcache_cli/test_engine_openai.py",
    "tests/lmcache_cli/test_engine_pages.py",
)
# Left out of `make test-fast`: builds and emulated GPUs, many random examples, many processes.
SLOW = (
    "tests/benchmarks/test_gpu_emulated.py",
    "tests/cache_core/test_cuda_emulation.py",
    "tests/cache_core/test_cuda_failures.py",
    "tests/cache_core/test_cuda_order.py",
    "tests/cache_core/test_cuda_users.py",
    "tests/cache_core/test_curves.py",
    "tests/cache_core/test_disk_damage.py",
    "tests/cache_core/test_disk_power.py",
    "tests/cache_core/test_gpu_tier.py",
    "tests/cache_core/test_kernels.py",
    "tests/cache_core/test_ledger_model.py",
    "tests/cache_core/test_ledger_policies.py",
    "tests/cache_core/test_mooncake.py",
    "tests/cache_core/test_native_codecs.py",
    "tests/cache_core/test_native_fuzz.py",
    "tests/cache_core/test_soak.py",
    "tests/lmcache_cli/test_trace_record_start.py",
    "tests/lmcache_cli/test_trace_record_trouble.py",
    "tests/test_cuda_build.py",
    "tests/test_packaging.py",
)
# Left out of `make test` too, for `make test-all`, which runs each night: minutes each, of what
# shorter tests beside them look at as well.
NIGHTLY = (
    "tests/benchmarks/test_vllm_simulation.py::test_many_random_histories",
    "tests/cache_core/adapters/test_vllm_blend.py::test_4000_known_tokens_and_plain_requests_beside_blended_ones",
    "tests/cache_core/adapters/test_vllm_families.py::test_a_hundred_mixed_requests[gemma3]",
    "tests/cache_core/adapters/test_vllm_families.py::test_a_hundred_mixed_requests[gpt-oss]",
    "tests/cache_core/adapters/test_vllm_families.py::test_a_hundred_mixed_requests[llama]",
    "tests/cache_core/adapters/test_vllm_families.py::test_a_hundred_mixed_requests[mistral-sliding]",
    "tests/cache_core/adapters/test_vllm_families.py::test_a_draft_models_own_layers_are_kept_too",
    "tests/cache_core/adapters/test_vllm_families.py::test_a_hit_of_mla_is_what_a_hit_of_vllms_own_is",
    "tests/cache_core/adapters/test_vllm_families.py::test_tokens_are_those_of_vllm_alone[gemma3]",
    "tests/cache_core/adapters/test_vllm_families.py::test_tokens_are_those_of_vllm_alone[mistral-sliding]",
    "tests/lmcache_cli/test_check_edges.py::test_bisect_names_the_commit",
    "tests/lmcache_cli/test_bench_tiers.py::test_a_codec_keeps_more_in_as_many_bytes[int8]",
    "tests/lmcache_cli/test_engine_vllm.py::test_a_start_that_fails_names_the_reason_and_the_log",
    "tests/lmcache_cli/test_engine_vllm.py::test_all_modes_side_by_side",
    "tests/lmcache_cli/test_resume.py::test_a_finished_run_is_the_run_that_was_never_cut_off[15]",
    "tests/lmcache_cli/test_resume.py::test_cut_off_twice",
    "tests/test_cuda_build.py::test_a_compiler_without_the_language_is_named",
    "tests/test_cuda_build.py::test_architectures_that_the_compiler_does_not_know_are_left_out",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what the lists above name, and sorts for ``--dist loadfile --no-loadscope-reorder``:
    files that take minutes come first."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    for item in items:
        file = item.nodeid.partition("::")[0]
        if file in SLOW:
            item.add_marker("slow")
        if item.nodeid in NIGHTLY:
            item.add_marker("nightly")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


class ByFileOrServer(LoadScopeScheduling):
    """``--dist loadfile``, but for files that ask one server."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "one server" if file in OF_ONE_SERVER else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    return ByFileOrServer(config, log) if config.getoption("dist") == "loadfile" else None
