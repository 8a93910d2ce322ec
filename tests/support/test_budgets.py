"""Budgets: thresholds, depth and reach against numbers by hand, closed forms and each other."""

import math

import numpy as np
import pytest

from fe_posttrain.support.budgets import (
    LADDER,
    Key,
    certified_budget,
    depth,
    ladder_with,
    primary_budget,
    reach,
    threshold,
)


def test_thresholds_by_hand():
    # one draw must be right with probability .95; of two, both miss with probability .05
    np.testing.assert_allclose(threshold([1, 2, 1024]), [0.95, 1 - math.sqrt(0.05), 1 - 0.05 ** (1 / 1024)], rtol=1e-12)
    np.testing.assert_allclose(threshold(1e15), -math.log(0.05) / 1e15, rtol=1e-12)  # where 1 - .05^(1/B) loses digits
    np.testing.assert_allclose(threshold(4, delta=0.0081), 0.7)


@pytest.mark.parametrize("delta", [0.05, 0.2])
@pytest.mark.parametrize("budget", [1, 4, 1024, 10**9])
def test_the_threshold_is_what_the_budget_reaches_with_probability_one_minus_delta(budget, delta):
    p = threshold(budget, delta)
    assert reach(p, budget) == pytest.approx(1 - delta)
    assert (1 - p) ** budget == pytest.approx(delta, rel=1e-6)
    assert depth(p, delta) == pytest.approx(math.log(budget), abs=1e-9)


def test_depths_by_hand():
    assert depth(0.95) == pytest.approx(0)
    np.testing.assert_array_equal(depth([0.0, 1.0]), [np.inf, -np.inf])
    assert depth(1e-300) == pytest.approx(math.log(math.log(20)) + 300 * math.log(10))
    assert depth(1e-9) - depth(1e-6) == pytest.approx(3 * math.log(10), abs=1e-6)


def test_differences_of_depth_do_not_depend_on_delta():
    p = np.array([1e-12, 0.003, 0.4, 0.99])
    np.testing.assert_allclose(np.diff(depth(p, 0.05)), np.diff(depth(p, 0.3)))


def test_reach_is_the_chance_of_a_hit():
    np.testing.assert_allclose(reach([0.0, 0.5, 0.25, 1.0], [7, 3, 2, 5]), [0, 7 / 8, 7 / 16, 1])
    assert reach(1e-18, 1000) == pytest.approx(1e-15, rel=1e-9)
    np.testing.assert_allclose(reach([[0.1], [0.2]], [1, 2]), [[0.1, 0.19], [0.2, 0.36]])


@pytest.mark.parametrize(("delta", "alpha"), [(0.05, 0.05), (0.1, 0.01)])
@pytest.mark.parametrize("draws", [8, 1024])
def test_draws_without_a_hit_rule_out_no_more_than_the_certified_budget(draws, delta, alpha):
    budget = certified_budget(draws, delta, alpha)
    assert (1 - threshold(budget, delta)) ** draws == pytest.approx(alpha)  # N ln(1 - p*_B) = ln alpha: just enough
    assert (1 - threshold(1.01 * budget, delta)) ** draws > alpha
    assert certified_budget(1024) == pytest.approx(1024)


def test_the_primary_budget_is_a_power_of_four_that_covers_the_run():
    assert [primary_budget(n) for n in (0, 1024, 1025, 4097)] == [1024, 1024, 4096, 16384]
    assert [primary_budget(n, least=64) for n in (0, 64, 65)] == [64, 64, 256]
    assert primary_budget(0, least=1) == LADDER[0] == 4


def test_the_ladder_takes_one_more_rung():
    assert ladder_with(256) == LADDER
    assert ladder_with(100) == (4, 16, 64, 100, 256, 1024, 4096)
    assert ladder_with(1)[0] == 1 and ladder_with(16384)[-1] == 16384


@pytest.mark.parametrize("budget", [0, -4, 2.5])
def test_a_budget_that_cannot_be_drawn_is_refused(budget):
    with pytest.raises(ValueError, match=f"budget: {budget}; .*whole number"):
        ladder_with(budget)


def test_a_key_says_all_that_a_claim_is_relative_to():
    key = Key("model A", "temperature 1", "digits", 64, alpha=0.01)
    assert str(key) == "reference model A, decoding temperature 1, verifier digits, B = 64, delta = 0.05, alpha = 0.01"
    assert key == Key("model A", "temperature 1", "digits", 64, alpha=0.01) != Key("B", "temperature 1", "digits", 64)
