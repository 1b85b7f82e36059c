"""Decides between two sides that ran in turns, at every look: is the change beyond a limit?

It works on arrays whose last axis is rounds; any axes before it are separate trials, so that the
benchmark puts thousands of them through the same lines that judge one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reports.verdict.interval import Array, correlation, critical_t, running

LEAST_ROUNDS = 12
"""The least number of rounds for a time's verdict, when no more will follow."""
SURE_ROUNDS = 60
"""The least number of rounds for a time's verdict before the budget is spent. What slows a
twentieth of the rounds stays out of 60 of them in 4.6 % of the cases, and of fewer more often: a
PASS would not have seen it. Noise that stays with a side for 50 rounds on average stays with both
for 60 in 9 %, and then looks like a change for the worse in a quarter of these: a FAIL in fewer
would be false too often."""
LAST_SHARE = 0.75
"""The share of the level that is kept for the last look, where an interval needs not hold at all
others too and so is narrower."""
_STATE_REACH = 4.0
_NEIGHBOURS = 2
_LAGS = 5


class Doubt(NamedTuple):
    """From how many standard errors on a sign of dependence is believed: the correlation of
    neighbours, that over several rounds, a trend, and a change that follows the machine's speed."""

    lag1: float
    several: float
    trend: float
    state: float


QUICK = Doubt(0.0, 1.25, 2.5, 2.0)
"""For a FAIL: any sign widens."""
SLOW = Doubt(0.5, 2.5, 3.5, 3.0)
"""For a PASS, of which many are asked for at once: one sign in a thousand would spoil them."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What is known of the mean of ``new - base`` (logarithms of times, say) after each round.

    ``middle`` is the mean, ``lag1`` the correlation of one round with the next, ``several`` its
    mean over the next five. ``trend`` and ``state`` are by how much the change itself moves, with
    time and with the speed of the machine, and the standard errors of that. ``n`` counts rounds.
    All have the shape of what was put in, but ``n``, which has its last axis.
    """

    n: Array
    middle: Array
    squares: Array
    lag1: Array
    several: Array
    trend: tuple[Array, Array]
    state: tuple[Array, Array]

    @classmethod
    def of(cls, base: ArrayLike, new: ArrayLike) -> Looks:
        """Takes both sides' values, round by round, on a scale on which changes are differences."""
        x, y = np.broadcast_arrays(np.asarray(base, np.float64), np.asarray(new, np.float64))
        change, state = y - x, (x + y) / 2
        n = np.arange(1.0, change.shape[-1] + 1)
        # Against the mean of all, so that nothing cancels.
        centre = change.mean(-1, keepdims=True) if change.size else 0.0
        rest = change - centre
        means, squares = running(rest)
        lags = [correlation(rest, k) for k in range(1, _LAGS + 1)]
        slope, error, _ = _slope(np.broadcast_to(n - n.mean(), rest.shape), rest, n)
        across = (n - 1) / 2
        follows, follows_error, length = _slope(_before(state), _without_first(rest), n - 1)
        reach = _STATE_REACH * np.sqrt(length / n)
        trend, moves = (slope * across, error * across), (follows * reach, follows_error * reach)
        return cls(n, centre + means, squares, lags[0], np.mean(lags, axis=0), trend, moves)

    def inflation(self, doubt: Doubt) -> Array:
        """Returns how many rounds tell as much as one would if they were independent: the variance
        of a mean under AR(1), or under correlation that lasts over a part of the rounds."""
        stuck = np.clip(self.lag1 - doubt.lag1 / np.sqrt(self.n), 0.0, 0.99)
        lasting = np.maximum(self.several - doubt.several / np.sqrt(_LAGS * self.n), 0.0)
        found: Array = np.maximum((1 + stuck) / (1 - stuck), 1 + lasting * self.n * 0.7)
        return found

    def errors(self, doubt: Doubt) -> tuple[Array, Array]:
        """Returns the standard errors of the means, and the effective numbers of rounds."""
        inflation = self.inflation(doubt)
        effective = np.maximum(self.n / inflation, 1.0)
        # Rounds that stick together scatter less about their own mean than about the true one.
        seen = np.maximum(1 - (1 / effective - 1 / self.n), 0.05)
        deviation = np.sqrt(self.squares / np.maximum(self.n - 1, 1) / seen)
        return deviation * np.sqrt(inflation / self.n), effective

    def slack(self, doubt: Doubt) -> Array:
        """Returns by how much the change itself moved, beyond chance."""
        moves, error = self.trend
        follows, follows_error = self.state
        with_time: Array = np.maximum(np.abs(moves) - doubt.trend * error, 0.0)
        with_state: Array = np.maximum(np.abs(follows) - doubt.state * follows_error, 0.0)
        slack: Array = with_time + with_state
        return slack

    def half_widths(self, level: float, over: bool, doubt: Doubt) -> Array:
        """Returns how far the mean may lie from ``middle`` on one side. The chance that at any of
        the looks it lies farther is at most ``level``; with ``over`` the last one is narrower, at
        the cost of all others. Infinite where nothing is known of the noise."""
        from scipy import stats

        error, effective = self.errors(doubt)
        widths: Array = np.full(error.shape, np.inf)
        critical = critical_t(effective, 2 * level * (1 - LAST_SHARE))
        np.multiply(critical, error, out=widths, where=error > 0)
        if over and widths.shape[-1]:
            freedom = np.maximum(effective[..., -1] - 1, 0.5)
            last = stats.t.isf(level * LAST_SHARE, freedom) * error[..., -1]
            narrower = (error[..., -1] > 0) & (last < widths[..., -1])
            widths[..., -1] = np.where(narrower, last, widths[..., -1])
        return widths + self.slack(doubt)


