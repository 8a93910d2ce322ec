"""The estimated distribution of p: optimal by Lindsay's condition, and near the truth with enough draws."""

import numpy as np
import pytest
from scipy.stats import binom

from fe_posttrain.support.population import grid, npmle


def test_no_grid_point_would_raise_the_likelihood():
    rng = np.random.default_rng(0)
    drawn = rng.choice([16, 64], size=200)
    hits = rng.binomial(drawn, rng.beta(0.3, 1.0, size=200))
    found = npmle(hits, drawn)
    likelihood = binom.pmf(hits[:, None], drawn[:, None], grid())
    slope = (likelihood / (likelihood @ found.weight)[:, None]).mean(0)
    assert slope.max() < 1.002
    assert found.weight.sum() == pytest.approx(1)


def test_two_kinds_of_prompts_are_told_apart():
    rng = np.random.default_rng(1)
    p = np.repeat([0.05, 0.9], [300, 700])
    found = npmle(rng.binomial(64, p), np.full(1000, 64))
    assert found.cover(0.5) == pytest.approx(0.7, abs=0.02)
    assert found.quantile([0.1, 0.2]) == pytest.approx([0.05, 0.05], abs=0.03)
    assert found.quantile(0.8) == pytest.approx(0.9, abs=0.04)


def test_quantiles_and_cover_of_a_given_law():
    from fe_posttrain.support.population import Population

    law = Population(np.array([0.0, 0.1, 0.5]), np.array([0.25, 0.25, 0.5]))
    assert law.cover(0.1) == 0.75 and law.cover(0.2) == 0.5
    assert law.quantile([0.25, 0.3, 0.5, 0.51]).tolist() == [0.0, 0.1, 0.1, 0.5]
