"""The ledger against a plain loop, exact expectations, and what must never happen."""

import itertools
import math

import numpy as np
import pytest

from fe_posttrain.support.budgets import threshold
from fe_posttrain.support.ledger import Ledger, levels


def plain_wealth(steps: list[list[tuple[bool, float]]], p0: float, kappa: float) -> float:
    """Wealth of one prompt by the definition: `steps` of (correct, weight)."""
    wealth, c, n = 1.0, 0, 0
    for rows in steps:
        lam = kappa * (c + 0.5) / (n + 1)
        for correct, weight in rows:
            wealth *= 1 - lam + lam * (weight if correct else 0.0) / p0
        c, n = c + sum(correct for correct, _ in rows), n + len(rows)
    return wealth


def test_wealth_is_its_definition_for_prompts_that_come_and_go():
    rng = np.random.default_rng(0)
    ledger, steps = Ledger(3, 1024), {0: [], 1: [], 2: []}
    for _ in range(6):
        prompt = rng.integers(0, 3, size=10)
        correct, log_weight = rng.random(10) < 0.5, rng.normal(-2, 1, size=10)
        ledger.update(prompt, correct, log_weight)
        for i in np.unique(prompt):
            mine = prompt == i
            steps[i].append([(bool(a), math.exp(b)) for a, b in zip(correct[mine], log_weight[mine], strict=True)])
    for i in range(3):
        for j, p0 in enumerate(ledger.levels):
            expected = np.mean([plain_wealth(steps[i], p0, kappa) for kappa in (0.25, 0.5, 0.9)])
            assert ledger.log_e()[i, j] == pytest.approx(math.log(expected), abs=1e-3)
    assert ledger.drawn.tolist() == [sum(map(len, steps[i])) for i in range(3)]


def test_expected_wealth_is_one_at_p_ref_although_the_policy_learns_from_the_very_rows():
    # Three completions, the first correct; two draws, then the policy moves to what was seen, then two more.
    reference, correct = np.array([0.1, 0.3, 0.6]), np.array([True, False, False])
    ledger_levels = levels(1024)
    j = int(np.argmin(np.abs(ledger_levels - 0.1)))  # p_ref is a level
    first, total = np.array([0.3, 0.3, 0.4]), 0.0
    for y in itertools.product(range(3), repeat=2):
        seen = correct[list(y)].sum()
        second = np.array([[0.1, 0.2, 0.7], [0.5, 0.4, 0.1], [0.9, 0.05, 0.05]][seen])
        for z in itertools.product(range(3), repeat=2):
            ledger = Ledger(1, 1024)
            for rows, policy in ((y, first), (z, second)):
                rows = list(rows)
                ledger.update([0, 0], correct[rows], np.log(reference[rows] / policy[rows]))
            total += first[list(y)].prod() * second[list(z)].prod() * math.exp(ledger.log_e()[0, j])
    assert total == pytest.approx(1, abs=1e-5)


def test_a_reward_that_failed_is_a_wrong_row_and_its_weight_is_never_read():
    one, other = Ledger(1, 1024), Ledger(1, 1024)
    one.update([0] * 3, [1.0, np.nan, 0.0], [-1.0, np.nan, np.inf])
    other.update([0] * 3, [1.0, 0.0, 0.0], [-1.0, 5.0, 5.0])
    assert (one.log_wealth == other.log_wealth).all() and one.correct == other.correct == 1


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_a_correct_row_without_a_weight_is_named_and_nothing_is_entered(weight):
    ledger = Ledger(2, 1024)
    with pytest.raises(ValueError, match="row 1"):
        ledger.update([0, 1], [1, 1], [0.0, weight])
    assert not ledger.log_wealth.any() and not ledger.drawn.any()


def test_it_certifies_what_the_reference_does_often_and_keeps_what_it_certified():
    ledger, rng = Ledger(1, 1024), np.random.default_rng(0)
    for _ in range(40):  # policy = reference at p = .5: weights are 1
        ledger.update([0] * 8, rng.random(8) < 0.5, np.zeros(8))
    bound = ledger.lower_bound()[0]
    assert threshold(16) <= bound <= 0.5
    for _ in range(200):  # the policy unlearns it: wealth falls, the bound stays
        ledger.update([0] * 8, np.zeros(8), np.zeros(8))
    assert ledger.lower_bound()[0] == bound
    assert ledger.lower_bound(0.05)[0] < bound  # at a level asked for now, wealth of now decides


