"""An engine's costs as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from lmcache_cli.probe.figure import Figure

if TYPE_CHECKING:
    from lmcache_cli.probe.engine import EngineProbe


def engine_tables(probe: EngineProbe) -> list[Table]:
    """Prefill beside its fit, and loads by tier beside theirs."""
    cost = probe.prefill
    prefill = Table(
        title=f"prefill of {probe.facts['model']}: ms, median (min-max)", title_justify="left"
    )
    for name in ("new", "cached", "ms", "fit", "fit - measured"):
        prefill.add_column(name, justify="right")
    for figure in probe.prefill_figures:
        fitted = cost.seconds(figure.new, figure.cached)
        prefill.add_row(
            str(figure.new),
            str(figure.cached),
            _milliseconds(figure.time),
            f"{1e3 * fitted:.1f}",
            f"{100 * (fitted / figure.time.median - 1):+.1f} %",
        )
    prefill.caption = (
        f"a + b n + c n (m + n/2): a {1e3 * cost.a:.3g} ms, b {1e3 * cost.b:.3g} ms,"
        f" c {1e9 * cost.c:.3g} ns · a decode step {1e3 * probe.decode_s:.3g} ms"
        f" + {1e6 * probe.decode_token_s:.3g} us per token in front"
    )
    loads = Table(title="loads of a hit: ms, median (min-max)", title_justify="left")
    for name in ("tier", "chunk tokens", "chunks", "ms", "fit"):
        loads.add_column(name, justify="left" if name == "tier" else "right")
    for load in probe.load_figures:
        loads.add_row(
            load.tier,
            str(load.chunk_tokens),
            str(load.chunks),
            _milliseconds(load.time),
            f"{1e3 * probe.tiers[load.tier].seconds(load.chunks, load.nbytes):.2f}",
        )
    loads.caption = " · ".join(
        f"{name}: {1e3 * tier.call_s:.2g} ms a load + {1e6 * tier.fixed_s:.2g} us a chunk"
        f" + bytes at {tier.bytes_per_s / 1e9:.2f} GB/s"
        for name, tier in probe.tiers.items()
    )
    return [prefill, loads]


def _milliseconds(figure: Figure) -> str:
    return f"{1e3 * figure.median:.2f} ({1e3 * figure.low:.2f}-{1e3 * figure.high:.2f})"
