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


def test_an_exit_is_not_testable_with_few_draws():
    moved = transitions(np.array([IN]), [0], 64, 1024)
    assert draws_for_exit(1024) == 4096
    assert not moved.exits_testable and moved.left.size == 0 and moved.state.tolist() == [IN]


def test_the_shared_part_is_bounded_over_all_ways_that_open_prompts_may_lie():
    states = [IN, OUT, UNKNOWN]
    for before in product(states, repeat=3):
        for after in [(IN, OUT, UNKNOWN), (UNKNOWN, UNKNOWN, OUT), (OUT, OUT, UNKNOWN)]:
            ways = []
            for way in product(*[[x] if x else [IN, OUT] for x in before + after]):
                a, b = np.array(way[:3]) == IN, np.array(way[3:]) == IN
                ways.append((a & b).sum() / (a | b).sum() if (a | b).any() else None)
            found = jaccard(np.array(before), np.array(after))
            if None in ways:
                assert found is None
            else:
                assert found == pytest.approx((min(ways), max(ways)))
