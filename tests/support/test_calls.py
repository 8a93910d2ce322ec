"""Regimes, entries and exits, and how far two supports can agree."""

from itertools import product

import numpy as np
import pytest

from fe_posttrain.support.calls import (
    IN,
    OUT,
    UNKNOWN,
    Evidence,
    counts_by_regime,
    draws_for_exit,
    jaccard,
    membership,
    regimes,
    transitions,
)


def log_e(*values: float) -> np.ndarray:
    return np.log(np.array(values))


def test_each_regime_by_its_evidence():
    # five prompts: sure basin, sure tail, sure absence twice, nothing; 1e6 beats any threshold of e-BH
    big, none = 1e6, 1e-3
    evidence = Evidence(
        inside=log_e(big, big, none, none, 1.0),
        basin=log_e(big, none, none, none, 1.0),
        outside=log_e(none, none, big, big, 1.0),
    )
    assert membership(evidence).tolist() == [IN, IN, OUT, OUT, UNKNOWN]
    opened, singular = [None, None, "tool", None, "tool"], [False] * 4 + [True]
    assert regimes(evidence).tolist() == ["basin", "tail", "out", "out", "undetermined"]
    found = regimes(evidence, opened=opened, singular=singular)
    assert found.tolist() == ["basin", "tail", "barrier", "out", "singular"]
    assert counts_by_regime(found) == {
        "basin": 1, "tail": 1, "barrier": 1, "out": 1, "singular": 1, "undetermined": 0,
    }  # fmt: skip


def test_calls_wait_for_what_many_prompts_ask():
    # alone, 20 suffices at alpha .05; among ten prompts of which it is the only one, 200 is needed
    assert membership(Evidence(log_e(21.0), log_e(1.0), log_e(1.0))).tolist() == [IN]
    many = Evidence(log_e(21.0, *[1.0] * 9), log_e(*[1.0] * 10), log_e(*[1.0] * 10))
    assert not membership(many).any()


def test_counts_are_called_as_the_definitions_say():
    # B = 16: p* = .171. 60 of 64 is basin; 0 of 64 is out; 12 of 64 is neither.
    evidence = Evidence.of_counts([60, 0, 12], [64, 64, 64], 16)
    assert regimes(evidence).tolist() == ["basin", "out", "undetermined"]
    # B = 1024: p* = .0029, and a basin needs .1 for sure: 4 of 64 is tail
    assert regimes(Evidence.of_counts([4, 60], [64, 64], 1024)).tolist() == ["tail", "basin"]


def test_prompts_enter_above_the_threshold_and_leave_below_a_quarter_of_it():
    # B = 4: p* = .527, a quarter .132; 16 draws make exits testable
    assert draws_for_exit(4) == 16
    state = np.array([OUT, IN, IN, UNKNOWN])
    moved = transitions(state, [64, 0, 20, 64], 64, 4)  # 20 of 64 lies between .132 and .527
    assert moved.entered.tolist() == [0] and moved.left.tolist() == [1] and moved.exits_testable
    assert moved.state.tolist() == [IN, OUT, IN, IN]


def test_prompts_that_stay_in_do_not_pay_for_false_entries():
    # 400 prompts surely in, 24 out, one of which shows 47 of 64. Its likelihood at .734 is 324 times that at p*_4, so
    # its e-value is less. Over all 424, e >= 424/(.05 x 401) = 21 is enough; among the 24 it takes 24/.05 = 480.
    state, hits = np.repeat([IN, OUT], [400, 24]), np.repeat([64, 34], [400, 24])
    hits[-1] = 47
    assert membership(Evidence.of_counts(hits, 64, 4))[-1] == IN
    moved = transitions(state, hits, 64, 4)
    assert moved.entered.size == 0 and moved.state.tolist() == state.tolist()


def test_true_entries_and_exits_are_seen_beside_one_another():
    # B = 4: three enter, two leave, the rest stay; e-BH within a part costs no power where evidence is plain
    state = np.array([OUT] * 6 + [IN] * 6)
    hits = [64, 60, 62, 0, 1, 0, 0, 0, 60, 64, 63, 61]  # 0 of 64: e = .95 x .868^-64 = 8,000, and 60 is asked
    moved = transitions(state, hits, 64, 4)
    assert moved.entered.tolist() == [0, 1, 2] and moved.left.tolist() == [6, 7]
    assert moved.state.tolist() == [IN] * 3 + [OUT] * 3 + [OUT] * 2 + [IN] * 4


def test_an_exit_is_not_testable_with_few_draws():
    moved = transitions(np.array([IN]), [0], 64, 1024)
    assert draws_for_exit(1024) == 4096
    assert not moved.exits_testable and moved.left.size == 0 and moved.state.tolist() == [IN]


@pytest.mark.parametrize("prompts", [1, 2, 3])
def test_the_shared_part_is_bounded_over_all_ways_that_open_prompts_may_lie(prompts):
    states = [IN, OUT, UNKNOWN]
    for before, after in product(product(states, repeat=prompts), repeat=2):
        ways = []
        for way in product(*[[x] if x else [IN, OUT] for x in before + after]):
            a, b = np.array(way[:prompts]) == IN, np.array(way[prompts:]) == IN
            ways.append((a & b).sum() / (a | b).sum() if (a | b).any() else None)
        found = jaccard(np.array(before), np.array(after))
        if None in ways:
            assert found is None
        else:
            assert found == pytest.approx((min(ways), max(ways)))
