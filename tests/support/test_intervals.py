"""Fixed-N bounds against SciPy and exact coverage; pass@k against all subsets; bad counts by row."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from fe_posttrain.support.intervals import checked, lower_bound, pass_at_k, upper_bound


@pytest.mark.parametrize("drawn", [1, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(drawn):
    for k in range(1, drawn + 1):
        for correct in range(drawn + 1):
            with_hit = [min(chosen) < correct for chosen in combinations(range(drawn), k)]
            assert pass_at_k(correct, drawn, k) == pytest.approx(np.mean(with_hit), abs=1e-12)


@pytest.mark.parametrize(("correct", "drawn", "k"), [(1, 4096, 1), (3, 4096, 1024), (700, 4096, 64), (4096, 4096, 7)])
def test_pass_at_k_of_many_draws_keeps_its_digits(correct, drawn, k):
    exact = 1 - Fraction(comb(drawn - correct, k), comb(drawn, k))
    assert float(pass_at_k(correct, drawn, k)) == pytest.approx(float(exact), rel=1e-8)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_pass_at_k_is_unbiased(k):
    counts = np.arange(7)
    for p in (0.05, 0.4):
        assert binom.pmf(counts, 6, p) @ pass_at_k(counts, 6, k) == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_k_takes_prompts_with_different_draws():
    np.testing.assert_allclose(pass_at_k([1, 1, 0], [2, 4, 3], 2), [1, 0.5, 0])


@pytest.mark.parametrize(("k", "words"), [(5, "pass@5: 4 draws"), (0, "pass@0"), (-1, "pass@-1"), (1.5, "pass@1.5")])
def test_pass_at_k_refuses_what_has_no_unbiased_estimate(k, words):
    with pytest.raises(ValueError, match=words):
        pass_at_k([1, 2], [8, 4], k)


@pytest.mark.parametrize("level", [0.05, 0.001])
def test_bounds_are_scipys_exact_ones(level):
    for drawn in (1, 7, 64, 1024):
        for correct in sorted({0, 1, drawn // 3, drawn - 1, drawn}):
            test = binomtest(correct, drawn)
            test_low, test_high = (
                binomtest(correct, drawn, alternative=side).proportion_ci(1 - level, method="exact")
                for side in ("greater", "less")
            )
            two_sided = test.proportion_ci(1 - 2 * level, method="exact")
            low, high = lower_bound(correct, drawn, level), upper_bound(correct, drawn, level)
            assert (low, high) == pytest.approx((test_low.low, test_high.high), rel=1e-8)
            assert (low, high) == pytest.approx((two_sided.low, two_sided.high), rel=1e-8)


def test_bounds_by_hand():
    # no hit in N: (1-p)^N = level; only hits: p^N = level; nothing drawn: nothing known
    assert upper_bound(0, 10, 0.05) == pytest.approx(1 - 0.05**0.1)
    assert lower_bound(10, 10, 0.05) == pytest.approx(0.05**0.1)
    assert (lower_bound(0, 10, 0.05), upper_bound(10, 10, 0.05)) == (0, 1)
    assert (lower_bound(0, 0, 0.05), upper_bound(0, 0, 0.05)) == (0, 1)


@pytest.mark.parametrize("drawn", [3, 20])
def test_bounds_miss_at_most_as_often_as_they_say(drawn):
    counts, level = np.arange(drawn + 1), 0.1
    low, high = lower_bound(counts, drawn, level), upper_bound(counts, drawn, level)
    for p in np.linspace(0.01, 0.99, 50):
        chance = binom.pmf(counts, drawn, p)
        assert chance @ (low > p) <= level + 1e-12 and chance @ (high < p) <= level + 1e-12


def test_bounds_take_a_level_for_each_prompt():
    np.testing.assert_allclose(upper_bound([0, 0], 4, [0.05, 0.5]), [1 - 0.05**0.25, 1 - 0.5**0.25])


@pytest.mark.parametrize(
    ("correct", "drawn", "words"),
    [
        ([1, 5], [4, 4], "row 1: 5 correct of 4 drawn"),
        ([-1, 0], [4, 4], "row 0: -1 correct of 4 drawn"),
        ([1, 1, 0.5], [4, 4, 4], "row 2: 0.5 correct of 4 drawn"),
        ([1, 1], [4, 4.5], "row 1: 1 correct of 4.5 drawn"),
        ([np.nan], [4], "row 0: nan correct of 4 drawn"),
        ([1], [np.inf], "row 0: 1 correct of inf drawn"),
        ([0], [-3], "row 0: 0 correct of -3 drawn"),
    ],
)
def test_counts_that_cannot_be_are_named(correct, drawn, words):
    for use in (checked, lambda c, n: pass_at_k(c, n, 1), lambda c, n: lower_bound(c, n, 0.1)):
        with pytest.raises(ValueError, match=words):
            use(correct, drawn)


def test_counts_come_back_whole_and_of_one_shape():
    hits, draws = checked([1.0, 2.0], 4)
    assert hits.dtype.kind == draws.dtype.kind == "i"
    np.testing.assert_array_equal([hits, draws], [[1, 2], [4, 4]])
