"""The verdict rule: every condition is needed, and one that was not checked does not hold."""

import pytest
from fake_runs import report, run

from fe_posttrain.methods.rule import BEYOND, CONSISTENT, UNDETERMINED, conclude

ROLES = {
    "mine": "method",
    "once": "control",
    "iterated": "control",
    "luck": "negative",
    "shown": "positive",
    "start": "base",
}


def seeds(created: float | list[float] = 0.0, elicited: float = 0.0, account: dict | None = None, **how):
    """Three seeds; `created` and `elicited`: certified points."""
    values = created if isinstance(created, list) else [created] * 3
    return {
        i: run(report(1, 0.5, [4, 4], lows={"created": value, "elicited": elicited}, **how), account=account)
        for i, value in enumerate(values)
    }


def world(**changed):
    """A world in which everything holds, but for what is changed; None takes an arm out."""
    arms = {
        "mine": seeds([20.0, 22.0, 21.0], elicited=5.0),
        "once": seeds(1.0),
        "iterated": seeds(2.0),
        "luck": seeds(0.0),
        "shown": seeds(30.0),
        "start": seeds(0.0),
    } | changed
    return {label: runs for label, runs in arms.items() if runs is not None}


def judged(**changed):
    return conclude("mine", world(**changed), ROLES)


def test_all_conditions_together_go_beyond_elicitation():
    found = judged()
    assert [condition["holds"] for condition in found["conditions"]] == [True] * 6
    assert found["conclusion"] == BEYOND
    assert found["budget"] == [16]


CASES = {
    "nothing certified": ({"mine": seeds(0.0, elicited=5.0)}, 0, False, CONSISTENT),
    "nothing certified, nothing elicited": ({"mine": seeds(0.0)}, 0, False, UNDETERMINED),
    "one seed without": ({"mine": seeds([20.0, 0.0, 21.0], elicited=5.0)}, 0, False, UNDETERMINED),
    # 1601 calls over 10 prompts: 160.1 rollouts of a prompt, more than B = 16
    "B below the rollouts": (
        {"mine": seeds([20.0, 22.0, 21.0], account={"verifier_calls": 1601})},
        1,
        False,
        UNDETERMINED,
    ),
    "a control does as much": ({"iterated": seeds([20.0, 22.5, 20.5])}, 2, False, UNDETERMINED),
    "larger, but not surely": ({"iterated": seeds([0.0, 21.0, 1.0])}, 2, False, UNDETERMINED),
    "one control": ({"iterated": None}, 2, None, UNDETERMINED),
    "no control": ({"once": None, "iterated": None}, 2, None, UNDETERMINED),
    "a control at another B": ({"once": seeds(1.0, budget=64)}, 2, None, UNDETERMINED),
    "a loud negative control": ({"luck": seeds([0.0, 0.0, 0.3])}, 3, False, UNDETERMINED),
    "no negative control": ({"luck": None}, 3, None, UNDETERMINED),
    "the positive control missed once": ({"shown": seeds([30.0, 0.0, 30.0])}, 4, False, UNDETERMINED),
    "no positive control": ({"shown": None}, 4, None, UNDETERMINED),
    # Two prompts of two are IN: at most .05 a prompt can be created there, 5 points; 4 are certified.
    "prompts within reach can bear it": (
        {"mine": seeds(4.0, regimes=["tail", "tail"])},
        5,
        False,
        UNDETERMINED,
    ),
    "the density check failed": ({"mine": seeds(20.0, bar="failed")}, 5, None, UNDETERMINED),
    "no density check": ({"mine": seeds(20.0, bar="not checked")}, 5, None, UNDETERMINED),
}


@pytest.mark.parametrize("name", CASES)
def test_each_condition_is_needed(name):
    changed, broken, holds, conclusion = CASES[name]
    found = judged(**changed)
    assert found["conditions"][broken]["holds"] is holds
    assert found["conclusion"] == conclusion
    assert found["conditions"][broken]["why"]
    others = [condition["holds"] for i, condition in enumerate(found["conditions"]) if i != broken]
    if "certified" not in name and "seed" not in name:  # without creation other conditions fall with the first
        assert others == [True] * 5


def test_what_prompts_within_reach_can_bear():
    # One of two is IN: 2.5 points. A basin prompt bears (1 - .171)^16 = .05 at B = 16, where p* = 1 - .05^(1/16).
    for regimes in (["tail", "out"], ["basin", "undetermined"]):
        assert judged(mine=seeds(2.4, regimes=regimes))["conditions"][5]["holds"] is False
        assert judged(mine=seeds(2.6, regimes=regimes))["conditions"][5]["holds"] is True
    # At B = 64 a basin prompt bears .9^64 = .0012, p* being .046: .06 points for one of two.
    low, high = (seeds(points, regimes=["basin", "out"], budget=64) for points in (0.05, 0.07))
    assert judged(mine=low)["conditions"][5]["holds"] is False
    assert judged(mine=high)["conditions"][5]["holds"] is True


def test_a_run_that_generates_nothing_drew_nothing_of_a_prompt():
    quiet = seeds(20.0, account={"verifier_calls": 0})
    assert judged(mine=quiet)["conditions"][1]["holds"] is True
    unknown = {0: run(report(1, 0.5, [4], lows={"created": 9.0}), support={"ledger": {}})}
    assert judged(mine=unknown)["conditions"][1]["holds"] is None


def test_no_verdict_ever_denies_creation():
    texts = [judged(**changed) for changed, *_ in CASES.values()]
    assert not any("no creation" in found["conclusion"] for found in texts)
