"""Plots for a terminal."""

from __future__ import annotations

from lmcache_cli.tune.report_sections import curve_plot, front_plot

SIZES = [2**30 * 2**power for power in range(8)]
FALLING = [(size, 0.9 * power / 7) for power, size in enumerate(SIZES)]
FLAT = [(size, 0.1) for size in SIZES]


def test_curves_are_told_apart_and_have_units() -> None:
    text = curve_plot({"64, prefix": FALLING, "64, any place": FLAT}, width=80, height=16)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) <= 16
    assert "\x1b" not in text
    for word in ("missed (%)", "capacity", "1 GiB", "64, prefix", "64, any place", "●", "▲"):
        assert word in text, text
    # the falling curve's marker is higher at the left than at the right
    drawn = [(row, line.index("●")) for row, line in enumerate(lines) if "●" in line]
    drawn = [(row, column) for row, column in drawn if "prefix" not in lines[row]]
    assert drawn[0][1] < drawn[-1][1]


def test_marked_capacity_is_a_line() -> None:
    plain = curve_plot({"a": FALLING})
    assert curve_plot({"a": FALLING}, marked=2**33) != plain
    assert curve_plot({"a": FALLING}, marked=2**60) == plain, "outside of the plot"


def test_front_marks_the_recommended_one() -> None:
    points = [(0.0, 0.9), (0.1, 0.5), (0.4, 0.3)]
    text = front_plot({"p50": points, "p90": [(0.0, 1.9), (0.4, 0.6)]}, 0.1, width=60, height=14)
    assert max(map(len, text.splitlines())) <= 60
    for word in ("TTFT (ms)", "cost per hour", "p50", "p90"):
        assert word in text, text
    assert "TTFT (s)" in front_plot({"p50": [(0.0, 2.0), (1.0, 1.0)]})
    assert front_plot({"p50": points}, 0.1) != front_plot({"p50": points})


def test_plots_do_not_remember_each_other() -> None:
    first = curve_plot({"a": FALLING})
    front_plot({"p50": [(0.0, 0.9)]})
    assert curve_plot({"a": FALLING}) == first


def test_nothing_to_draw() -> None:
    assert curve_plot({}) == curve_plot({"a": []}) == curve_plot({"a": [(0, 0.5)]}) == ""
    assert front_plot({}) == front_plot({"p50": []}) == ""
    assert "a" in curve_plot({"a": [(2**30, 0.5)]})
    assert "p50" in front_plot({"p50": [(0.0, 0.0)]})
