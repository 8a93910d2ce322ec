"""The density check against pymbar and enumeration; tails against laws of known index."""

import numpy as np
import pytest
from pymbar.other_estimators import bar as pymbar_bar

from fe_posttrain.support.bridges import Bar, bar, effective_sample_size, psis_khat


def two_laws(seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.dirichlet(np.ones(200))
    policy = reference * np.exp(spread * rng.normal(size=200))
    return reference, policy / policy.sum()


def draws(reference, policy, n: int, rng) -> tuple[np.ndarray, np.ndarray]:
    log_ratio = np.log(policy / reference)
    return tuple(log_ratio[rng.choice(len(law), n, p=law)] for law in (reference, policy))


@pytest.mark.parametrize(("n", "m"), [(300, 300), (100, 700)])
def test_it_is_pymbar_s_estimate_and_error(n, m):
    of_reference, of_policy = draws(*two_laws(0, 1.0), max(n, m), np.random.default_rng(1))
    found = bar(of_reference[:n], of_policy[:m])
    # pymbar takes works: u_policy - u_reference on reference draws, and back on policy draws
    theirs = pymbar_bar(-of_reference[:n], of_policy[:m])
    assert found.df == pytest.approx(-theirs["Delta_f"], abs=1e-6)
    assert found.se == pytest.approx(theirs["dDelta_f"], rel=0.02)


def test_an_injected_tenth_of_a_nat_is_recovered_and_normalised_laws_give_zero():
    reference, policy = two_laws(0, 0.8)
    assert (policy * np.log(policy / reference)).sum() <= 0.5  # KL
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.1):
        found = [bar(*(side + shift for side in draws(reference, policy, 1024, rng))) for _ in range(100)]
        values = np.array([one.df for one in found])
        assert values.mean() == pytest.approx(shift, abs=0.006)
        assert np.std(values) == pytest.approx(np.mean([one.se for one in found]), rel=0.25)
        assert (np.abs(values - shift) <= 3 * np.array([one.se for one in found])).mean() >= 0.97


@pytest.mark.parametrize(
    ("df", "se", "verdict"),
    [
        (0.05, 0.01, "passed"),  # beyond 2 se but below a tenth of a nat
        (0.15, 0.08, "passed"),
        (0.17, 0.08, "failed"),
        (0.15, 0.11, "not checked"),
        (0.3, 0.11, "failed"),
        (float("nan"), float("nan"), "not checked"),
    ],
)
def test_what_passes_fails_or_says_nothing(df, se, verdict):
    assert Bar(df, se).verdict == verdict


def test_numbers_that_are_none_are_named_by_their_row():
    with pytest.raises(ValueError, match=r"row 1 of the policy's draws"):
        bar([0.0, 0.1], [0.0, np.nan])
    with pytest.raises(ValueError, match="no draws of the reference"):
        bar([], [0.0])


def test_the_effective_sample_size_counts_equal_weights_fully_and_one_heavy_weight_once():
    assert effective_sample_size(np.full(50, -700.0)) == pytest.approx(50)
    assert effective_sample_size([0.0, -800.0, -800.0]) == pytest.approx(1)
    assert effective_sample_size(np.log([1.0, 2.0, 3.0])) == pytest.approx(36 / 14)


@pytest.mark.parametrize("k", [0.3, 0.9])
def test_the_tail_index_of_a_pareto_law_is_found(k):
    log_weights = -k * np.log(np.random.default_rng(0).random(20000))  # w = U^-k has tail index k
    assert psis_khat(log_weights) == pytest.approx(k, abs=0.1)
