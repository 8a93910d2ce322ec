"""BAR against pymbar, enumerated pairs of laws and an injected error; tails of weights whose index is known."""

import warnings

import numpy as np
import pytest

from fe_posttrain.support.bridges import Bar, bar, effective_sample_size, psis_khat

LETTERS = 24


def laws(kl_at_most: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two categorical laws, and the second so tempered towards the first that KL(second || first) is just below."""
    rng = np.random.default_rng(seed)
    reference, other = rng.dirichlet(np.ones(LETTERS), size=2)
    for mix in np.linspace(1, 0, 400):
        policy = reference ** (1 - mix) * other**mix
        policy /= policy.sum()
        if policy @ np.log(policy / reference) <= kl_at_most:
            return reference, policy
    raise AssertionError


def works(rng, reference, policy, n_r: int, n_t: int, added: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """ln pi - ln ref, with `added` on ln pi, of n_r draws of the reference and n_t of the policy."""
    work = np.log(policy) - np.log(reference) + added
    return work[rng.choice(LETTERS, n_r, p=reference)], work[rng.choice(LETTERS, n_t, p=policy)]


@pytest.mark.parametrize(("n_r", "n_t", "spread"), [(40, 40, 0.3), (500, 60, 1.0), (30, 900, 2.0), (1000, 1000, 3.0)])
def test_bar_is_pymbars(n_r, n_t, spread):
    from pymbar.other_estimators import bar as pymbar_bar

    rng = np.random.default_rng(n_r)
    reference, policy = rng.normal(-(spread**2) / 2, spread, n_r) + 0.3, rng.normal(spread**2 / 2, spread, n_t) + 0.3
    found = bar(reference, policy)
    # pymbar's work is an energy: minus our log-ratio forwards, plus it backwards; its df is minus our log-normaliser
    theirs = pymbar_bar(-reference, policy, relative_tolerance=1e-13, maximum_iterations=5000)
    assert found.df == pytest.approx(-theirs["Delta_f"], abs=1e-6)
    assert found.se == pytest.approx(theirs["dDelta_f"], abs=1e-6)


def test_bar_of_whole_enumerated_laws_is_the_constant_that_was_added():
    counts = np.array([[400, 300, 200, 100], [100, 200, 300, 400]])  # each law as a sample without noise
    work = np.log(counts[1] / counts[0])
    for c in (0.0, 0.7, -3.0):
        found = bar(np.repeat(work + c, counts[0]), np.repeat(work + c, counts[1]))
        assert found.df == pytest.approx(c, abs=1e-10)
    with_error_in_the_reference = np.repeat(work - 0.7, counts[0]), np.repeat(work - 0.7, counts[1])
    assert bar(*with_error_in_the_reference).df == pytest.approx(-0.7, abs=1e-10)


@pytest.mark.parametrize("kl", [0.05, 0.5])
def test_an_injected_tenth_of_a_nat_is_recovered(kl):
    reference, policy = laws(kl)
    rng = np.random.default_rng(1)
    runs = [bar(*works(rng, reference, policy, 1024, 1024, added=0.1)) for _ in range(200)]
    df, se = np.array([run.df for run in runs]), np.array([run.se for run in runs])
    assert df.mean() == pytest.approx(0.1, abs=0.01)
    assert (np.abs(df - 0.1) <= 3 * se).mean() >= 0.98
    assert df.std() == pytest.approx(se.mean(), rel=0.15)
    assert (se < 0.05).all()


def test_sound_log_probs_pass_and_wrong_ones_fail():
    reference, policy = laws(0.5)
    rng = np.random.default_rng(2)
    sound = [bar(*works(rng, reference, policy, 1024, 1024)).verdict for _ in range(100)]
    wrong = [bar(*works(rng, reference, policy, 1024, 1024, added=-0.3)).verdict for _ in range(20)]
    assert sound.count("passed") >= 99
    assert set(wrong) == {"failed"}


@pytest.mark.parametrize(
    ("df", "se", "verdict"),
    [
        (0.09, 0.01, "passed"),
        (-0.11, 0.01, "failed"),
        (0.19, 0.098, "passed"),
        (-0.2, 0.098, "failed"),
        (0.0, 0.11, "not checked"),
        (0.21, 0.11, "not checked"),
        (0.23, 0.11, "failed"),
        (0.0, np.inf, "not checked"),
        (9.0, np.inf, "not checked"),
        (0.0, np.nan, "not checked"),
    ],
)
def test_verdicts(df, se, verdict):
    assert Bar(df, se).verdict == verdict


def test_a_policy_that_never_moved_is_checked_exactly():
    assert bar(np.zeros(8), np.zeros(5)).verdict == "passed"
    assert bar(np.full(8, 0.2), np.full(5, 0.2)).df == pytest.approx(0.2, abs=1e-9)
    assert bar(np.full(8, 0.2), np.full(5, 0.2)).verdict == "failed"


def test_samples_that_do_not_meet_check_nothing():
    rng = np.random.default_rng(3)
    apart = bar(rng.normal(-2000, 50, 64), rng.normal(2500, 50, 64))
    assert apart.se == np.inf and apart.verdict == "not checked"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_work_that_is_no_number_is_named(bad):
    with pytest.raises(ValueError, match=r"policy_work: row 2 is .*mend"):
        bar([0.1, 0.2], [0.0, 0.1, bad, 0.3])
    with pytest.raises(ValueError, match=r"reference_work: row 0"):
        bar([bad], [0.0])
    with pytest.raises(ValueError, match=r"reference_work: no rows"):
        bar([], [0.0])


@pytest.mark.parametrize("index", [0.2, 0.5, 0.9, 1.4])
def test_khat_is_the_tail_index_of_a_pareto_law(index):
    rng = np.random.default_rng(4)
    log_weights = index * rng.exponential(size=(8, 40_000)) + 700  # w = u^-k, P(w > t) = t^(-1/k)
    assert np.mean([psis_khat(row) for row in log_weights]) == pytest.approx(index, abs=0.06)


def test_khat_where_no_tail_can_be_fitted():
    rng = np.random.default_rng(5)
    ties = np.log(np.array([0.5, 1.0, 3.0]))[rng.choice(3, 200, p=[0.5, 0.45, 0.05])]
    mostly_wrong = np.where(np.arange(100) < 96, -np.inf, rng.normal(size=100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert psis_khat(np.zeros(100)) == -np.inf
        assert np.isnan(psis_khat(rng.normal(size=24)))
        assert np.isnan(psis_khat(ties))
        assert np.isnan(psis_khat(mostly_wrong))
        assert np.isnan(psis_khat(np.full(50, -np.inf)))
        assert np.isfinite(psis_khat(rng.normal(size=25)))
        assert np.isfinite(psis_khat(np.where(np.arange(400) < 300, -np.inf, rng.normal(size=400))))


def test_effective_sample_size_by_hand():
    assert effective_sample_size(np.log([1.0, 2.0, 3.0])) == pytest.approx(36 / 14)
    assert effective_sample_size(np.log([1.0, 2.0, 3.0]) + 5000) == pytest.approx(36 / 14)
    assert effective_sample_size(np.log([1.0, 2.0, 3.0]) - 5000) == pytest.approx(36 / 14)
    assert effective_sample_size([-np.inf, 3.0, 3.0]) == pytest.approx(2)
    assert effective_sample_size([-np.inf, -np.inf]) == 0


@pytest.mark.parametrize("measure", [psis_khat, effective_sample_size])
def test_a_weight_that_is_no_number_is_named(measure):
    with pytest.raises(ValueError, match="row 1 is nan"):
        measure([0.0, np.nan, 1.0])
    with pytest.raises(ValueError, match="row 0 is inf"):
        measure([np.inf, 1.0])
