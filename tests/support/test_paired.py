"""The paired bootstrap: closed forms of its width, coverage in worlds whose truth is known, pairing."""

import numpy as np
import pytest
from scipy.stats import norm

from fe_posttrain.support import paired
from fe_posttrain.support.paired import Hits, bootstrap, paired_hits, paired_numbers, recovered_share, stretched


def spread(n: int, sd: float) -> np.ndarray:
    """n normal quantiles whose standard deviation (of all n) is sd, mean 0."""
    x = norm.ppf((np.arange(n) + 0.5) / n)
    return sd * (x - x.mean()) / x.std()


def half_width(found) -> float:
    return (found.high - found.low) / 2


def test_three_seeds_are_stretched_to_students_law():
    # t(.975, 2) = 4.3027, z(.975) = 1.9600; sqrt(3/2) = 1.2247
    assert stretched(3) == pytest.approx(1.2247 * 4.3027 / 1.9600, rel=1e-3)
    assert stretched(1) == 1.0


def test_one_number_a_seed_gives_students_interval():
    values = 5 + spread(25, 2.0)
    found = paired_numbers(values, np.zeros(25), replicates=5000)
    # t(.975, 24) = 2.0639; the usual s of 25 values has 24 below it
    assert found.value == pytest.approx(5)
    assert half_width(found) == pytest.approx(2.0639 * 2.0 * np.sqrt(25 / 24) / np.sqrt(25), rel=0.05)


@pytest.mark.parametrize(("of_seeds", "of_prompts"), [(1.0, 0.0), (0.0, 1.0), (0.3, 1.5), (1.0, 1.0)])
def test_width_on_two_levels_is_that_of_the_variance_of_a_mean(of_seeds, of_prompts):
    """Seeds and prompts add up, var = s_seeds^2/S + s_prompts^2/M: a prompt is the same one in every seed."""
    seeds, prompts = 60, 80
    table = spread(seeds, of_seeds)[:, None] + spread(prompts, of_prompts)[None, :]
    found = bootstrap(table, replicates=4000)
    t_of_59 = 2.0010
    expected = np.sqrt((t_of_59 * of_seeds) ** 2 / (seeds - 1) + (1.9600 * of_prompts) ** 2 / prompts)
    assert half_width(found) == pytest.approx(expected, rel=0.05)


def coverage(worlds: int, seeds: int, of_seeds: float) -> float:
    rng = np.random.default_rng(7)
    held = 0
    for i in range(worlds):
        noise = rng.normal(size=(seeds, 20))
        table = of_seeds * rng.normal(size=(seeds, 1)) + rng.normal(size=(1, 20)) + noise
        found = bootstrap(table, replicates=200, seed=i)
        held += found.low <= 0 <= found.high
    return held / worlds


def test_three_seeds_cover_the_truth_as_often_as_they_say(monkeypatch):
    assert 0.92 <= coverage(250, seeds=3, of_seeds=2.0)
    assert 0.92 <= coverage(150, seeds=3, of_seeds=0.0)
    monkeypatch.setattr(paired, "stretched", lambda seeds, level: 1.0)
    assert coverage(250, seeds=3, of_seeds=2.0) < 0.85  # what plain percentiles do


def test_counts_cover_the_true_difference():
    """Hits of two arms whose rates are known, up to a seed's own luck and the prompts that were picked."""
    rng = np.random.default_rng(3)
    held = 0
    for i in range(120):
        base = rng.uniform(0.2, 0.6, size=(1, 24))
        gain = 0.15 + 0.05 * rng.normal(size=(3, 1))
        hits = [rng.binomial(16, p) for p in (np.clip(base + gain, 0, 1), np.broadcast_to(base, (3, 24)))]
        found = paired_hits(*(Hits(c, np.full((3, 24), 16)) for c in hits), replicates=200, seed=i)
        held += found.low <= 0.15 <= found.high
    assert held >= 0.92 * 120


def test_equal_arms_differ_by_nothing_and_shifted_ones_by_the_shift():
    rng = np.random.default_rng(0)
    correct = rng.integers(0, 17, size=(3, 12))
    drawn = np.full((3, 12), 16)
    for k in (1, 8):
        found = paired_hits(Hits(correct, drawn, k), Hits(correct, drawn, k))
        assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    numbers = rng.normal(size=4)
    found = paired_numbers(numbers + 2.5, numbers)
    assert (found.low, found.high) == pytest.approx((2.5, 2.5))
    unpaired = bootstrap(rng.normal(size=(3, 12)) - rng.normal(size=(3, 12)))
    assert unpaired.high - unpaired.low > 0.5  # the zeros above are not what any table gives


@pytest.mark.parametrize("k", [1, 8, 16])
def test_drawing_again_is_right_on_average(k):
    correct = np.array([[0, 1, 4, 15, 16]])
    hits = Hits(correct, np.full((1, 5), 16), k)
    rng = np.random.default_rng(1)
    again = np.array([hits.again(rng.random((1, 5))) for _ in range(6000)])
    assert again.mean(0) == pytest.approx(hits.value, abs=0.02)
    if k == 1:
        rate = correct / 16
        assert again.var(0) == pytest.approx(rate * (1 - rate) / 16, rel=0.1, abs=1e-12)


