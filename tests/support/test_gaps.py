"""Gaps, KL efficiency and excess KL against enumerated worlds, high precision and numbers derived by hand."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy.special import rel_entr, softmax
from scipy.stats import binom, norm

from fe_posttrain.support import gaps


class World:
    """Twelve completions: reference, a policy and a 0/1 reward; everything by enumeration."""

    def __init__(self, seed: int, beta: float, weight: float = 1.0):
        rng = np.random.default_rng(seed)
        self.reference, self.policy = rng.dirichlet(np.ones(12), size=2)
        self.correct = np.arange(12) < 4
        self.p_ref, self.p_t = self.reference[self.correct].sum(), self.policy[self.correct].sum()
        self.ratio = np.log(self.policy / self.reference)
        self.kl = rel_entr(self.policy, self.reference).sum()
        optimum = softmax(np.log(self.reference) + weight * self.correct / beta)
        self.optimum, self.gap = optimum, beta * rel_entr(self.policy, optimum).sum()
        self.free_energy = -weight * self.p_t + beta * self.kl
        self.shaped = weight * self.correct - beta * self.ratio


@pytest.mark.parametrize("p", ["0", "1e-300", "1e-17", "0.01", "0.5", "0.999999", "1"])
@pytest.mark.parametrize("tilt", ["0", "1e-12", "0.3", "20", "49.9", "50.1", "700", "10000"])
def test_log_partition_agrees_with_a_hundred_digits(p, tilt):
    with localcontext() as context:
        context.prec = 400  # 1e-300 and e^-700 beside 1, with digits to spare
        context.Emax, context.Emin = 10**8, -(10**8)
        exact = (1 + Decimal(p) * (Decimal(tilt).exp() - 1)).ln()
    found = gaps.log_partition(float(p), float(tilt), 1.0)
    assert float(found) == pytest.approx(float(exact), rel=1e-11, abs=0)


def test_log_partition_broadcasts_and_weighs_in_units_of_beta():
    p = np.array([[0.0], [0.2]])
    found = gaps.log_partition(p, [1.0, 2.0, 4.0], 2.0)
    np.testing.assert_allclose(found, [[0, 0, 0], [math.log(1 + 0.2 * (math.exp(x) - 1)) for x in (0.5, 1, 2)]])


@pytest.mark.parametrize(("seed", "beta", "weight"), [(0, 1.0, 1.0), (1, 0.3, 1.0), (2, 0.05, 2.0)])
def test_the_interval_of_p_ref_becomes_that_of_the_gap(seed, beta, weight):
    world = World(seed, beta, weight)
    exact = gaps.gap_interval(world.free_energy, world.p_ref, world.p_ref, weight, beta)
    assert exact == pytest.approx((world.gap, world.gap))
    low, high = gaps.gap_interval(world.free_energy, world.p_ref / 2, min(1, 2 * world.p_ref), weight, beta)
    assert low < world.gap < high


def test_log_mean_exp_of_eight_reference_rewards_is_fourteen_nats_off():
    p_ref, beta, n = 0.01, 0.05, 8
    exact = math.log(1 + p_ref * (math.exp(1 / beta) - 1))
    hits = np.arange(n + 1)
    estimates = np.log((hits * math.exp(1 / beta) + n - hits) / n)
    error = binom.pmf(hits, n, p_ref) @ (estimates - exact)
    assert error == pytest.approx(-14, abs=0.5)
    assert gaps.log_partition(p_ref, 1.0, beta) == pytest.approx(exact)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_jarzynski_gap_is_exact_in_the_limit_and_a_lower_bound_in_expectation(beta):
    world = World(3, beta)
    pairs = world.shaped[np.stack(np.meshgrid(range(12), range(12)), -1).reshape(-1, 2)]
    chance = np.outer(world.policy, world.policy).ravel()
    of_two = chance @ gaps.jarzynski_gap(pairs, beta)
    drawn = np.random.default_rng(0).choice(12, size=(400, 2000), p=world.policy)
    of_many = gaps.jarzynski_gap(world.shaped[drawn], beta)
    assert 0 <= of_two < of_many.mean() <= world.gap + 3 * of_many.std() / 20
    assert of_many.mean() == pytest.approx(world.gap, rel=0.03)


def test_jarzynski_gap_misses_what_the_policy_cannot_show():
    world = World(4, beta=0.5)
    kept = np.arange(12) != 2  # a correct completion that the policy dropped
    policy = np.where(kept, world.policy, 0) / world.policy[kept].sum()
    shaped = 1.0 * world.correct - 0.5 * np.log(policy / world.reference, where=kept, out=np.zeros(12))
    gap = 0.5 * rel_entr(policy, world.optimum).sum()
    drawn = np.random.default_rng(1).choice(12, size=400_000, p=policy)
    missed = -0.5 * math.log1p(-world.optimum[2])  # beta ln(Z / what of Z is left)
    assert missed > 0.02
    assert gaps.jarzynski_gap(shaped[drawn], 0.5) == pytest.approx(gap - missed, abs=0.005)


def test_gaps_by_hand():
    assert gaps.jarzynski_gap([0.0, math.log(3)], 1.0) == pytest.approx(math.log(2) - math.log(3) / 2)
    assert gaps.jarzynski_gap([0.0, 2 * math.log(3)], 2.0) == pytest.approx(2 * math.log(2) - math.log(3))
    assert gaps.cumulant_gap([1.0, 2.0, 3.0], 0.25) == pytest.approx(1 / 0.5)
    assert gaps.jarzynski_gap([[7.0, 7.0], [-1e6, -1e6]], 0.1) == pytest.approx([0, 0], abs=1e-9)


def test_both_gaps_agree_on_normal_work_and_are_trusted():
    normal = 0.4 * norm.ppf((np.arange(20_000) + 0.5) / 20_000)  # ln E e^(s/beta) = sd^2 / 2 beta^2 exactly
    jarzynski, cumulant = gaps.jarzynski_gap(normal, 0.5), gaps.cumulant_gap(normal, 0.5)
    assert jarzynski == pytest.approx(0.16, rel=1e-2) and cumulant == pytest.approx(0.16, rel=1e-2)
    assert not gaps.distrust(jarzynski, cumulant, 0.5)


def test_distrust_begins_at_a_nat_apart():
    np.testing.assert_array_equal(
        gaps.distrust([1.0, 1.0, 1.0, np.nan, 0.0], [1.09, 1.11, 0.89, 1.0, np.inf], 0.1), [0, 1, 1, 1, 1]
    )


def test_kl_bernoulli_by_hand_and_at_the_ends():
    assert gaps.kl_bernoulli(0.5, 0.25) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    np.testing.assert_array_equal(gaps.kl_bernoulli([0, 1, 0, 1, 0.5, 0.5], [0, 1, 1, 0, 0, 1]), [0, 0] + 4 * [np.inf])
    np.testing.assert_allclose(gaps.kl_bernoulli([0, 1], [0.2, 0.2]), [-math.log(0.8), math.log(5)])
    assert gaps.kl_bernoulli(1e-20, 1e-18) == pytest.approx(1e-18 - 1e-20 + 1e-20 * math.log(1e-2), rel=1e-12, abs=0)


@pytest.mark.parametrize("seed", range(4))
def test_kl_efficiency_is_one_at_the_optimum_and_below_it_elsewhere(seed):
    world = World(seed, beta=0.4)
    optimal = world.optimum[world.correct].sum(), world.p_ref, rel_entr(world.optimum, world.reference).sum()
    assert gaps.kl_efficiency(*optimal) == pytest.approx(1) and gaps.kl_efficiency(*optimal) <= 1
    assert 0 <= gaps.kl_efficiency(world.p_t, world.p_ref, world.kl) < 1


def test_kl_efficiency_clears_rounding_and_nothing_else():
    spent = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    found = gaps.kl_efficiency(0.5, 0.25, [spent * (1 - 1e-12), spent / 3, 2 * spent, 0.0, -0.1, np.inf, np.nan])
    np.testing.assert_allclose(found, [1, 3, 0.5, np.nan, np.nan, 0, np.nan])
    assert found[0] == 1


@pytest.mark.parametrize("seed", range(3))
def test_excess_kl_is_the_divergence_of_the_laws_given_correct(seed):
    world = World(seed, beta=1.0)
    ours, theirs = world.policy[world.correct], world.reference[world.correct]
    exact = rel_entr(ours / ours.sum(), theirs / theirs.sum()).sum()
    drawn = np.random.default_rng(seed).choice(4, size=(300, 3000), p=ours / ours.sum())
    found = gaps.excess_kl(world.ratio[:4][drawn])
    assert found.mean() == pytest.approx(exact, abs=max(0.01, 0.02 * exact))
    few = gaps.excess_kl(world.ratio[:4][drawn[:, :5]])
    assert (few >= -1e-12).all() and few.mean() < exact
    # a chain rule: KL(pi || ref) = Bernoulli part + parts within correct and within wrong completions
    others, wrong = world.policy[~world.correct], world.reference[~world.correct]
    within_wrong = rel_entr(others / others.sum(), wrong / wrong.sum()).sum()
    parts = gaps.kl_bernoulli(world.p_t, world.p_ref) + world.p_t * exact + (1 - world.p_t) * within_wrong
    assert world.kl == pytest.approx(parts)


def test_excess_kl_by_hand():
    assert gaps.excess_kl([4.2, 4.2, 4.2]) == pytest.approx(0, abs=1e-12)
    assert gaps.excess_kl([0.0, math.log(3)]) == pytest.approx(math.log(3) / 2 + math.log(2 / 3))
    assert gaps.excess_kl([1000.0, 1000 + math.log(3)]) == pytest.approx(math.log(3) / 2 + math.log(2 / 3))
    assert gaps.excess_kl([0.0, np.inf]) == np.inf and gaps.excess_kl([np.inf]) == np.inf
    assert np.isnan(gaps.excess_kl([]))


def test_outside_mass_counts_what_is_beyond_ln_b():
    assert gaps.outside_mass([0.0, math.log(64) + 1e-9, math.log(64) - 1e-9, 80.0, np.inf], 64) == pytest.approx(0.6)
    np.testing.assert_allclose(gaps.outside_mass([[0.0, 9.0], [9.0, 9.0]], 64), [0.5, 1])
    assert np.isnan(gaps.outside_mass([], 64))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gaps.log_partition([0.1, 1.5], 1.0, 0.1), "p_ref: row 1 is 1.5"),
        (lambda: gaps.log_partition([np.nan], 1.0, 0.1), "p_ref: row 0 is nan"),
        (lambda: gaps.log_partition(0.1, 1.0, 0.0), "beta: 0.0"),
        (lambda: gaps.log_partition(0.1, -1.0, 0.1), "reward_energy_weight: -1.0"),
        (lambda: gaps.gap_interval(0.0, 0.3, 0.2, 1.0, 0.1), "p_low: above p_high"),
        (lambda: gaps.jarzynski_gap([0.0, np.nan], 0.1), "shaped: row 1 is nan"),
        (lambda: gaps.jarzynski_gap([], 0.1), "needs 1 samples"),
        (lambda: gaps.jarzynski_gap([0.0], -0.1), "beta: -0.1"),
        (lambda: gaps.cumulant_gap([0.0], 0.1), "needs 2 samples"),
        (lambda: gaps.kl_bernoulli(-0.1, 0.5), "p: row 0 is -0.1"),
        (lambda: gaps.kl_bernoulli(0.1, 1.5), "q: row 0 is 1.5"),
        (lambda: gaps.excess_kl([0.0, -np.inf]), "log_ratio_of_correct: row 1 is -inf"),
        (lambda: gaps.outside_mass([np.nan], 4), "log_ratio_of_correct: row 0 is nan"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
