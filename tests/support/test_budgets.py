"""Thresholds, depth and reach against their definitions."""

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


def test_at_the_threshold_b_draws_show_it_with_probability_one_less_delta():
    for budget in LADDER:
        for delta in (0.05, 0.2):
            assert reach(threshold(budget, delta), budget) == pytest.approx(1 - delta, rel=1e-12)
    assert threshold(1, 0.05) == pytest.approx(0.95)


def test_reach_is_the_chance_of_one_success_in_b_draws():
    assert reach(0.5, 3) == pytest.approx(1 - 0.5**3)
    assert reach([0.0, 1.0], 7).tolist() == [0.0, 1.0]
    assert reach(1e-12, 1000) == pytest.approx(1e-9, rel=1e-6)  # 1 - (1-p)^B would round to nothing


def test_depth_of_a_threshold_is_the_log_of_its_budget_and_differences_do_not_depend_on_delta():
    assert depth(threshold(256), 0.05) == pytest.approx(math.log(256))
    p = np.array([0.3, 1e-7])
    assert np.diff(depth(p, 0.05)) == pytest.approx(np.diff(depth(p, 0.5)))
    assert depth(0.0) == np.inf


def test_zero_hits_certify_as_many_draws_as_were_made_at_equal_levels():
    assert certified_budget(1024) == pytest.approx(1024)
    # N ln(1-p*_B) <= ln alpha at the certified budget, with equality
    budget = certified_budget(500, delta=0.1, alpha=0.05)
    assert 500 * math.log1p(-float(threshold(budget, 0.1))) == pytest.approx(math.log(0.05))


def test_the_primary_budget_is_what_a_run_draws_rounded_up_to_a_power_of_four():
    assert [primary_budget(n) for n in (0, 1024, 1025, 5000)] == [1024, 1024, 4096, 16384]


def test_a_budget_joins_the_ladder_and_must_count_draws():
    assert ladder_with(100) == (4, 16, 64, 100, 256, 1024, 4096)
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match="budget"):
            ladder_with(wrong)


def test_the_key_says_everything_that_a_statement_is_relative_to():
    words = str(Key("base", "temperature 1", "exact match", 64))
    assert all(part in words for part in ("base", "temperature 1", "exact match", "B = 64", "delta", "alpha"))
