"""pass@k against enumeration, Clopper-Pearson against SciPy's exact test."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from fe_posttrain.support.intervals import checked, lower_bound, pass_at_k, upper_bound


def test_pass_at_k_is_the_share_of_k_subsets_with_a_success():
    for n, c in ((5, 0), (5, 2), (6, 6), (7, 1)):
        draws = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(draws, k))
            assert pass_at_k(c, n, k) == pytest.approx(np.mean([any(subset) for subset in subsets]))


def test_pass_at_k_is_unbiased():
    n, k, p = 9, 4, 0.2
    c = np.arange(n + 1)
    assert binom.pmf(c, n, p) @ pass_at_k(c, np.full(n + 1, n), k) == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_more_than_was_drawn_is_refused():
    with pytest.raises(ValueError, match=r"pass@9: 8 draws"):
        pass_at_k([1, 2], [8, 16], 9)


@pytest.mark.parametrize(("c", "n"), [(0, 10), (3, 10), (10, 10), (1, 1000), (500, 1024)])
def test_bounds_are_clopper_and_pearson_s(c, n):
    interval = binomtest(c, n).proportion_ci(confidence_level=0.9, method="exact")  # one-sided .05 at each end
    assert lower_bound(c, n, 0.05) == pytest.approx(interval.low, abs=1e-12)
    assert upper_bound(c, n, 0.05) == pytest.approx(interval.high, abs=1e-12)


@pytest.mark.parametrize("p", [0.02, 0.3])
def test_bounds_miss_no_more_often_than_their_level_by_enumeration(p):
    n, c = 40, np.arange(41)
    chance = binom.pmf(c, n, p)
    assert chance[lower_bound(c, n, 0.05) > p].sum() <= 0.05
    assert chance[upper_bound(c, n, 0.05) < p].sum() <= 0.05


@pytest.mark.parametrize("wrong", [([1, 5], [4, 4]), ([1, -1], [4, 4]), ([1, 0.5], [4, 4]), ([1, np.nan], [4, 4])])
def test_wrong_counts_are_named_by_their_row(wrong):
    with pytest.raises(ValueError, match="row 1"):
        checked(*wrong)
