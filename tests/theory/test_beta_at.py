"""beta over a run: ends, middle, what is refused."""

import pytest

from fe_posttrain.theory.schedules import BETA_SCHEDULES, beta_at


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("constant", 0, 0.4),
        ("constant", 1000, 0.4),
        ("linear", 0, 0.4),
        ("linear", 1, 0.3),
        ("linear", 2, 0.2),
        ("linear", 4, 0.0),
        ("linear", 99, 0.0),
        ("cosine", 0, 0.4),
        ("cosine", 1, 0.4 * 0.8535533905932737),  # (1 + cos 45 degrees) / 2
        ("cosine", 2, 0.2),
        ("cosine", 4, 0.0),
        ("cosine", 5, 0.0),
    ],
)
def test_five_steps_from_point_four_to_zero(schedule, step, expected):
    final = None if schedule == "constant" else 0.0
    assert beta_at(step, 5, beta=0.4, beta_final=final, schedule=schedule) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ends_are_exact_and_beta_may_rise(schedule):
    values = [beta_at(step, 7, beta=0.1, beta_final=0.3, schedule=schedule) for step in range(9)]
    assert values[0] == 0.1 and values[6:] == [0.3] * 3
    assert values[:7] == sorted(values[:7]) and len(set(values[:7])) == 7


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_run_of_one_step_has_the_first_value(schedule):
    assert beta_at(0, 1, beta=0.1, beta_final=0.3, schedule=schedule) == 0.1
    assert beta_at(1, 1, beta=0.1, beta_final=0.3, schedule=schedule) == 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "step"}, "beta_schedule: 'step'; unknown; write one of constant, linear, cosine"),
        ({"schedule": "linear"}, "beta_final: None with beta_schedule linear; .*; write both or neither"),
        ({"beta_final": 0.1}, "beta_final: 0.1 with beta_schedule constant; .*; write both or neither"),
        ({"step": -1}, "step: -1; .*; write 0 or more"),
        ({"total_steps": 0}, "total_steps: 0; .*; write 1 or more"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        beta_at(**{"step": 0, "total_steps": 5, "beta": 0.4, **changes})


def test_every_named_schedule_exists():
    for schedule in BETA_SCHEDULES:
        final = None if schedule == "constant" else 0.2
        assert beta_at(0, 3, beta=0.4, beta_final=final, schedule=schedule) == 0.4
