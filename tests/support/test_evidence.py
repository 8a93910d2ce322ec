"""e-values have mean 1 at most under their hypothesis, at any stopping time; e-BH against its definition."""

import numpy as np
import pytest
from scipy.stats import binom

from fe_posttrain.support.evidence import (
    anytime_lower_bound,
    anytime_upper_bound,
    e_bh,
    log_e_above,
    log_e_below,
)


@pytest.mark.parametrize("e_value", [log_e_above, log_e_below])
@pytest.mark.parametrize("p0", [0.003, 0.2, 0.7])
def test_its_mean_is_one_at_the_edge_and_each_draw_keeps_it(e_value, p0):
    n = 30
    c = np.arange(n + 1)
    e = np.exp(e_value(c, np.full(n + 1, n), p0))
    assert binom.pmf(c, n, p0) @ e == pytest.approx(1, rel=1e-9)
    # one more draw: a martingale at p0, whatever the counts
    after = (1 - p0) * np.exp(e_value(c, np.full(n + 1, n + 1), p0)) + p0 * np.exp(
        e_value(c + 1, np.full(n + 1, n + 1), p0)
    )
    assert after == pytest.approx(e, rel=1e-9)


@pytest.mark.parametrize(("e_value", "p"), [(log_e_above, 0.1), (log_e_below, 0.4)])
def test_its_mean_is_less_inside_the_hypothesis(e_value, p):
    c = np.arange(31)
    assert binom.pmf(c, 30, p) @ np.exp(e_value(c, np.full(31, 30), 0.2)) < 1


def test_draws_without_a_hit_give_what_absence_is_worth():
    # at least .95 (1-p0)^-N; the spread alternatives add to it
    value = log_e_below(0, 1024, 0.0029)
    assert np.log(0.95) - 1024 * np.log1p(-0.0029) <= value <= -1024 * np.log1p(-0.0029)


@pytest.mark.parametrize(("c", "n"), [(0, 50), (3, 50), (50, 50)])
def test_the_anytime_bounds_are_where_the_e_values_reach_their_level(c, n):
    low, high = anytime_lower_bound(c, n, 0.05), anytime_upper_bound(c, n, 0.05)
    if c:
        assert log_e_above(c, n, low) >= np.log(20) > log_e_above(c, n, low * 1.001)
    else:
        assert low == 0
    if c < n:
        assert log_e_below(c, n, high) >= np.log(20) - 1e-6
        assert log_e_below(c, n, high * 0.999) < np.log(20)
    else:
        assert high == 1


def test_the_anytime_bounds_hold_when_one_stops_at_the_worst_moment():
    rng, p = np.random.default_rng(0), 0.03
    hits = (rng.random((1000, 300)) < p).cumsum(1)
    drawn = np.arange(1, 301)
    # the bound exceeds p at some time iff the e-value against p reaches 1/level at some time
    ever_above = (log_e_above(hits, drawn, p) >= np.log(20)).any(1).mean()
    ever_below = (log_e_below(hits, drawn, p) >= np.log(20)).any(1).mean()
    assert ever_above <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
    assert ever_below <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


def _by_definition(e: np.ndarray, alpha: float) -> set[int]:
    order = sorted(range(len(e)), key=lambda i: -e[i])
    best = 0
    for k in range(1, len(e) + 1):
        if e[order[k - 1]] >= len(e) / (alpha * k):
            best = k
    return {i for i in range(len(e)) if best and e[i] >= e[order[best - 1]]}


def test_e_bh_is_its_definition():
    rng = np.random.default_rng(1)
    for _ in range(50):
        e = np.exp(rng.normal(2, 2, size=rng.integers(1, 12)))
        assert set(np.flatnonzero(e_bh(e, 0.1))) == _by_definition(e, 0.1)
    assert e_bh([], 0.1).shape == (0,)
    assert e_bh([100.0, 1.0], 0.05).tolist() == [True, False] == e_bh([40.0, 1.0], 0.05).tolist()
    assert not e_bh([39.0, 1.0], 0.05).any()
