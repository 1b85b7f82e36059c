"""Shows how a cache fills: hits by tier from the first request to the last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import altair as alt

from reports.page.chart import Chart, Datum, marks, percent_axis
from reports.page.rows import COMPUTED, RowChart, part_keys, part_scale, source_text
from reports.sample import TIERS, Sample
from reports.tables.columns import Column, numbers, texts

MOST_BINS = 48


def filling_chart(rows: RowChart) -> Chart | None:
    """Charts what served each request of the row with the highest hit rate, in the order of
    sending, repeats taken together. None where nothing hit or there are fewer than three requests.
    """
    best = max(range(len(rows.cells)), key=lambda i: rows.cells[i].hit_rate or 0.0)
    samples = [s for s in rows.samples_of[best] if s.completed]
    turns = in_turn(samples)
    if not rows.cells[best].hit_rate or len(turns) < 3:
        return None
    tiers = [tier for tier in TIERS if any(s.hit_tokens.get(tier) for s in samples)]
    width = -(-len(turns) // MOST_BINS)
    bins = [
        (first + 1, [s for turn in turns[first : first + width] for s in turn])
        for first in range(0, len(turns), width)
    ]
    shares = [_shares(of_bin, tiers) for _, of_bin in bins]
    parts: list[Datum] = []
    for (first, of_bin), found in zip(bins, shares, strict=True):
        last = min(first + width - 1, len(turns))
        which = f"request {first}" if last == first else f"requests {first} to {last}"
        at = 0.0
        for name, share in found.items():
            parts.append(
                {
                    "first": first - 0.5,
                    "last": last + 0.5,
                    "from": at,
                    "to": at + share,
                    "part": name,
                    "say": f"{which}: {share:.1f} % of the prompt tokens {source_text(name)},"
                    f" n = {len(of_bin)}",
                }
            )
            at += share

    def draw(width: int, narrow: bool) -> alt.TopLevelMixin:
        scale = alt.Scale(domain=[0.5, len(turns) + 0.5], nice=False, zero=False)
        x = alt.X("first:Q", title="request (number, in the order of sending)", scale=scale)
        bars = marks(parts).mark_bar(strokeWidth=0.7)
        return bars.properties(height=170 if narrow else 200).encode(
            x=x.axis(grid=False, tickMinStep=1, tickCount=5 if narrow else 10),
            x2="last",
            y=percent_axis("from", "prompt tokens (%)"),
            y2="to",
            color=alt.Color("part:N", scale=part_scale(tiers), legend=None),
            stroke=alt.Stroke("part:N", scale=part_scale(tiers), legend=None),  # no seams
            description="say:N",
        )

    grouped = f" in groups of {width}" if width > 1 else ""
    return Chart(
        "filling",
        f"How the cache filled: {rows.labels[best]}",
        "Share of the prompt tokens that each tier served, in per cent, request by request"
        f"{grouped}, for the row with the highest hit rate; n = {len(samples)} requests"
        f" in {len({s.repeat for s in samples})} repeats.",
        draw,
        [
            Column("from request", "number", texts(str(first) for first, _ in bins)),
            *(
                Column(name, "%", numbers([found[name] for found in shares], 1))
                for name in (*tiers, COMPUTED)
            ),
        ],
        part_keys(tiers),
    )


def in_turn(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Groups samples by place in the order of sending within a repeat: those of all repeats
    together."""
    repeats: defaultdict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        repeats[sample.repeat].append(sample)
    turns: defaultdict[int, list[Sample]] = defaultdict(list)
    for of_repeat in repeats.values():
        for place, sample in enumerate(sorted(of_repeat, key=lambda s: s.sent_s)):
            turns[place].append(sample)
    return [turns[place] for place in sorted(turns)]


def _shares(samples: Sequence[Sample], tiers: Sequence[str]) -> dict[str, float]:
    total = sum(s.prompt_tokens for s in samples) or 1
    found = {tier: 100 * sum(s.hit_tokens.get(tier, 0) for s in samples) / total for tier in tiers}
    return {**found, COMPUTED: 100 - sum(found.values())}