def test_feeding_only_correct_rows_breaks_the_bound():
    rng, broken, honest = np.random.default_rng(0), 0, 0
    for _ in range(60):
        right, everything = Ledger(1, 1024), Ledger(1, 1024)
        for _ in range(10):
            hits = rng.random(16) < 0.1  # policy = reference, p_ref = .1
            everything.update([0] * 16, hits, np.zeros(16))
            if hits.any():
                right.update([0] * hits.sum(), np.ones(hits.sum()), np.zeros(hits.sum()))
        broken += right.lower_bound()[0] > 0.1 + 1e-12
        honest += everything.lower_bound()[0] > 0.1 + 1e-12
    assert honest <= 6 and broken > 30


def test_two_e_values_of_one_hypothesis_average_to_one():
    ledger = Ledger(2, 1024)
    ledger.update([0, 1], [1, 0], [3.0, 0.0])
    p0 = float(threshold(1024))
    both = ledger.log_combined([0.0, np.log(9.0)], p0)
    assert np.exp(both) == pytest.approx((np.exp(ledger.log_e_at(p0)) + np.array([1.0, 9.0])) / 2)


def test_levels_hold_the_ladder_and_a_prompt_takes_at_most_256_bytes():
    ledger = Ledger(1000, 1024)
    for p0 in [*threshold([4, 16, 64, 256, 1024, 4096]), 0.1, 1e-9, 3e-4]:
        assert np.isclose(ledger.levels, p0, rtol=1e-9, atol=0).any()
    assert ledger.bytes_per_prompt <= 256 - 8  # beside the 64-bit name of a prompt


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (([0, -1], [1, 1], [0.0, 0.0]), "row 1: prompt -1"),  # would be the last prompt's
        (([2, 0], [1, 1], [0.0, 0.0]), "row 0: prompt 2"),
        (([0], [1], [0.0, 5.0]), "shapes"),
        (([0, 1], [1], [0.0, 0.0]), "shapes"),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_entered(rows, said):
    ledger = Ledger(2, 1024)
    with pytest.raises(ValueError, match=said):
        ledger.update(*rows)
    assert not ledger.log_wealth.any() and not ledger.drawn.any()


def test_a_step_without_rows_changes_nothing():
    ledger = Ledger(2, 1024)
    ledger.update([], [], [])
    assert not ledger.log_wealth.any() and not ledger.drawn.any()


def test_a_reference_that_cannot_write_it_counts_as_wrong():
    one, other = Ledger(1, 1024), Ledger(1, 1024)
    one.update([0, 0], [1, 0], [-np.inf, 0.0])  # ref(y) = 0: X = 0, though the row was correct
    other.update([0, 0], [0, 0], [0.0, 0.0])
    assert one.log_wealth == pytest.approx(other.log_wealth)
    assert one.correct == 1 and other.correct == 0


def test_an_e_value_is_given_for_levels_only():
    with pytest.raises(ValueError, match=r"0\.05 is no level"):
        Ledger(1, 1024).log_e_at(0.05)


@pytest.mark.parametrize(("mine", "theirs"), [((16384, 0.05), (65536, 0.05)), ((1024, 0.5), (1024, 0.05))])
def test_wealth_against_other_levels_is_not_taken_back(mine, theirs):
    one, other = Ledger(1, *theirs), Ledger(1, *mine)
    assert one.levels.shape == other.levels.shape  # shapes alone do not tell them apart
    one.update([0], [1], [3.0])
    with pytest.raises(ValueError, match="budget or delta have changed"):
        other.load_state(one.state())
    assert not other.log_wealth.any() and not other.drawn.any()


def test_its_state_goes_to_a_checkpoint_and_back():
    one, other = Ledger(4, 1024), Ledger(4, 1024)
    one.update([0, 2], [1, 1], [2.0, 1.0])
    other.load_state({name: value.copy() for name, value in one.state().items()})
    assert all((value == other.state()[name]).all() for name, value in one.state().items())
    with pytest.raises(ValueError, match="prompts or budget have changed"):
        Ledger(5, 1024).load_state(one.state())
