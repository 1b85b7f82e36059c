"""Says what was found in plain sentences: what there is, what to buy, what it changes; then notes
under headings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from lmcache_cli.tune.candidates import (
    StackOutcome,
    bought_text,
    bound_text,
    how_text,
    latency_of,
    latency_text,
)
from lmcache_cli.tune.policies import BELADY
from lmcache_cli.tune.search import Recommendation
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.worth import LoadOrCompute, Worth, needed_load
from reports.units import bytes_text, seconds_text

Conclusion = Literal[
    "buy", "bounds hold already", "the GPUs' own cache is enough", "caching won't help",
    "not worth its price", "no room", "sharing is unknown", "nothing keeps the bounds",
    "another router",
]  # fmt: skip
_LITTLE = 0.02
"""The hit rate below which a cache does not help, and within which two are alike."""
_DAY_S = 86_400
_ROUTING_LOGIC = {"prefix": "prefixaware", "session": "session", "round-robin": "roundrobin"}
"""What the router of vLLM's production-stack calls ours."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said. ``sentences`` are three: what there is, what to buy, what it changes. ``notes``
    are lines by heading."""

    verdict: Conclusion
    sentences: tuple[str, ...]
    notes: tuple[tuple[str, tuple[str, ...]], ...]


def answer(study: Study, found: Recommendation) -> Answer:
    """Puts what was found into words."""
    verdict = _verdict(study, found)
    notes = (
        ("How sure", found.uncertainty.lines(_another(study)) if found.uncertainty else ()),
        ("What the trace knows", tuple(_known(study, found))),
        ("A pool or a router", found.fleet.lines(_main_latency(found)) if found.fleet else ()),
        ("What limits", tuple(_limits(study, found))),
        ("What more buys", tuple(m.text() for m in found.marginals)),
        ("Where the figures come from", study.cost.notes),
    )
    sentences = _have(study, found), _buy(study, found, verdict), _change(found)
    return Answer(verdict, sentences, tuple((title, lines) for title, lines in notes if lines))


def _verdict(study: Study, found: Recommendation) -> Conclusion:
    if not found.keeps_bounds:
        return "nothing keeps the bounds"
    if not study.shares_known:
        return "sharing is unknown"
    if found.chosen.stack.bought:
        return "buy"
    if found.chosen.stack.routing != found.today.stack.routing:
        return "another router"
    if found.goal.slo:
        return "bounds hold already"
    if found.ceiling < _LITTLE:
        return "caching won't help"
    if found.today.hit_rate > found.ceiling - _LITTLE:
        return "the GPUs' own cache is enough"
    if len(found.searched) == 1:
        return "no room"
    return "not worth its price"


def _cards(study: Study) -> str:
    cost = study.cost
    if cost.source == "probe":
        return f"an engine that was probed ({cost.model})"
    stages = f" in {cost.stages} stages" if cost.stages > 1 else ""
    cards = f"{cost.cards} x {cost.hardware}{stages} with {cost.model}"
    if study.replicas > 1:
        return f"{study.replicas} replicas ({study.routing}), each {cards},"
    return cards


def _main_latency(found: Recommendation) -> str:
    return next(iter(found.goal.slo), "ttft.p90")


def _have(study: Study, found: Recommendation) -> str:
    """Says what there is today; an overload first."""
    name, today = _main_latency(found), found.today
    own = today.stack.sizes.get("device", 0)
    each = " of each" if study.replicas > 1 else ""
    cache = f"a prefix cache of {bytes_text(own)} on the device{each}"
    if not own:
        cache = "no cache of its own"
    text = (
        f"You have {_cards(study)} and {cache}: {100 * today.hit_rate:.1f} % of the prompt tokens"
        f" hit, and {latency_text(name)} is {latency_of(today, name)}."
    )
    if not _overloaded(study, today):
        return text
    way = _cheapest(study, found)
    first = f"you need {way.things} first{way.beside}: {way.flags}. " if way else ""
    return (
        f"Overload: {first}{'The' if first else 'the'} trace takes {needed_load(today):.2f} times"
        f" what you have can serve, so waiting grows as long as it lasts. {text}"
    )


def _overloaded(study: Study, today: StackOutcome) -> bool:
    return study.clients is None and needed_load(today) > 1


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to keep the bounds that no cache on these cards keeps: how many ``things``, what
    else belongs to them, and the flags that size it."""

    cards: int
    per_hour: float
    things: str
    beside: str
    flags: str


