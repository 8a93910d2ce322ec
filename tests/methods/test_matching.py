"""Equal rollouts and equal KL, by hand."""

import pytest
from fake_runs import report, run

from fe_posttrain.methods.matching import at_kl, common_kl, generated_match, hits_at_kl


def path(*rounds: tuple[float, int]):
    """A run of one prompt: KL and hits of 8 at each round; the reference has one of 8."""
    return run(*(report(i, kl, [hits], screened=[1]) for i, (kl, hits) in enumerate(rounds, 1)))


def paid(tokens: float, calls: float = 100):
    return run(report(1, 0.5, [4]), account={"generated_tokens": tokens, "verifier_calls": calls})


@pytest.mark.parametrize(
    ("kl", "success"),
    [
        (0.0, 0.125),
        (0.2, 0.5 * 0.125 + 0.5 * 0.5),
        (0.4, 0.5),
        (0.55, 0.75 * 0.5 + 0.25 * 1.0),
        (1.0, 1.0),
    ],
)
def test_success_is_linear_in_kl_between_rounds(kl, success):
    one = path((0.4, 4), (1.0, 8))
    assert at_kl(one, kl).success == pytest.approx(success)
    assert float(hits_at_kl([one], kl).value.mean()) == pytest.approx(success)


def test_where_a_run_comes_back_its_first_passage_counts():
    # up to .4 (.5), back to .2 (.25), up to .6 (1): at .3 it first is three quarters of the way from .125 to .5
    assert at_kl(path((0.4, 4), (0.2, 2), (0.6, 8)), 0.3).success == pytest.approx(0.25 * 0.125 + 0.75 * 0.5)
    # beyond .4 only the last stretch, .2 -> .6, passes .5
    assert at_kl(path((0.4, 4), (0.2, 2), (0.6, 8)), 0.5).success == pytest.approx(0.25 * 0.25 + 0.75 * 1.0)


def test_nothing_is_extrapolated():
    with pytest.raises(ValueError, match=r"beyond the 1 nats"):
        at_kl(path((0.4, 4), (1.0, 8)), 1.01)


def test_the_common_kl_is_the_largest_that_all_reach():
    assert common_kl([path((0.4, 4), (1.0, 8)), path((0.7, 4), (0.3, 8))]) == pytest.approx(0.7)
    assert common_kl([path((0.4, 4)), path((0.0, 1))]) is None
    assert common_kl([path((0.4, 4)), path((-0.02, 1))]) is None  # an estimate around 0


@pytest.mark.parametrize(
    ("mine", "theirs", "holds", "difference"),
    [
        ((1000, 100), (1000, 100), True, 0.0),
        ((1000, 100), (1019, 100), True, -0.0186),
        ((1000, 100), (1025, 100), False, -0.0244),
        ((1025, 100), (1000, 100), False, 0.025),
        ((0, 0), (0, 0), True, 0.0),
        ((1000, 100), (0, 0), False, None),
        ((0, 0), (1000, 100), False, -1.0),
    ],
)
def test_rollouts_match_within_two_percent(mine, theirs, holds, difference):
    found = generated_match({0: paid(*mine)}, {0: paid(*theirs)})
    assert found["holds"] is holds
    if difference is None:
        assert found["differences"]["generated_tokens"] is None
    else:
        assert found["differences"]["generated_tokens"] == pytest.approx(difference, abs=1e-4)


def test_the_worst_seed_decides_and_is_told():
    arm = {0: paid(1000, 100), 1: paid(1000, 100), 2: paid(7, 7)}
    other = {0: paid(1000, 100), 1: paid(1000, 160)}  # seed 2 is not there to compare with
    found = generated_match(arm, other)
    assert not found["holds"]
    assert found["why"] == "verifier calls 100 against 160 (-37.5 %)"
    assert found["differences"]["generated_tokens"] == 0.0