@dataclass(frozen=True, slots=True)
class Decision:
    """The first decision of each trial: ``outcome`` is 1 for worse than the limit, -1 for within
    it, 0 for neither; ``at`` the index of the look that gave it (the last one, if none did), with
    the bounds ``low`` and ``high`` there."""

    outcome: NDArray[np.int64]
    at: NDArray[np.int64]
    low: Array
    high: Array


def decide(
    looks: Looks, bound: float, falling: bool, fail_level: float, pass_level: float, over: bool
) -> Decision:
    """Looks after every round whether the change is beyond ``bound`` (below it if ``falling``).
    ``fail_level`` and ``pass_level`` are the chances to say so, or its contrary, wrongly.
    ``over``: no round follows the last one. There must be a round."""
    worse = looks.half_widths(fail_level, over, QUICK)
    better = looks.half_widths(pass_level, over, SLOW)
    sign = -1.0 if falling else 1.0
    beyond = sign * (looks.middle - bound)
    last = (looks.n >= LEAST_ROUNDS) & (looks.n == looks.n[-1]) & over
    enough = last | (looks.n >= SURE_ROUNDS)
    fails, passes = enough & (beyond > worse), enough & (beyond < -better)
    decided = fails | passes
    at = np.where(decided.any(-1), decided.argmax(-1), looks.n.size - 1)

    def there(values: Any) -> Any:
        return np.take_along_axis(values, at[..., None], -1)[..., 0]

    outcome = there(fails).astype(np.int64) - there(passes).astype(np.int64)
    below, above = (better, worse) if falling else (worse, better)
    return Decision(outcome, at, there(looks.middle - below), there(looks.middle + above))


def signs(changes: Looks, values: ArrayLike) -> dict[str, float]:
    """Returns what speaks against independent rounds in one trial: the correlation of neighbours
    (``lag1``), how many independent rounds tell as much (``effective_rounds``), by how much the
    change itself moved beyond chance (``moved``), and how many of ``values``, its rounds, lie more
    than five robust standard deviations from their median (``outliers``)."""
    array = np.asarray(values, np.float64)
    far = np.abs(array - np.median(array))
    scale = 1.4826 * float(np.median(far))
    return {
        "lag1": float(np.clip(changes.lag1[-1], -1.0, 1.0)),
        "effective_rounds": float(changes.n[-1] / changes.inflation(SLOW)[-1]),
        "moved": float(changes.slack(SLOW)[-1]),
        "outliers": float(np.sum(far > 5 * scale)) if scale else 0.0,
    }


def _slope(on: Array, values: Array, n: Array) -> tuple[Array, Array, Array]:
    """Returns the slope of ``values`` on ``on`` so far, its standard error, and the sum of squares
    of ``on`` about its mean. ``n`` counts values."""
    count = np.maximum(n, 1)
    a, b = np.cumsum(on, -1), np.cumsum(values, -1)
    length = np.maximum(np.cumsum(on**2, -1) - a**2 / count, 0.0)
    height = np.maximum(np.cumsum(values**2, -1) - b**2 / count, 0.0)
    both = np.cumsum(on * values, -1) - a * b / count
    slope = np.divide(both, length, out=np.zeros_like(both), where=length > 1e-18)
    rest = np.maximum(height - slope**2 * length, 0.0) / np.maximum(count - 2, 1)
    error = np.sqrt(np.divide(rest, length, out=np.zeros_like(both), where=length > 1e-18))
    return slope, error, length


def _before(state: Array) -> Array:
    """Returns the machine's state in the rounds before each: its own noise is not in it. The first
    round, which has none before it, gets 0 and is left out by :func:`_without_first`."""
    centred = state - state.mean(-1, keepdims=True) if state.size else state
    total, count = np.zeros_like(centred), np.zeros(centred.shape[-1])
    for back in range(1, _NEIGHBOURS + 1):
        total[..., back:] += centred[..., :-back]
        count[back:] += 1
    found: Array = total / np.maximum(count, 1)
    return found


def _without_first(rest: Array) -> Array:
    kept = rest.copy()
    kept[..., :1] = 0.0
    return kept
