"""Weights over a run: ends, middle, warm-up, shares, what is refused."""

import pytest

from fe_posttrain.theory.schedules import SCHEDULES, scheduled

COSINE_EIGHTH = 0.8535533905932737  # (1 + cos 45 degrees) / 2


def _settings(kind):
    return {
        "constant": {},
        "switch": {"kind": "switch", "final": 0.0, "until": 2},
        "linear": {"kind": "linear", "final": 0.0},
        "cosine": {"kind": "cosine", "final": 0.0},
    }[kind]


@pytest.mark.parametrize(
    ("kind", "step", "expected"),
    [
        ("constant", 0, 0.4),
        ("constant", 1000, 0.4),
        ("switch", 0, 0.4),
        ("switch", 1, 0.4),
        ("switch", 2, 0.0),
        ("switch", 99, 0.0),
        ("linear", 0, 0.4),
        ("linear", 1, 0.3),
        ("linear", 2, 0.2),
        ("linear", 4, 0.0),
        ("linear", 99, 0.0),
        ("cosine", 0, 0.4),
        ("cosine", 1, 0.4 * COSINE_EIGHTH),
        ("cosine", 2, 0.2),
        ("cosine", 4, 0.0),
        ("cosine", 5, 0.0),
    ],
)
def test_five_steps_from_point_four_to_zero(kind, step, expected):
    assert scheduled(step, 5, value=0.4, **_settings(kind)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_ends_are_exact_and_a_weight_may_rise(kind):
    values = [scheduled(step, 7, value=0.1, final=0.3, kind=kind) for step in range(9)]
    assert values[0] == 0.1 and values[6:] == [0.3] * 3
    assert values[:7] == sorted(values[:7]) and len(set(values[:7])) == 7


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_run_of_one_step_has_the_first_value(kind):
    assert scheduled(0, 1, value=0.1, final=0.3, kind=kind) == 0.1
    assert scheduled(1, 1, value=0.1, final=0.3, kind=kind) == 0.3


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_warm_up_of_four_steps_leads_every_kind_to_its_value(kind):
    settings = {**_settings(kind), "warmup": 4, "initial": 0.1}
    if kind == "switch":
        settings["until"] = 6
    values = [scheduled(step, 9, value=0.5, **settings) for step in range(11)]
    assert values[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5], abs=1e-15)
    assert values[0] == 0.1 and values[4] == 0.5
    rest = {  # four steps from .5 to 0, step 8 being the last
        "constant": [0.5] * 6,
        "switch": [0.5, 0, 0, 0, 0, 0],
        "linear": [0.375, 0.25, 0.125, 0, 0, 0],
        "cosine": [0.5 * COSINE_EIGHTH, 0.25, 0.5 * (1 - COSINE_EIGHTH), 0, 0, 0],
    }[kind]
    assert values[5:] == pytest.approx(rest, abs=1e-15)


def test_a_warm_up_starts_at_zero_and_may_lead_down():
    assert [scheduled(step, 9, value=0.5, warmup=2) for step in range(4)] == [0.0, 0.25, 0.5, 0.5]
    assert [scheduled(step, 9, value=0.5, warmup=2, initial=1.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.5]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_final_value_is_reached_at_until_and_held(kind):
    values = [scheduled(step, 100, value=1.0, final=0.2, kind=kind, until=4) for step in range(8)]
    assert values[0] == 1.0 and values[4:] == [0.2] * 4
    assert values[2] == pytest.approx(0.6, abs=1e-15)
    assert values[3] > 0.2


@pytest.mark.parametrize(
    ("share", "steps", "total"),
    [(0.25, 10, 40), (0.6, 12, 20), (0.125, 2, 20), (0.99, 20, 20)],  # 2.5 rounds to 2 and 19.8 to 20
)
def test_shares_are_steps_of_the_run(share, steps, total):
    by_share = [scheduled(step, total, value=1.0, final=0.0, kind="switch", until=share) for step in range(total + 1)]
    assert by_share == [1.0] * steps + [0.0] * (total + 1 - steps)
    warming = [scheduled(step, total, value=1.0, warmup=share) for step in range(total + 1)]
    assert warming.index(1.0) == steps


def test_one_is_a_step_and_not_the_whole_run():
    assert [scheduled(step, 10, value=1.0, final=0.0, kind="switch", until=1) for step in range(3)] == [1.0, 0.0, 0.0]


def test_a_run_may_end_before_until():
    assert scheduled(9, 10, value=1.0, final=0.0, kind="linear", until=18) == 0.5
    assert scheduled(9, 10, value=1.0, final=0.0, kind="switch", until=18) == 1.0


def test_chord_warms_up_and_decays():
    """mu of CHORD: up to .9 in a tenth of the run, then by cosine to .05 (its values; the lengths are ours)."""
    mu = [scheduled(t, 101, value=0.9, final=0.05, kind="cosine", warmup=10, until=90) for t in range(101)]
    assert mu[5] == pytest.approx(0.45) and mu[10] == 0.9
    assert mu[50] == pytest.approx(0.475) and mu[90:] == [0.05] * 11
    assert max(mu) == 0.9


LINEAR = {"kind": "linear", "final": 0.1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "step"}, "kind: 'step'; unknown; write one of constant, switch, linear, cosine"),
        ({"kind": "linear"}, "final: None with kind linear; .*; write both or neither"),
        ({"kind": "switch", "until": 2}, "final: None with kind switch; .*; write both or neither"),
        ({"final": 0.1}, "final: 0.1 with kind constant; .*; write both or neither"),
        ({"until": 3}, "until: 3 with kind constant; .*; leave until out"),
        ({"kind": "switch", "final": 0.1}, "until: None with kind switch; .*; write a step or a share"),
        ({"step": -1}, "step: -1; .*; write 0 or more"),
        ({"total_steps": 0}, "total_steps: 0; .*; write 1 or more"),
        ({"warmup": -1}, "warmup: -1; .*; write such a share"),
        ({"warmup": 2.5}, "warmup: 2.5; .*; write such a share"),
        ({"warmup": float("nan")}, "warmup: nan; .*; write such a share"),
        ({**LINEAR, "until": float("inf")}, "until: inf; .*; write such a share"),
        ({"initial": 0.2}, "initial: 0.2 without warmup; .*; write its length, or no initial"),
        ({**LINEAR, "warmup": 4}, "until: step 4 of 5 after a warm-up of 4 steps; .*; write a later until"),
        ({**LINEAR, "warmup": 2, "until": 2}, "until: step 2 of 5 after a warm-up of 2 steps; .*; write a later until"),
        ({**LINEAR, "until": 0.05}, "until: step 0 of 5 after a warm-up of 0 steps; .*; write a later until"),
        ({**LINEAR, "until": 0, "total_steps": 1}, "until: step 0 of 1 after .*; write a later until"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        scheduled(**{"step": 0, "total_steps": 5, "value": 0.4, **changes})


def test_every_named_schedule_exists():
    for kind in SCHEDULES:
        assert scheduled(0, 5, value=0.4, **_settings(kind)) == 0.4