def _cheapest(study: Study, found: Recommendation) -> _Way | None:
    """Returns the cheapest way to keep the bounds of all that were run, where what is recommended
    does not: more cards for each model, or more replicas; without prices that of the fewest
    cards."""
    if found.keeps_bounds:
        return None
    ways, there = [], study.replicas
    if found.cards is not None:
        cards, flags = found.cards * study.cost.stages, _devices_flags(study, found.cards)
        price = study.prices.cards * found.cards / study.cost.devices
        each = f" for each of {there} models" if there > 1 else ""
        ways.append(_Way(cards * there, price, f"{cards} cards{each}", "", flags))
    for who, outcome in (("today", found.today), ("recommended", found.chosen)):
        of, stack = found.worths[who], outcome.stack
        if of.replicas is None or of.replicas <= there:
            continue
        text = f"{of.cards} GPUs"
        if stack.bought:
            text += f", with {bought_text(outcome)}" + ("" if "remote" in stack.bought else " each")
        if stack.routing != found.today.stack.routing:
            text += f", routed by {stack.routing}"
        things, flags = f"{of.replicas} replicas", f"--replicas {of.replicas}"
        ways.append(_Way(of.cards or 0, of.per_hour or 0.0, things, f" ({text})", flags))
    priced = study.prices.cards > 0
    return min(ways, key=lambda w: (w.per_hour if priced else 0, w.cards, w.per_hour), default=None)


def _devices_flags(study: Study, devices: int) -> str:
    stages = study.cost.stages
    return f"--devices {devices}" + (f" --pipeline {stages}" if stages > 1 else "")


def _buy(study: Study, found: Recommendation, verdict: Conclusion) -> str:
    chosen, ceiling = found.chosen, f"{100 * found.ceiling:.1f} %"
    price = f"${chosen.cost_per_hour:.4f} an hour"
    way = _cheapest(study, found)
    does = f" on these cards (cheapest of what does: {_way_text(study, way)})" if way else ""
    if chosen.stack.bought:
        what = f"{bought_text(chosen)} (chunks of {chosen.stack.chunk_tokens} tokens,"
        what += f" {how_text(chosen)}), {price}.{_router(found)}"
        if verdict == "nothing keeps the bounds":
            return f"No stack keeps every bound{does}; the nearest is {what}"
        return f"Buy {what}"
    said = {
        "another router": f"Buy nothing, but spread requests by {chosen.stack.routing}: that costs"
        f" nothing.{_router(found)}",
        "nothing keeps the bounds": f"No stack keeps every bound{does}, and none comes much nearer"
        " than what you have.",
        "sharing is unknown": "Buy no cache on this trace: it has lengths only, so what its prompts"
        " share is unknown.",
        "bounds hold already": "Buy nothing: every bound holds already.",
        "caching won't help": f"Buy nothing: caching won't help here; {ceiling} of the tokens"
        " repeat by prefix.",
        "the GPUs' own cache is enough": "Buy nothing: your GPUs' own cache is enough; of the"
        f" {ceiling} that repeat by prefix it finds {100 * found.today.hit_rate:.1f}.",
        "no room": f"Buy nothing: --max-cpu and --max-disk leave no room that helps; {ceiling} of"
        " the tokens repeat by prefix.",
        "not worth its price": "Buy nothing: no tier is worth its price; with all that could be"
        f" held {ceiling} would hit.",
    }.get(verdict, "Buy nothing.")
    return said if verdict == "nothing keeps the bounds" else f"{said} {_in_vllm(study, found)}"


def _way_text(study: Study, way: _Way) -> str:
    price = f", ${way.per_hour:.2f} an hour" if study.prices.cards else ""
    return f"{way.things}{way.beside}, {way.flags}{price}"


