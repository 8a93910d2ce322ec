"""Gaps and KL bought, against an enumerated world."""

import numpy as np
import pytest

from fe_posttrain.support.gaps import (
    cumulant_gap,
    distrust,
    excess_kl,
    gap_interval,
    jarzynski_gap,
    kl_bernoulli,
    kl_efficiency,
    log_partition,
    outside_mass,
)

REFERENCE = np.array([0.5, 0.3, 0.15, 0.05])
POLICY = np.array([0.2, 0.2, 0.3, 0.3])
REWARD = np.array([0.0, 0.0, 1.0, 1.0])
RATIO = np.log(POLICY / REFERENCE)
BETA = 0.3


def exact_gap() -> float:
    free_energy = POLICY @ (-REWARD + BETA * RATIO)
    return free_energy + BETA * np.log(REFERENCE @ np.exp(REWARD / BETA))


def test_the_closed_form_is_the_enumerated_partition_function():
    p = REFERENCE @ REWARD
    assert log_partition(p, BETA) == pytest.approx(np.log(REFERENCE @ np.exp(REWARD / BETA)))
    assert log_partition(p, BETA, 2.5) == pytest.approx(np.log(REFERENCE @ np.exp(2.5 * REWARD / BETA)))
    assert log_partition([0.0, 1.0, 0.5], 1e-4) == pytest.approx([0.0, 1e4, 1e4 + np.log(0.5)])  # w/beta = 10^4
    free_energy = POLICY @ (-REWARD + BETA * RATIO)
    low, high = gap_interval(free_energy, 0.15, 0.25, BETA)
    assert low < exact_gap() < high
    assert gap_interval(free_energy, p, p, BETA) == pytest.approx((exact_gap(), exact_gap()))


def test_few_reference_samples_are_nats_off_where_success_is_rare():
    # 8 draws at p_ref = .01 mostly hold no success: then log-mean-exp says ln Z = 0.
    assert log_partition(0.01, 0.05) - 0.0 > 14


def test_jarzynski_is_a_lower_bound_in_expectation_and_exact_for_all_draws():
    rng = np.random.default_rng(0)
    shaped = REWARD - BETA * RATIO
    small = [jarzynski_gap(shaped[rng.choice(4, 8, p=POLICY)], BETA) for _ in range(4000)]
    assert np.mean(small) < exact_gap()
    everything = np.repeat(shaped, (POLICY * 1000).astype(int))
    assert jarzynski_gap(everything, BETA) == pytest.approx(exact_gap(), rel=1e-6)


def test_the_cumulant_is_exact_for_normal_shaped_rewards():
    s = np.random.default_rng(0).normal(1.0, 0.2, size=200_000)
    assert cumulant_gap(s, BETA) == pytest.approx(0.2**2 / (2 * BETA), rel=0.02)
    assert jarzynski_gap(s, BETA) == pytest.approx(0.2**2 / (2 * BETA), rel=0.05)
    assert distrust(0.1, 0.5, 0.3) and not distrust(0.1, 0.3, 0.3)


def test_kl_efficiency_is_one_for_a_tilt_by_success_and_less_otherwise():
    p_before, p_after = REFERENCE @ REWARD, 0.6
    tilted = np.where(REWARD == 1, REFERENCE * p_after / p_before, REFERENCE * (1 - p_after) / (1 - p_before))
    kl = tilted @ np.log(tilted / REFERENCE)
    assert kl_efficiency(p_after, p_before, kl) == pytest.approx(1)
    assert kl_bernoulli(p_after, p_before) == pytest.approx(kl)
    assert kl_efficiency(POLICY @ REWARD, p_before, POLICY @ RATIO) < 1
    assert np.isnan(kl_efficiency(0.2, 0.2, 0.0))


def test_excess_kl_is_the_divergence_among_correct_completions():
    right = REWARD == 1
    policy, reference = POLICY[right] / POLICY[right].sum(), REFERENCE[right] / REFERENCE[right].sum()
    exact = policy @ np.log(policy / reference)
    everything = np.repeat(RATIO[right], (policy * 1000).round().astype(int))
    assert excess_kl(everything) == pytest.approx(exact, rel=1e-6)


def test_outside_mass_counts_successes_beyond_a_budget():
    assert outside_mass(np.log([2.0, 3.0, 5.0, 100.0]), 4) == 0.5
