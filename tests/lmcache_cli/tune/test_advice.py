"""What ``lmcache tune`` advises in words."""

from __future__ import annotations

import json
from pathlib import Path

from tests.lmcache_cli.tune.test_tune_command import mooncake, tune, tuned


def test_a_short_trace_is_not_called_a_day(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    sure = tuned(trace)["recommendation"]["notes"]["How sure"]
    assert " % on another such 1 min 18 s (95 %, bootstrap over blocks of time)" in sure[0]
    slow = tuned(trace, "--speed-up", "0.0005")["recommendation"]["notes"]["How sure"]
    assert " % on another such day (95 %" in slow[0]
    made = "rag", "--requests", "20", "--concurrency", "2", "--quiet"
    said = " ".join(tune(*made, cwd=tmp_path).stdout.split())
    assert " % on another such run (95 %" in said


def test_the_cheapest_that_keeps_the_bounds_is_in_the_first_sentences(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", False)
    seen = set()
    for speed in ("16", "30", "40", "60"):
        flags = "--speed-up", speed, "--slo", "ttft.p90=300ms"
        found = tuned(trace, *flags, code=3)
        recommended, load = found["recommendation"], found["load"]["today"]
        ways = [(load["per_hour"], f"--replicas {load['replicas']}")] if load["replicas"] else []
        if cards := recommended["enough_cards"]:
            per_card = load["per_hour"] / load["cards"]
            ways.append((cards * per_card, f"--devices {cards}"))
        price, flag = min(ways)
        seen.add(flag.split()[0])
        assert f" first: {flag}. " in recommended["verdicts"][0].replace(
            f" ({load['cards']} GPUs)", ""
        )
        assert f"{flag}, ${price:.2f} an hour)" in recommended["verdicts"][1]
    assert seen == {"--devices", "--replicas"}
    # Without prices of cards that of tiers alone is no price of a way.
    free = "--speed-up", "30", "--slo", "ttft.p90=300ms", "--gpu-price", "0"
    sentence = tuned(trace, *free, code=3)["recommendation"]["verdicts"][1]
    assert "(cheapest of what does: 3 replicas (3 GPUs), --replicas 3), and none" in sentence


def test_more_cards_are_named_before_dearer_replicas(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t.jsonl", True)
    flags = "--speed-up", "60", "--slo", "ttft.p90=300ms", "--device-kv", "2GiB"
    have, buy, change = tuned(trace, *flags, code=3)["recommendation"]["verdicts"]
    assert have.startswith("Overload: you need 2 cards first: --devices 2. ")
    assert "(cheapest of what does: 2 cards, --devices 2, $6.70 an hour)" in buy
    assert "the trace takes 3 GPUs in 3 replicas ($10.04 an hour" in change


def test_cards_are_advised_that_divide_the_heads(tmp_path: Path) -> None:
    """Qwen2.5-7B has 28 query heads and 4 of KV: 4 cards divide them, 8 and 16 do not."""
    trace = mooncake(tmp_path / "t.jsonl", False)
    flags = "--model", "qwen2.5-7b", "--devices", "4", "--slo"
    found = tuned(trace, *flags, "ttft.p90=22ms", code=3)
    assert found["recommendation"]["enough_cards"] in (None, 28)
    lines = tuned(trace, *flags, "ttft.p90=1ms", code=3)["recommendation"]["notes"]["What limits"]
    assert any(line.endswith(", nor do 28 cards for each model") for line in lines)


def test_passages_of_a_made_workload_that_come_again_elsewhere(tmp_path: Path) -> None:
    """Popular passages of a large corpus stand in another order each time: prefixes hardly help."""
    made = "rag", "--requests", "40", "--corpus-passages", "60", "--passage-tokens", "120"
    done = tune(*made, "--quiet", "--json", "-", cwd=tmp_path)
    found = json.loads(done.stdout)
    anywhere, prefix = (found["source"][f"{n}_hit_rate"] for n in ("any_position", "ceiling"))
    assert 0.4 < anywhere < 1 and prefix < anywhere - 0.3
    [line] = found["recommendation"]["notes"]["What the trace knows"]
    assert line == (
        f"passages anywhere: {100 * anywhere:.1f} % of the prompt tokens came before, wherever they"
        f" stood; prefix reuse finds at most {100 * prefix:.1f} %: blend (docs/blend.md) could"
        f" reuse up to {100 * (anywhere - prefix):.1f} points more"
    )
    chat = tune("chat", "--requests", "40", "--quiet", "--json", "-", cwd=tmp_path)
    [line] = json.loads(chat.stdout)["recommendation"]["notes"]["What the trace knows"]
    assert line.endswith("blend would not pay: prefixes find nearly all of it")
