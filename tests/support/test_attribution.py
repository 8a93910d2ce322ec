"""The split of a gain against the definition, prompt by prompt."""

import numpy as np
import pytest

from fe_posttrain.support.attribution import LARGEST, attributed_share, half_gain_budget, terms


def test_one_prompt_by_hand():
    # c_2(.1) = .19: of the rise from .1 to .5, .09 were within two draws and .31 beyond.
    found = terms([0.1], [0.5], 2)
    assert (found.gain, found.elicited, found.created, found.lost) == pytest.approx((0.4, 0.09, 0.31, 0.0))
    assert terms([0.5], [0.2], 2).lost == pytest.approx(0.3)


def test_the_terms_add_up_for_any_prompts_and_budget():
    rng = np.random.default_rng(0)
    before, after = rng.random(50) ** 4, rng.random(50)
    for budget in (1, 4, 1024):
        found = terms(before, after, budget)
        assert found.gain == pytest.approx(found.elicited + found.created - found.lost)
    assert terms(before, after, 1).elicited == pytest.approx(0)  # one draw is the reference itself


def test_the_share_grows_with_the_budget_and_is_undefined_without_a_gain():
    shares = [attributed_share([0.01, 1e-6], [0.9, 0.9], b) for b in (1, 16, 256, 4096)]
    assert shares == sorted(shares)
    assert attributed_share([0.5], [0.4], 16) is None and half_gain_budget([0.5], [0.4]) is None


@pytest.mark.parametrize(("before", "after"), [([0.01], [0.8]), ([0.3, 0.001], [0.9, 0.5])])
def test_the_half_gain_budget_is_the_first_one_by_brute_force(before, after):
    first = next(b for b in range(1, 5000) if attributed_share(before, after, b) >= 0.5)
    assert half_gain_budget(before, after) == first


def test_creation_at_every_budget_has_no_half_gain_budget():
    assert half_gain_budget([1e-12], [0.9]) is None and attributed_share([1e-12], [0.9], LARGEST) < 0.5
