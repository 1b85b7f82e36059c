"""The scheduler's gauges and times, in vLLM's scheduler without a model. Prints one JSON object."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from benchmarks.vllm_sim.engine_config import set_environment
from benchmarks.vllm_sim.settings import Settings
from benchmarks.vllm_sim.simulation import Simulation

set_environment()


class Shown:
    """What Prometheus would show: stats as vLLM puts them together, step by step."""

    def __init__(self, sim: Simulation) -> None:
        self.gauges: dict[str, float] = {}
        self.sent: list[dict[str, float]] = []
        self._sim = sim
        connector = sim.scheduler.connector
        made = type(connector).build_kv_connector_stats
        self.total, self.read = made(), made()
        taken = connector.get_kv_connector_stats

        def spied() -> Any:
            stats = taken()
            self.sent.append(dict(stats.data) if stats else {})
            self.gauges |= {n: v for n, v in self.sent[-1].items() if "_chunks:" in n or "_by" in n}
            if "pinned_chunks" in self.sent[-1]:
                self.gauges["pinned_chunks"] = self.sent[-1]["pinned_chunks"]
            self.total.aggregate(made(self.sent[-1]))
            return stats

        connector.get_kv_connector_stats = spied
        role: Any = sim.worker
        worker = role.get_kv_connector_stats

        def workers() -> Any:
            stats = worker()
            self.read.aggregate(stats or made())
            return stats

        role.get_kv_connector_stats = workers

    def differ(self) -> list[str]:
        """Gauges that are not what the Ledger says, counted anew."""
        side = self._sim.side
        ledger, names = side._ledger, side.options.tier_names
        size = self._sim.worker_half.blocks.chunk_bytes
        true: dict[str, float] = {"pinned_chunks": len(side._transfers.reading())}
        for tier, name in enumerate(names):
            keys = ledger.keys(tier)
            held = sum(ledger.holds(key, tier) for key in keys)
            true[f"held_chunks:{name}"] = held
            true[f"held_bytes:{name}"] = held * size
            true[f"pending_chunks:{name}"] = len(keys) - held
            true[f"capacity_chunks:{name}"] = ledger.capacities[tier]
        return [name for name, value in true.items() if self.gauges.get(name) != value]


def traffic() -> dict[str, Any]:
    options = {"cpu_size": "256KiB", "disk_size": "1MiB", "chunk_tokens": 32, "wait_s": 0.05}
    settings = Settings(3, requests=60, idle=0.8, prefix_caching=False, options=options)
    sim = Simulation(settings)
    # No request waits longer because the machine is busy.
    sim.side._lookup._clock = lambda: sim.now
    shown = Shown(sim)
    differ: list[str] = []
    peak: dict[str, float] = {}
    update = sim.scheduler.update_from_output

    def updated(*given: Any) -> Any:
        done = update(*given)
        differ.extend(shown.differ())
        for name, value in shown.gauges.items():
            peak[name] = max(peak.get(name, 0), value)
        return done

    sim.scheduler.update_from_output = updated
    looked: list[tuple[int | None, bool]] = []
    matched = sim.side.matched

    def look(*given: Any) -> Any:
        looked.append(matched(*given))
        return looked[-1]

    sim.side.matched = look
    result = sim.run()
    found: dict[str, Any] = {"good": result.good, "differ": sorted(set(differ)), "peak": peak}
    observed = sim.scheduler.connector._observed
    found["waiting"] = len(observed._waiting)
    found["looked"], found["deferred"] = len(looked), sum(n is None for n, _ in looked)
    found["log"] = shown.total.reduce()
    found["read"] = shown.read.reduce()
    found["evictions"] = dict(zip(("cpu", "disk"), sim.side._ledger.evictions, strict=True))
    shown.sent.clear()
    sim.settle()
    sim.step()
    sim.step()
    found["idle"] = shown.sent[-1:]
    sim.close()
    return found


def coded() -> list[float]:
    """Bytes of one held chunk: the engine's, the tier's by the gauge, and by the memory it took."""
    sim = Simulation(Settings(1, options={"cpu_size": "1MiB", "codec": "int8"}))
    shown = Shown(sim)
    sim.add("a", list(range(100, 140)), 1)
    sim.drain()
    for _ in range(3):
        while sim.jobs.run_one_each():
            pass
        sim.step()
    found = [sim.worker_half.blocks.chunk_bytes, shown.gauges["held_bytes:cpu"]]
    tier: Any = sim.worker_half.tiers[0]
    found.append(tier.codec.coded_bytes)
    sim.close()
    return found


def waits() -> dict[str, Any]:
    """Times by a clock that the test moves."""
    from cache_core.adapters.vllm.metrics import Observed
    from cache_core.ledger import Ledger

    now = 0.0
    observed = Observed(Ledger([4, None]), ("cpu", "remote"), 10, clock=lambda: now)
    first = observed.take()

    def look(answer: int | None, seconds: float) -> None:
        def take(request: Any, computed: int) -> tuple[int | None, bool]:
            nonlocal now
            now += seconds
            return answer, False

        observed.lookup(take, SimpleNamespace(request_id="a"), 0)

    look(None, 0.0002)
    now += 1.0
    look(None, 0.0002)
    now += 1.0
    quiet = [name for name in observed.take() if name.startswith("wait")]
    look(3, 0.0002)
    look(3, 0.0002)
    observed.ended("a")
    came = observed.take()
    look(None, 0.0)
    now += 0.02
    observed.ended("a")
    observed.ended("a")
    return {"first": first, "quiet": quiet, "came": came, "gone": observed.take()}


def main() -> None:
    print(json.dumps({"traffic": traffic(), "waits": waits(), "coded": coded()}))


if __name__ == "__main__":
    main()
