"""The verdict: its identity, its halves, and bounds that hold in worlds whose p is known."""

import numpy as np
import pytest
from scipy.stats import beta

from fe_posttrain.support.verdict import Bounds, Halves, exact_points, verdict, verdict_of_counts

TERMS = ("elicited", "created", "lost")


def counts(p: np.ndarray, drawn: int, rng) -> tuple[np.ndarray, np.ndarray]:
    return rng.binomial(drawn, p), np.full(len(p), drawn)


def test_the_terms_add_up_and_undetermined_has_no_ends():
    rng = np.random.default_rng(0)
    before, after = np.repeat([0.9, 0.05, 1e-9], 20), np.repeat([0.7, 0.9, 0.8], 20)
    found = verdict_of_counts(counts(before, 512, rng), counts(after, 64, rng), budget=64)
    total = found.elicited.value + found.created.value + found.undetermined.value - found.lost.value
    assert found.gain.value == pytest.approx(total)
    assert found.undetermined.low is None and found.undetermined.high is None
    assert all(getattr(found, name).value == getattr(found, name).low > 0 for name in TERMS)


def test_halves_in_draw_order():
    halves = Halves.in_order([[1, 1, 0, 1, 1], [0, 0, 0, 1, 1]])
    assert halves.correct.tolist() == [[2, 0], [1, 1]] and halves.drawn == 2


def test_halves_of_counts_are_hypergeometric_with_equal_draws():
    found = np.array([Halves.of_counts([30, 10], [100, 40], seed).correct for seed in range(3000)])
    assert Halves.of_counts([30, 10], [100, 40]).drawn == 20
    # each half holds 20 of the 100 (40) draws at random: mean 6 (5), variance n K/N (1 - K/N) (N-n)/(N-1)
    assert found.mean(0) == pytest.approx(np.array([[6, 5], [6, 5]]), abs=0.15)
    variance = [20 * 0.3 * 0.7 * 80 / 99, 20 * 0.25 * 0.75 * 20 / 39]
    assert found[:, 0].var(0) == pytest.approx(variance, rel=0.1)


def by_definition(reference: np.ndarray, trained: np.ndarray, drawn: tuple[int, int], budget: int, low) -> dict:
    """The three lower bounds in points, prefix by prefix in plain Python, from hits (2, M) of each side's halves."""

    def least(hits: int, draws: int, level: float) -> float:
        return float(beta.ppf(level, hits, draws - hits + 1)) if hits else 0.0

    def most(hits: int, draws: int, level: float) -> float:
        return float(beta.ppf(1 - level, hits + 1, draws - hits)) if hits < draws else 1.0

    m, a, found = reference.shape[1], 0.05 / 3, {"created": [], "lost": [], "elicited": []}
    p_r, p_t = reference / drawn[0], trained / drawn[1]
    missed = (1 - np.asarray(low)) ** budget
    for choose, bound in ((0, 1), (1, 0)):
        score = {
            "created": [p_t[choose, x] - (1 - (1 - p_r[choose, x]) ** budget) for x in range(m)],
            "lost": [p_r[choose, x] - p_t[choose, x] for x in range(m)],
            "elicited": [p_t[choose, x] - p_r[choose, x] - missed[x] for x in range(m)],
        }
        for name in found:
            order, values = sorted(range(m), key=lambda x, s=score[name]: -s[x]), {0: [], 1: []}
            for size in range(1, m + 1):
                some, level = order[:size], a / (8 if name == "elicited" else 4)
                for half in (0, 1):
                    r, t = int(reference[half, some].sum()), int(trained[half, some].sum())
                    n_r, n_t = size * drawn[0], size * drawn[1]
                    values[half].append(size / m * {
                        "created": least(t, n_t, level) - 1 + (1 - most(r, n_r, level)) ** budget,
                        "lost": least(r, n_r, level) - most(t, n_t, level),
                        "elicited": least(t, n_t, level) - most(r, n_r, level) - float(np.mean(missed[some])),
                    }[name])  # fmt: skip
            found[name].append(max(0.0, values[bound][int(np.argmax(values[choose]))]))
    return {name: 100 * sum(values) / 2 for name, values in found.items()}


@pytest.mark.parametrize("seed", range(6))
def test_lower_bounds_are_their_definition(seed):
    rng = np.random.default_rng(seed)
    before, after = np.repeat([0.8, 0.2, 1e-9], 4), np.repeat([0.2, 0.9, 0.9], 4)
    reference, trained = rng.binomial(256, before, (2, 12)), rng.binomial(64, after, (2, 12))
    low = rng.random(12) * before
    anything = Bounds(np.zeros(12), np.ones(12))
    found = verdict(
        Halves(reference, 256),
        Halves(trained, 64),
        budget=16,
        reference_bounds=anything,
        trained_bounds=anything,
        reference_low=low,
    )
    expected = by_definition(reference, trained, (256, 64), 16, low)
    assert min(expected.values()) > 1
    assert {name: getattr(found, name).low for name in TERMS} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("budget", [1, 4, 64])