def _router(found: Recommendation) -> str:
    """Says where another router than today's is set; empty where it is the same."""
    routing = found.chosen.stack.routing
    if routing == found.today.stack.routing:
        return ""
    flag = _ROUTING_LOGIC.get(routing)
    example = f" (for example vLLM production-stack's: --routing-logic {flag})" if flag else ""
    return (
        f" vLLM itself does not route: set it in the router in front of the replicas{example}. No"
        " router was run here, and each has rules of its own."
    )


def _in_vllm(study: Study, found: Recommendation) -> str:
    """Says what to set in vLLM where nothing is bought."""
    if not found.today.stack.sizes.get("device"):
        return (
            "In vLLM leave --no-enable-prefix-caching out: its own prefix cache on the device costs"
            " nothing."
        )
    cost = study.cost
    flags = ("--tensor-parallel-size", cost.devices), ("--pipeline-parallel-size", cost.stages)
    parallel = "".join(f"{flag} {count}, " for flag, count in flags if count > 1)
    return (
        f"In vLLM: {parallel}--enable-prefix-caching, which is the default of most models; nothing"
        " else to set."
    )


def _change(found: Recommendation) -> str:
    name = _main_latency(found)
    today, chosen = found.today, found.chosen
    before, after = found.worths["today"], found.worths["recommended"]
    if chosen is today:
        return f"So nothing changes: {_carries(today, before, found)}."
    times = (
        f"{latency_text(name)} goes from {latency_of(today, name)} to {latency_of(chosen, name)}"
    )
    kind, _, place = name.partition(".")
    ends = ((found.uncertainty and found.uncertainty.ttft) or {}).get(place)
    if kind == "ttft" and ends is not None:
        times += f" ({seconds_text(min(ends))} to {seconds_text(max(ends))})"
    return (
        f"{times}, hits from {100 * today.hit_rate:.1f} to {100 * chosen.hit_rate:.1f} %; before:"
        f" {_carries(today, before, found)}; then: {_carries(chosen, after, found)}."
    )


def _carries(outcome: StackOutcome, of: Worth, found: Recommendation) -> str:
    """Says what load a stack carries, the cards that the trace takes then, and money."""
    if not outcome.latency or of.replicas is None:
        return "at no load does it keep the bounds" if found.goal.slo else "no load is known"
    what = "keeps the bounds" if found.goal.slo else "can be served"
    load = f"up to {of.load:.2f} times this load {what}"
    if of.capped:
        load = f"at least {of.load:.0f} times this load {what} (not searched further)"
    if of.cards:
        cards = "GPU" if of.cards == 1 else "GPUs"
        load += f", so the trace takes {of.cards} {cards}"
        load += f" in {of.replicas} replicas" if of.replicas > 1 else ""
    if of.per_hour and of.capped:
        load += f" (${of.per_hour:.2f} an hour)"
    elif of.per_million is not None and of.per_hour is not None:
        load += f" (${of.per_hour:.2f} an hour; ${of.per_million:.3f} per million tokens when full)"
    return load


def _another(study: Study) -> str:
    """Returns what the trace is one of: a day, or as long as it lasts."""
    if study.clients is not None:
        return "run"
    return "day" if study.duration_s >= _DAY_S else seconds_text(study.duration_s)


def _known(study: Study, found: Recommendation) -> list[str]:
    """Says what is known beside the requests: the hits of the server that was recorded, and what
    chunks, or passages of a made workload, would add that are found anywhere."""
    lines = []
    if study.reported is not None:
        lines.append(
            f"the server that recorded it reported {100 * study.reported:.1f} % of the prompt"
            f" tokens as hits; predicted for what you have: {100 * found.today.hit_rate:.1f} %"
        )
    if study.any_position is not None:
        more = study.any_position - found.ceiling
        pays = f"blend (docs/blend.md) could reuse up to {100 * more:.1f} points more"
        if more < _LITTLE:
            pays = "blend would not pay: prefixes find nearly all of it"
        lines.append(
            f"passages anywhere: {100 * study.any_position:.1f} % of the prompt tokens came before,"
            f" wherever they stood; prefix reuse finds at most {100 * found.ceiling:.1f} %: {pays}"
        )
    return lines


