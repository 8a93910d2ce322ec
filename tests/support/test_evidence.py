"""E-values by enumeration, anytime bounds as their duals, Ville by simulation, e-BH by its definition."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import binom, multivariate_normal, norm

from fe_posttrain.support.evidence import (
    anytime_lower_bound,
    anytime_upper_bound,
    e_bh,
    log_e_above,
    log_e_below,
)
from fe_posttrain.support.intervals import lower_bound, upper_bound

LEVELS = [0.3, 0.046, 1e-3, 1e-7]


@pytest.mark.parametrize("p0", LEVELS)
@pytest.mark.parametrize("drawn", [1, 6, 200])
def test_the_mean_of_an_e_value_is_one_at_the_boundary_and_less_within(p0, drawn):
    counts = np.arange(drawn + 1)
    above, below = log_e_above(counts, drawn, p0), log_e_below(counts, drawn, p0)

    def log_mean(log_e, p):
        return logsumexp(binom.logpmf(counts, drawn, p) + log_e)

    assert log_mean(above, p0) == pytest.approx(0, abs=1e-9) and log_mean(below, p0) == pytest.approx(0, abs=1e-9)
    for share in (0.9, 0.3, 0.0):
        assert log_mean(above, p0 * share) < 1e-12
        assert log_mean(below, 1 - (1 - p0) * share) < 1e-12


@pytest.mark.parametrize("p0", LEVELS)
def test_no_draw_raises_the_mean_of_an_e_value_under_its_hypothesis(p0):
    drawn, correct = (counts.ravel() for counts in np.indices((60, 60)))
    drawn, correct = drawn[correct <= drawn], correct[correct <= drawn]
    for log_e, within in ((log_e_above, p0 / 2), (log_e_below, (1 + p0) / 2)):
        now = log_e(correct, drawn, p0)
        sound = now > -700  # further down it underflows to 0, and stays there
        n, c = drawn[sound], correct[sound]
        hit, miss = (log_e(c + one, n + 1, p0) - now[sound] for one in (1, 0))
        np.testing.assert_allclose(np.logaddexp(np.log(p0) + hit, np.log1p(-p0) + miss), 0, atol=1e-7)
        assert (np.logaddexp(np.log(within) + hit, np.log1p(-within) + miss) <= 1e-7).all()
        assert ((miss if log_e is log_e_above else hit) <= 1e-7).all()  # p = 0 and p = 1


@pytest.mark.parametrize(("correct", "drawn", "p0"), [(0, 0, 0.2), (3, 10, 0.2), (1, 30, 0.01), (10, 10, 0.7)])
def test_e_values_are_the_stated_mixtures(correct, drawn, p0):
    def ratio(p):
        return (p / p0) ** correct * ((1 - p) / (1 - p0)) ** (drawn - correct)

    top = quad(lambda u: ratio(u**10), p0**0.1, 1)[0] / (1 - p0**0.1)  # Beta(.1, 1): p^.1 is uniform
    angle = np.arcsin(np.sqrt(p0))  # Beta(.5, .5): arcsin of sqrt p is uniform
    bottom = quad(lambda t: ratio(np.sin(t) ** 2), 0, angle)[0] / angle
    assert log_e_above(correct, drawn, p0) == pytest.approx(np.log(top), abs=1e-7)
    expected = 0.95 * (correct == 0) * (1 - p0) ** -drawn + 0.05 * bottom
    assert log_e_below(correct, drawn, p0) == pytest.approx(np.log(expected), abs=1e-7)


def test_draws_without_a_hit_count_at_full_weight():
    gained = log_e_below(0, [0, 100, 4096], 0.003) + np.array([0, 100, 4096]) * np.log1p(-0.003)
    assert (gained >= np.log(0.95)).all() and (gained <= 1e-15).all()


@pytest.mark.parametrize("level", [0.05, 0.002])
def test_anytime_bounds_are_where_the_e_values_cross(level):
    drawn = np.array([1, 8, 8, 8, 64, 64, 64, 1024, 1024, 4096])
    correct = np.array([1, 1, 5, 8, 1, 30, 64, 3, 700, 1])
    low, high = anytime_lower_bound(correct, drawn, level), anytime_upper_bound(correct, drawn, level)
    enough, proven = -np.log(level), (low > 1e-14)
    for sign, sufficient in ((-1, True), (1, False)):
        e = log_e_above(correct, drawn, np.maximum(low, 1e-14) * (1 + sign * 1e-7))
        assert ((e >= enough) == sufficient)[proven].all()
        inner = high < 1
        e = log_e_below(correct, drawn, np.where(inner, high, 0.5) * (1 - sign * 1e-7))
        assert ((e >= enough) == sufficient)[inner].all()
    assert proven.sum() >= 8 and (high < 1).sum() >= 7
    assert (low <= lower_bound(correct, drawn, level)).all()  # looking at any time costs something
    assert (high >= upper_bound(correct, drawn, level)).all()


@pytest.mark.parametrize("bound", [anytime_lower_bound, anytime_upper_bound])
def test_the_rejected_hypotheses_are_an_interval_up_to_the_bound(bound):
    p0 = np.geomspace(1e-9, 1 - 1e-9, 4000)
    lower = bound is anytime_lower_bound
    for correct, drawn in [(0, 5), (1, 1), (1, 40), (17, 40), (40, 40), (2, 4096), (4000, 4096)]:
        rejected = (log_e_above if lower else log_e_below)(correct, drawn, p0) >= np.log(20)
        edge = float(bound(correct, drawn, 0.05))
        np.testing.assert_array_equal(rejected, p0 <= edge if lower else p0 >= edge)


def test_what_was_not_drawn_is_not_known():
    np.testing.assert_array_equal(anytime_lower_bound([0, 0, 0], [0, 8, 5000], 0.05), 0)
    np.testing.assert_array_equal(anytime_upper_bound([0, 8, 64], [0, 8, 64], 0.05), 1)


@pytest.mark.parametrize("p", [0.5, 0.03, 0.001])
def test_bounds_watched_after_every_draw_are_rarely_ever_wrong(p):
    """Ville: over 600 draws, each looked at, the e-value of a true hypothesis ever reaches 1/level at that rate."""
    rng, level, runs = np.random.default_rng(7), 0.1, 1000
    drawn = np.arange(1, 601)
    correct = np.cumsum(rng.random((runs, drawn.size)) < p, axis=1)
    pairs, where = np.unique(correct * 1000 + drawn, return_inverse=True)  # each pair of counts once
    met = np.divmod(pairs, 1000)
    for log_e, wrong in (
        (log_e_above, lower_bound(*met, level) > p),
        (log_e_below, upper_bound(*met, level) < p),
    ):
        rejected = (log_e(*met, p) >= -np.log(level))[where].reshape(correct.shape)
        assert rejected.any(axis=1).mean() <= level + 3 * np.sqrt(level * (1 - level) / runs)
        if p > 0.01:  # the same look at bounds that are valid at a fixed number of draws only
            assert wrong[where].reshape(correct.shape).any(axis=1).mean() > 2 * level


def by_definition(e_values, alpha: float) -> list[bool]:
    """For each k from M down: are there k e-values of M / (alpha k) or more?"""
    total = len(e_values)
    for k in range(total, 0, -1):
        large = [e >= total / (alpha * k) for e in e_values]
        if sum(large) >= k:
            return large
    return [False] * total


def test_e_bh_is_its_definition():
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        for _ in range(60):
            e = np.round(np.exp(rng.normal(2, 2, size)))  # with ties
            np.testing.assert_array_equal(e_bh(e, 0.2), by_definition(e, 0.2))


def test_e_bh_by_hand():
    # 4 hypotheses at .05: the largest needs 80, two need 40 each, three 80/3 each
    np.testing.assert_array_equal(e_bh([79, 39, 1, 1], 0.05), [0, 0, 0, 0])
    np.testing.assert_array_equal(e_bh([80, 39, 1, 1], 0.05), [1, 0, 0, 0])
    np.testing.assert_array_equal(e_bh([1, 27, 27, 27], 0.05), [0, 1, 1, 1])
    np.testing.assert_array_equal(e_bh([[np.inf, 1], [40, 1]], 0.05), [[1, 0], [1, 0]])
    assert e_bh([], 0.05).shape == (0,)


def test_e_bh_keeps_false_discoveries_at_alpha_under_dependence():
    rng, alpha, true_nulls, total, shift = np.random.default_rng(1), 0.2, 15, 20, 3.0
    noise = multivariate_normal(np.zeros(total), 0.7 + 0.3 * np.eye(total), seed=rng).rvs(4000)
    x = noise + shift * (np.arange(total) >= true_nulls)
    e = norm.pdf(x, shift) / norm.pdf(x)  # mean 1 under the null
    rejected = np.array([e_bh(row, alpha) for row in e])
    false = rejected[:, :true_nulls].sum(1) / np.maximum(rejected.sum(1), 1)
    assert false.mean() <= alpha * true_nulls / total + 3 * false.std() / np.sqrt(4000)
    assert rejected[:, true_nulls:].mean() > 0.1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: log_e_above([1, 3], [4, 2], 0.1), "row 1: 3 correct of 2 drawn"),
        (lambda: log_e_below([1, 3], [4, 2], 0.1), "row 1: 3 correct of 2 drawn"),
        (lambda: anytime_lower_bound([np.nan], [4], 0.1), "row 0: nan correct of 4 drawn"),
        (lambda: anytime_upper_bound([0, 0.5], [4, 4], 0.1), "row 1: 0.5 correct of 4 drawn"),
        (lambda: log_e_above(1, 4, [0.1, 0.0]), "p0: row 1 is 0.0"),
        (lambda: log_e_below(1, 4, 1.0), "p0: row 0 is 1.0"),
        (lambda: e_bh([30.0, np.nan], 0.05), "e_values: row 1 is nan"),
        (lambda: e_bh([-1.0], 0.05), "e_values: row 0 is -1.0"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
