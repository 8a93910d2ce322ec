"""From rounds to a report: what counts as checked, and how families are weighed."""

import numpy as np
import pytest
from datasets import Dataset

from fe_posttrain.support.displacement import Closure
from fe_posttrain.tracking.reporting import (
    _bar_check,
    _closure_check,
    _floor_check,
    in_brief,
    mean_over_prompts,
    training_shares,
)


@pytest.mark.parametrize(
    ("value", "se", "verdict"),
    [
        (0.2, 0.1, "passed"),
        (-0.29, 0.05, "passed"),  # beyond 3 se, within .3 nats
        (0.31, 0.1, "failed"),
        (0.31, 0.11, "passed"),
        (0.9, 0.5, "not checked"),  # it may be anything
        (2.0, 0.5, "failed"),
        (0.1, float("inf"), "not checked"),
    ],
)
def test_a_closure_passes_only_where_it_could_have_failed(value, se, verdict):
    assert _closure_check(Closure(value, se))["verdict"] == verdict


def test_a_check_says_why():
    assert _bar_check({"df": 0.31, "se": 0.04, "verdict": "failed"})["why"] == "+0.31 nats, SE 0.04"
    assert _bar_check({"df": 3.0, "se": None, "verdict": "not checked"})["why"] == "the draws of the two do not meet"
    assert _floor_check(0.2)["verdict"] == "failed" and _floor_check(0.01)["verdict"] == "passed"
    assert _floor_check(float("nan")) == {"verdict": "not checked", "rate": None}


def test_a_line_about_a_probe_claims_no_more_than_the_bounds():
    terms = {"gain": {"value": 37.96}, "elicited": {"low": 28.38}, "created": {"low": 0.06}, "lost": {"low": 0.0}}
    brief = in_brief({"verdict": terms, "key": {"budget": 64}})
    assert brief == "gain +38.0 points, elicited >= 28.3, created >= 0.06, lost >= 0.0 at B = 64"


def test_families_count_among_probes_as_they_do_among_training_prompts():
    probes = [{"prompt": str(i), "family": name} for i, name in enumerate(["a", "a", "a", "b", "c"])]
    data = Dataset.from_dict({"prompt": list("wxyz"), "family": ["a", "b", "b", "b"]})
    weight = training_shares(probes, data, "family")
    # a: a quarter of the training prompts on three probes, b: three quarters on one, c: never trained on
    assert weight == pytest.approx(np.array([0.25 / 3] * 3 + [0.75, 0.0]) * 5)
    assert training_shares(probes, data, "no such column").tolist() == [1.0] * 5
    mean, _ = mean_over_prompts(np.array([0.3, 0.6, 0.9, 0.2, 1.0]), weight)
    assert mean == pytest.approx(0.25 * 0.6 + 0.75 * 0.2)


def test_the_error_of_a_mean_over_prompts_is_that_of_their_spread():
    rng = np.random.default_rng(0)
    p = rng.random((4000, 40))
    found = [mean_over_prompts(row, np.ones(40)) for row in p]
    assert np.mean([se for _, se in found]) == pytest.approx(np.std([mean for mean, _ in found]), rel=0.05)