def test_a_run_between_two_rounds_is_their_weighted_mean():
    correct = [[[2, 8]], [[4, 16]]]
    hits = Hits(correct, [[[8, 8]], [[16, 16]]], weights=[[0.25], [0.75]])
    # .25 * 2/8 + .75 * 4/16 = .25, .25 * 1 + .75 * 1 = 1
    assert hits.value == pytest.approx(np.array([[0.25, 1.0]]))


def test_pass_at_k_by_hand():
    # 1 hit in 4 draws: two of them miss it with probability C(3,2)/C(4,2) = 1/2
    assert Hits([[1]], [[4]], k=2).value == pytest.approx(np.array([[0.5]]))


def test_a_single_seed_knows_prompts_only():
    found = bootstrap(spread(100, 1.0)[None, :], replicates=4000)
    assert found.seeds == 1
    assert half_width(found) == pytest.approx(1.96 / 10, rel=0.05)


def test_other_seeds_or_prompts_cannot_be_paired():
    with pytest.raises(ValueError, match="the same on both sides"):
        paired_hits(Hits([[1, 2]], [[4, 4]]), Hits([[1]], [[4]]))
    with pytest.raises(ValueError, match="lower k"):
        Hits([[1]], [[4]], k=5)


def same(hits: list[int], draws: int, seeds: int = 3) -> Hits:
    return Hits(np.tile(hits, (seeds, 1)), np.full((seeds, len(hits)), draws))


def test_a_share_is_that_of_the_means():
    # prompts gain 48/64 and 16/64 in the other arm, 24/64 and 24/64 in this one: 48 of 64
    found = recovered_share(same([32, 32], 64), same([56, 24], 64), same([8, 8], 64, seeds=1))
    assert found.value == pytest.approx(6 / 8) and found.seeds == 3


def test_the_same_arm_recovers_all_of_it_in_every_replicate():
    """Seeds, prompts, samples and the reference are drawn once for both: the ratio stays 1."""
    rng = np.random.default_rng(2)
    arm = Hits(rng.integers(8, 17, size=(3, 10)), np.full((3, 10), 16))
    found = recovered_share(arm, arm, same([2] * 10, 16, seeds=1))
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


def test_the_width_of_a_share_is_that_of_the_delta_method():
    """Rates a and b over a start that is known: var of the share = var(a - share b) / mean(b)^2."""
    m, n = 200, 64
    rng = np.random.default_rng(5)
    arm, other = (Hits(rng.binomial(n, p, size=(1, m)), np.full((1, m), n)) for p in (0.5, 0.8))
    found = recovered_share(arm, other, same([0] * m, n, seeds=1), replicates=4000)
    rates = [side.value for side in (arm, other)]
    share = rates[0].mean() / rates[1].mean()
    residual = rates[0] - share * rates[1]  # over prompts; samples are drawn by the same uniform numbers in both
    of_prompts = residual.var() / m
    # comonotone samples: sd of the difference is the difference of sds
    sds = [np.sqrt(rate * (1 - rate) / n) for rate in rates]
    # a prompt that is picked c times brings the same samples c times: E[c^2] = 2 - 1/m
    of_samples = ((sds[0] - share * sds[1]) ** 2).mean() * (2 - 1 / m) / m
    expected = 1.96 * np.sqrt(of_prompts + of_samples) / rates[1].mean()
    assert found.value == pytest.approx(share)
    assert half_width(found) == pytest.approx(expected, rel=0.08)


def test_no_gain_has_no_share():
    assert recovered_share(same([4, 4], 8), same([1, 1], 8), same([1, 1], 8, seeds=1)) is None
    assert recovered_share(same([4, 4], 8), same([0, 0], 8), same([2, 1], 8, seeds=1)) is None


def test_the_interval_of_a_share_covers_the_truth():
    """Gains .2 and .4 of seeds that vary by themselves: the true share is .5."""
    rng, held = np.random.default_rng(11), 0
    for i in range(80):
        base = rng.uniform(0.1, 0.3, size=(1, 24))
        sides = [base + gain + 0.04 * rng.normal(size=(3, 1)) for gain in (0.2, 0.4)]
        arms = [Hits(rng.binomial(32, np.clip(p, 0, 1)), np.full((3, 24), 32)) for p in sides]
        reference = Hits(rng.binomial(64, base), np.full((1, 24), 64))
        found = recovered_share(*arms, reference, replicates=150, seed=i)
        held += found.low <= 0.5 <= found.high
    assert held >= 0.9 * 80


def test_a_share_needs_the_same_prompts():
    with pytest.raises(ValueError, match="one row of the reference"):
        recovered_share(same([4, 4], 8), same([4, 4], 8), same([1, 1], 8, seeds=3))