def _limits(study: Study, found: Recommendation) -> list[str]:
    chosen, goal = found.chosen, found.goal
    lines = [bound_text(name, chosen, goal) for name in found.breaks]
    if _overloaded(study, found.today):
        bare, best = needed_load(found.none), needed_load(chosen)
        lines.append(
            f"prefill alone is {study.offered:.2f} times what the cards can do without a hit; all"
            f" of the trace is {bare:.2f} times what can be served without any cache,"
            f" {best:.2f} times with what is recommended"
        )
    if found.breaks and goal.slo:
        lines += _would_keep(study, found)
    if found.binding is not None and found.held_back is not None:
        lines.append(
            f"{bought_text(found.held_back)} would do better, but"
            f" {bound_text(found.binding, found.held_back, goal)}"
        )
    flags = {"cpu": "--max-cpu", "disk": "--max-disk", "remote": "--remote-size"}
    for name, size in chosen.stack.bought.items():
        if size >= goal.largest.get(name, inf):
            lines.append(
                f"{flags[name]} ends the search at {bytes_text(size)}, which is taken whole: give a"
                " larger one to see whether more is better"
            )
    own = found.today.stack.sizes.get("device", 0)
    if own and chosen.stack.bought:
        lines.append(
            f"tiers below the device are written through: of them the first"
            f" {bytes_text(own)} hold again what it holds, and buy next to nothing"
        )
    if own:
        lines.append(
            "of the device's room, answers that are being written take their part on average; what"
            " they leave behind when they end is not counted as kept"
        )
    if found.headroom is not None:
        room = found.headroom
        lru, best, belady = (room.hit_rates[n] for n in ("lru", room.best(), BELADY))
        sample = "" if room.rate >= 1 else f" (a sample of {100 * room.rate:.0f} %)"
        lines.append(
            f"the bought tiers alone hit {100 * lru:.1f} % with lru, {100 * best:.1f} % with the"
            f" best policy ({room.best()}), {100 * belady:.1f} % with one that knew the future,"
            f" {100 * room.ceiling:.1f} % without a bound{sample}"
        )
    if chosen.stack.admission != "none":
        lines.append(
            f"the disk takes no more writes: admission {chosen.stack.admission} keeps them to"
            f" {bytes_text(int(chosen.disk_writes_per_day))} a day"
        )
    return lines + [one.text() for one in found.loads if _told(found, one)]


def _would_keep(study: Study, found: Recommendation) -> Sequence[str]:
    """Says what would keep the bounds on latencies: more cards, or which other bound."""
    lines, goal = [], found.goal
    for who, whose in (("today", "what you have"), ("recommended", "the nearest")):
        of = found.worths[who]
        if of.replicas is not None and of.replicas > 1:
            lines.append(
                f"{whose} keeps every bound at {of.load:.2f} times this load: {of.replicas}"
                f" replicas ({of.cards} GPUs) that share it would"
            )
        if found.chosen is found.today:
            break
    if found.cards is not None:
        cards, flags = found.cards * study.cost.stages, _devices_flags(study, found.cards)
        lines.append(f"what you have keeps every bound on {cards} cards for each model: {flags}")
    missed = [name for name in goal.slo if name in found.breaks]
    if missed:
        others = " ".join(f"--slo {n}={ceil(1e3 * found.chosen.latency[n])}ms" for n in missed)
        lines.append(f"the nearest keeps these bounds: {others}")
    of = found.worths["recommended"]
    if of.replicas is None:
        more = [] if found.cards else study.cost.more_devices()
        lines.append(
            "no number of replicas keeps the bounds, since one that hardly has anything to do does"
            " not"
            + (f", nor do {more[-1] * study.cost.stages} cards for each model" if more else "")
        )
    return lines


def _told(found: Recommendation, one: LoadOrCompute) -> bool:
    """Returns whether a tier is shown: it was chosen, or it could be bought but does not load
    faster."""
    return one.tier in found.chosen.stack.sizes or (not one.loads and one.tier in ("cpu", "disk"))
