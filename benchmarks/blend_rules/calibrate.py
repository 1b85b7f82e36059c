"""Learning a model's profile from prompts without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.blend_rules.known import Rows, every
from benchmarks.blend_rules.offline import Calibration, Offline, Profile
from benchmarks.blend_rules.reference import Reference, Reused


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The best profile, and per target layer the mean KL in nats to a full prefill."""

    profile: Profile
    kl: dict[int, float]


def kl(full: Tensor, other: Tensor) -> float:
    """Mean KL divergence, in nats, of rows of logits [rows, vocabulary] from those of `full`."""
    p, q = full.log_softmax(dim=-1), other.log_softmax(dim=-1)
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def calibrate(
    reference: Reference,
    model: str,
    prompts: Sequence[Reused],
    layers: Sequence[int],
    ratio: float,
    targets: Sequence[int] | None = None,
) -> Calibrated:
    """Learns from three quarters of the prompts and chooses the target layer on the rest, where the
    question's tokens, with `ratio` of the rows run, come closest to a full prefill.

    `layers` are those whose KV is read; `targets` (default: all but layer 0) those to choose from.
    """
    learnt = len(prompts) * 3 // 4
    sums = Calibration(model, layers)
    for prompt in prompts[:learnt]:
        full = reference.encode(prompt.ids[: prompt.question])
        sums.add(prompt, full, reference.rotate)
    profiles = sums.profiles()
    wanted = list(targets or range(1, len(profiles)))
    distance = dict.fromkeys(wanted, 0.0)
    for prompt in prompts[learnt:]:
        truth = reference.blend(prompt, Rows(every), len(prompt.ids) - prompt.question).logits
        for target in wanted:
            rule = Offline(profiles[target], ratio, reference.rotate)
            near = reference.blend(prompt, rule, len(truth)).logits
            distance[target] += kl(truth, near) / (len(prompts) - learnt)
    best = min(wanted, key=lambda target: distance[target])
    return Calibrated(profiles[best], distance)
