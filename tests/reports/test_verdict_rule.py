"""Rules: what is understood, and what is said of the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reports.verdict.rule import Rule, RuleError, parse_rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("ttft.p50>5%", Rule("ttft.p50", 0.05)),
        (" e2e.p99.9 > 10 % ", Rule("e2e.p99.9", 0.10)),
        ("itl.mean>0%", Rule("itl.mean", 0.0)),
        ("hit_rate<-0.5pp", Rule("hit_rate", -0.005, falling=True, points=True)),
        ("throughput.output_tokens_per_s<-3%", Rule("throughput.output_tokens_per_s", -0.03, True)),
        ("bytes_loaded>1%", Rule("bytes_loaded", 0.01)),
        ("hit_tokens.cpu<-1%", Rule("hit_tokens.cpu", -0.01, True)),
    ],
)
def test_rules(text: str, rule: Rule) -> None:
    parsed = parse_rule(text)
    assert parsed.limit == pytest.approx(rule.limit)
    assert replace(parsed, limit=rule.limit) == rule
    assert parse_rule(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rule"),
        ("ttft.p50", "METRIC>LIMIT"),
        ("ttft.p50>5", "% or pp"),
        ("ttft.p50>5ms", "% or pp"),
        ("ttft.p50>=5%", "no rule"),
        ("ttft.p0>5%", "no metric"),
        ("ttft.max>5%", "no metric 'ttft.max'"),
        ("latency.p50>5%", "ttft"),
        ("ttft>5%", "with .mean or .p50"),
        ("throughput>5%", "requests_per_s"),
        ("hit_rate<-5%", "pp"),
        ("ttft.p50>5pp", "in %"),
        ("ttft.p50>-5%", "above 0; write ttft.p50>5%"),
        ("hit_rate<0.5pp", "below 0; write hit_rate<-0.5pp"),
        ("e2e.p50<-100%", "100 %"),
        ("ttft.p50>nan%", "no rule"),
        ("ttft.p50>1e3%", "no rule"),
    ],
)
def test_what_is_no_rule(text: str, words: str) -> None:
    with pytest.raises(RuleError) as error:
        parse_rule(text)
    assert words in str(error.value) and "\n" not in str(error.value)
