"""What holds for every test: no network, no colours, no verdict from the clock, and which files
come first where several processes share them."""

from __future__ import annotations

import os
import re
import signal
from functools import cache

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
    "tests/benchmarks/test_random_model.py",
    "tests/benchmarks/test_transfer.py",
    "tests/cache_core/test_at_exit.py",
    "tests/cache_core/test_cuda_emulation.py",
    "tests/cache_core/test_cuda_failures.py",
    "tests/cache_core/test_cuda_order.py",
    "tests/cache_core/test_cuda_users.py",
    "tests/cache_core/test_curves.py",
    "tests/cache_core/test_disk.py",
    "tests/cache_core/test_disk_damage.py",
    "tests/cache_core/test_disk_power.py",
    "tests/cache_core/test_gpu_tier.py",
    "tests/cache_core/test_kernels.py",
    "tests/cache_core/test_ledger_model.py",
    "tests/cache_core/test_ledger_policies.py",
    "tests/cache_core/test_mooncake.py",
    "tests/cache_core/test_native.py",
    "tests/cache_core/test_native_codecs.py",
    "tests/cache_core/test_native_fuzz.py",
    "tests/cache_core/test_policies.py",
    "tests/cache_core/test_remote_promise.py",
    "tests/cache_core/test_soak.py",
    "tests/lmcache_cli/test_doctor_gpu.py",
    "tests/lmcache_cli/test_pytest_plugin.py",
    "tests/lmcache_cli/test_trace_record_start.py",
    "tests/lmcache_cli/test_trace_record_trouble.py",
    "tests/test_cuda_build.py",
    "tests/test_packaging.py",
)
# Left out of `make test` too, for `make test-all`, which runs each night: what takes long, and has
# a shorter relative that stays. Files, tests, or tests whose parameters match an expression.
NIGHTLY = (
    "tests/benchmarks/test_random_model.py::test_each_kind_answers_and_keeps_what_is_counted["
    "deepseek-v32|gemma4|glm4-moe|granite-hybrid|jamba|llama4|nemotron-h|qwen3-moe|qwen3.5]",
    "tests/benchmarks/test_random_model.py::test_the_script_makes_a_folder_and_prints_it",
    "tests/benchmarks/test_transfer.py",
    "tests/benchmarks/test_vllm_grouped.py::test_random_histories",
    "tests/benchmarks/test_vllm_scheduler.py"
    "::test_both_connectors_save_and_load_what_they_were_given",
    "tests/benchmarks/test_vllm_simulation.py::test_many_random_histories",
    # One engine's traffic stays, and vLLM's scheduler in simulated histories of every kind.
    "tests/cache_core/adapters/test_vllm_blend.py"
    "::test_4000_known_tokens_and_plain_requests_beside_blended_ones",
    "tests/cache_core/adapters/test_vllm_blend.py::test_two_ranks",
    "tests/cache_core/adapters/test_vllm_connector.py::test_every_rank_keeps_its_own_part",
    "tests/cache_core/adapters/test_vllm_connector.py"
    "::test_tokens_are_those_of_vllm_alone[troubled.*]",
    "tests/cache_core/adapters/test_vllm_connector.py::test_seconds_of_prefill_saved_are_counted",
    "tests/cache_core/adapters/test_vllm_connector.py::test_trouble_fails_and_changes_no_request",
    "tests/cache_core/adapters/test_vllm_connector.py::test_the_trouble_was_there",
    "tests/cache_core/adapters/test_vllm_connector.py"
    "::test_what_was_on_disk_is_hit_after_a_restart",
    "tests/cache_core/adapters/test_vllm_families.py::test_a_draft_models_own_layers_are_kept_too",
    "tests/cache_core/adapters/test_vllm_families.py"
    "::test_a_hit_of_mla_is_what_a_hit_of_vllms_own_is",
    "tests/cache_core/adapters/test_vllm_families.py::test_a_hundred_mixed_requests",
    "tests/cache_core/adapters/test_vllm_families.py::test_recurrent_states_are_loaded",
    "tests/cache_core/adapters/test_vllm_families.py::test_tokens_of_other_families_are_the_same",
    "tests/cache_core/adapters/test_vllm_families.py::test_tokens_are_those_of_vllm_alone",
    "tests/cache_core/adapters/test_vllm_weights.py",
    "tests/cache_core/blend/test_tinyqa.py::test_known_results[6]",
    "tests/cache_core/blend/test_tinyqa.py::test_the_profile_answers_at_a_fifth_of_the_work[6]",
    "tests/cache_core/test_at_exit.py"
    "::test_what_is_queued_when_the_process_ends_is_written[forked.*|closed.*]",
    # Emulated GPUs: test_cuda_emulation, _users, _refusals and _rules stay.
    "tests/cache_core/test_cuda_failures.py",
    "tests/cache_core/test_cuda_order.py",
    "tests/cache_core/test_gpu_tier.py",
    "tests/cache_core/test_kernels.py",
    # Of many seeds a few stay.
    "tests/cache_core/test_disk_damage.py::test_cut_off_files[[1-9]]",
    "tests/cache_core/test_disk_damage.py::test_damaged_deaths[[1-9]]",
    "tests/cache_core/test_disk_damage.py::test_damaged_headers_and_tables_of_segments[[1-9]]",
    "tests/cache_core/test_disk_power.py"
    "::test_what_was_synced_survives_and_nothing_older_comes_back[[2-9]|1[01]]",
    "tests/cache_core/test_native_codecs.py::test_coded[.*True]",
    "tests/cache_core/test_native_codecs.py::test_every_item",
    "tests/cache_core/test_native_fuzz.py::test_bad_descriptors[.*_coded]",
    "tests/cache_core/test_remote_promise.py"
    "::test_every_verb_comes_back_from_a_server_that_never_answers[mooncake|rediss]",
    "tests/lmcache_cli/test_bench_tiers.py::test_a_codec_keeps_more_in_as_many_bytes[int8]",
    "tests/lmcache_cli/test_bench_tiers.py"
    "::test_two_processes_share_a_remote_and_survive_its_death",
    "tests/lmcache_cli/test_check_command.py::test_interruption_keeps_what_was_measured[15]",
    "tests/lmcache_cli/test_check_command.py::test_a_real_engine",
    "tests/lmcache_cli/test_check_command.py::test_two_pythons",
    "tests/lmcache_cli/test_check_edges.py::test_bisect_names_the_commit",
    "tests/lmcache_cli/test_engine_pages.py::test_openai",
    "tests/lmcache_cli/test_engine_pages.py::test_transformers",
    "tests/lmcache_cli/test_engine_openai.py::test_a_real_vllm",
    "tests/lmcache_cli/test_engine_vllm.py::test_a_server_that_is_killed_gives_failed_samples",
    "tests/lmcache_cli/test_engine_vllm.py::test_a_start_that_fails_names_the_reason_and_the_log",
    "tests/lmcache_cli/test_engine_vllm.py::test_all_modes_side_by_side",
    "tests/lmcache_cli/test_gpu_engine.py",
    "tests/lmcache_cli/test_grouped_models.py"
    "::test_hits_are_verified_through_the_command["
    "deepseek|gemma4|glm4-moe|granite-hybrid|jamba|llama4|mistral-sliding|nemotron-h|qwen3.5]",
    "tests/lmcache_cli/test_report.py::test_several_runs",
    "tests/lmcache_cli/test_resume.py::test_a_finished_run_is_the_run_that_was_never_cut_off[15]",
    "tests/lmcache_cli/test_resume.py::test_another_configuration_is_refused_by_name",
    "tests/lmcache_cli/test_resume.py::test_cut_off_twice",
    "tests/lmcache_cli/test_resume.py::test_other_requests_are_refused",
    # Servers of odd ways, which test_trace_record_start and _trouble ask, stay.
    "tests/lmcache_cli/test_trace_record.py",
    "tests/lmcache_cli/test_trace_record_start.py"
    "::test_a_server_without_tokenize_needs_a_tokenizer_at_the_start",
    "tests/lmcache_cli/test_trace_kv_events.py::test_a_real_server_is_recorded",
    "tests/lmcache_cli/test_trace_record_trouble.py::test_answers_that_are_none_go_through",
    "tests/lmcache_cli/test_trace_record_trouble.py::test_bodies_that_ask_nothing",
    "tests/reports/test_page.py::test_silent_and_alone[400.*|.*dark]",
    "tests/reports/test_page.py::test_what_files_say_is_text[400]",
    "tests/test_cuda_build.py",
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
        if _nightly(item.nodeid):
            item.add_marker("nightly")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@cache
def _nightly_of(file: str) -> list[re.Pattern[str]]:
    found = []
    for entry in NIGHTLY:
        name, _, parameters = entry.removesuffix("]").partition("[")
        if name.partition("::")[0] == file:
            wanted = rf"\[(?:{parameters})\]" if parameters else r"(?:\[.*\])?"
            found.append(
                re.compile(re.escape(name) + (wanted if "::" in name else ".*"), re.DOTALL)
            )
    return found


def _nightly(nodeid: str) -> bool:
    return any(p.fullmatch(nodeid) for p in _nightly_of(nodeid.partition("::")[0]))


class ByFileOrServer(LoadScopeScheduling):
    """``--dist loadfile``, but for files that ask one server."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "one server" if file in OF_ONE_SERVER else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
    return ByFileOrServer(config, log) if config.getoption("dist") == "loadfile" else None