def test_upper_ends_are_the_largest_term_in_the_box(budget):
    rng = np.random.default_rng(budget)
    ends = np.sort(rng.random((2, 2, 8)) ** 2, axis=1)  # (side, end, prompt)
    sides = [Bounds(low, high) for low, high in ends]
    halves = Halves(np.zeros((2, 8), dtype=int), 1)  # nothing certified: every low is 0
    found = verdict(
        halves, halves, budget=budget, reference_bounds=sides[0], trained_bounds=sides[1], reference_low=np.zeros(8)
    )
    grids = [np.linspace(*side, 801) for side in ends]
    reference, trained = grids[0][:, None], grids[1][None]
    reached = 1 - (1 - reference) ** budget
    largest = {
        "elicited": np.minimum(np.maximum(trained - reference, 0), reached - reference),
        "created": np.maximum(trained - reached, 0),
        "lost": np.maximum(reference - trained, 0),
    }
    for name, values in largest.items():
        exactly = 100 * values.max((0, 1)).mean()
        assert exactly - 1e-9 <= getattr(found, name).high  # never below what is possible
        if name != "elicited":
            assert getattr(found, name).high == pytest.approx(exactly)


def test_unequal_draws_use_as_many_of_each_as_the_poorest_has():
    found = verdict_of_counts(([90, 5], [100, 11]), ([20, 19], [20, 21]), budget=4)
    assert found.prompts == 2
    halves = Halves.of_counts([90, 5], [100, 11])
    assert halves.drawn == 5 and (halves.correct <= 5).all()
    all_right = Halves.of_counts([100, 11], [100, 11])
    assert (all_right.correct == 5).all()


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_side_with_fewer_than_two_draws_is_refused(drawn):
    with pytest.raises(ValueError, match="two draws or more"):
        verdict_of_counts(([3, 0], [8, drawn]), ([1, 2], [4, 4]), budget=4)


@pytest.mark.parametrize("budget", [16, 256])
def test_bounds_hold_in_worlds_whose_p_is_known(budget):
    rng, wrong = np.random.default_rng(budget), 0
    for seed in range(60):
        m = int(rng.integers(10, 60))
        before = 10.0 ** rng.uniform(-6, 0, size=m)
        after = np.where(rng.random(m) < 0.5, rng.random(m), before)
        found = verdict_of_counts(counts(before, 256, rng), counts(after, 64, rng), budget=budget, seed=seed)
        points = exact_points(before, after, budget)
        wrong += any(not getattr(found, t).low <= points[t] <= getattr(found, t).high for t in TERMS)
    assert wrong <= 7  # nominal 3 of 60; more than 7 at .05 has probability .011


def test_a_world_without_change_certifies_nothing():
    rng = np.random.default_rng(1)
    p = np.repeat([0.99, 0.3, 0.02, 1e-9], 25)
    found = [verdict_of_counts(counts(p, 256, rng), counts(p, 64, rng), budget=64, seed=i) for i in range(50)]
    assert sum(getattr(v, t).low > 0 for v in found for t in TERMS) <= 3


def test_creation_is_certified_where_there_are_draws_enough():
    before, after = np.full(32, 1e-9), np.full(32, 0.95)
    rng = np.random.default_rng(2)
    found = verdict_of_counts(counts(before, 1024, rng), counts(after, 64, rng), budget=256)
    assert found.created.low >= 0.8 * 95 and found.elicited.low == 0
    poor = verdict_of_counts(counts(before, 64, rng), counts(after, 64, rng), budget=1024)
    assert poor.created.low < 5 and poor.created.high > 90  # nothing denied


def test_creation_may_rest_on_deeper_draws_of_prompts_chosen_beforehand():
    rng, m = np.random.default_rng(3), 30
    before, after = np.repeat([0.9, 1e-9], 15), np.repeat([0.9, 0.9], 15)
    reference, trained = (Halves.of_counts(*counts(p, 64, rng)) for p in (before, after))
    everything = Bounds(np.zeros(m), np.ones(m))
    common = {
        "budget": 64,
        "reference_bounds": everything,
        "trained_bounds": everything,
        "reference_low": np.zeros(m),
    }
    shallow = verdict(reference, trained, **common)
    deep = Halves.of_counts(*counts(before[15:], 2048, rng))
    deeper = verdict(reference, trained, **common, deep=deep, deep_prompts=np.arange(15, 30))
    assert shallow.created.low < deeper.created.low <= 45
    assert deeper.created.low > 38  # exact: 45 points
    none = Halves(np.zeros((2, 0), dtype=int), 0)
    assert verdict(reference, trained, **common, deep=none, deep_prompts=np.arange(0)).created.low == 0


def test_sides_of_different_prompts_are_refused():
    with pytest.raises(ValueError, match="same prompts"):
        verdict_of_counts(([1, 2], [4, 4]), ([1], [4]), budget=4)
