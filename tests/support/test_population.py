"""NPMLE: the optimality condition evaluated independently, known mixtures recovered, its stated bias."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from fe_posttrain.support.population import GRID, Population, npmle

P_64, P_1024 = 0.04573, 0.002921  # 1 - .05^(1/64), 1 - .05^(1/1024)


def counts(rng, p, draws):
    return rng.binomial(draws, p), np.broadcast_to(draws, np.shape(p))


@pytest.mark.parametrize("seed", range(3))
def test_no_candidate_raises_the_likelihood_further(seed):
    rng = np.random.default_rng(seed)
    draws = rng.choice([4, 16, 64], 90)
    correct, drawn = counts(rng, rng.beta(0.4, 1.2, 90), draws)
    found = npmle(correct, drawn)
    likelihood = binom.pmf(correct[:, None], drawn[:, None], found.p)
    derivative = (likelihood / (likelihood @ found.weight)[:, None]).mean(0)
    assert derivative.max() <= 1 + 1.01e-4
    assert found.weight @ derivative == pytest.approx(1, abs=1e-9)  # so it is 1 wherever there is weight
    assert found.weight.sum() == pytest.approx(1) and (found.weight >= 0).all()
    np.testing.assert_array_equal(found.p, GRID)


def test_the_likelihood_lacks_no_more_than_the_tolerance():
    # all prompts alike: the best law is one atom at 3/8, and the grid has it
    found = npmle([3] * 10, [8] * 10, grid=[0.0, 0.2, 0.375, 0.6, 1.0])
    fitted = np.log(binom.pmf(3, 8, found.p) @ found.weight)
    assert np.log(binom.pmf(3, 8, 0.375)) - 1e-4 <= fitted <= np.log(binom.pmf(3, 8, 0.375))


def test_two_kinds_of_prompts_are_told_apart():
    rng = np.random.default_rng(0)
    p = np.where(np.arange(600) < 180, 0.6, 0.02)
    found = npmle(*counts(rng, p, 64))
    np.testing.assert_allclose(found.cover([0.0, 0.1, 0.3, 0.8]), [1, 0.3, 0.3, 0], atol=0.02)
    np.testing.assert_allclose(found.quantile([0.4, 0.8]), [0.02, 0.6], rtol=0.25)


def test_a_beta_population_is_recovered_from_unequal_draws():
    rng = np.random.default_rng(1)
    p = rng.beta(0.5, 1.5, 3000)
    found = npmle(*counts(rng, p, rng.choice([32, 64, 200], 3000)))
    at = np.array([0.05, 0.1, 0.2, 0.4, 0.7])
    np.testing.assert_allclose(found.cover(at), beta(0.5, 1.5).sf(at), atol=0.05)
    assert found.weight @ found.p == pytest.approx(0.25, abs=0.02)
    shares = np.array([0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(found.quantile(shares), beta(0.5, 1.5).ppf(shares), atol=0.06)


@pytest.mark.parametrize(
    ("population", "draws", "threshold", "truth", "bias"),
    [
        (lambda rng: rng.beta(0.3, 1, 256), 16, P_1024, beta(0.3, 1).sf(P_1024), 0.01),
        (lambda rng: np.full(256, 0.05), 16, P_64, 1.0, -0.21),
        (lambda rng: np.where(np.arange(256) < 128, 0.5, 0.002), 16, P_1024, 0.5, 0.10),
        (lambda rng: np.where(np.arange(256) < 128, 0.9, 0.0), 16, P_1024, 0.5, 0.0),
    ],
)
def test_the_bias_of_cover_is_the_stated_one(population, draws, threshold, truth, bias):
    rng = np.random.default_rng(2)
    covers = [npmle(*counts(rng, population(rng), draws)).cover(threshold) for _ in range(16)]
    assert np.mean(covers) - truth == pytest.approx(bias, abs=3 * np.std(covers) / np.sqrt(16) + 0.012)


def test_extremes_stay_on_the_ends_of_the_grid():
    assert npmle([0] * 50, [4096] * 50).quantile(1.0) <= 1e-6
    assert npmle([64] * 50, [64] * 50).quantile(0.0) > 0.99
    half = npmle([0] * 50 + [64] * 50, [64] * 100)
    np.testing.assert_allclose(half.cover([0.3, 0.9]), [0.5, 0.5], atol=1e-3)


def test_prompts_without_draws_say_nothing():
    plain = npmle([1, 5, 0], [8, 8, 8])
    np.testing.assert_allclose(npmle([1, 5, 0, 0], [8, 8, 8, 0]).cover(0.2), plain.cover(0.2), atol=2e-3)


def test_cover_and_quantile_by_hand():
    law = Population(np.array([0.0, 0.1, 0.5, 1.0]), np.array([0.25, 0.0, 0.5, 0.25]))
    np.testing.assert_allclose(law.cover([[0.0, 1e-9], [0.5, 1.0]]), [[1, 0.75], [0.75, 0.25]])
    np.testing.assert_array_equal(law.quantile([0, 0.25, 0.26, 0.75, 0.76, 1]), [0, 0, 0.5, 0.5, 1, 1])
    assert law.cover(0.2).shape == () and law.quantile(0.5) == 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: npmle([1, 9], [8, 8]), "row 1: 9 correct of 8 drawn"),
        (lambda: npmle([0, 0], [0, 0]), "nothing was drawn"),
        (lambda: npmle([], []), "nothing was drawn"),
        (lambda: npmle([1], [2], grid=[0.0, 1.0]), "no p in it allows 1 correct of 2"),
        (lambda: npmle([1], [2], grid=[0.5, 0.2]), "not ascending"),
        (lambda: npmle([1], [2], grid=[0.5, 1.2]), "not ascending"),
        (lambda: npmle([1], [2]).quantile(1.2), "shares: 1.2"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
