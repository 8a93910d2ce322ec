"""Displacement against enumerated worlds: value, error, RMS and closure."""

import numpy as np
import pytest

from fe_posttrain.support.displacement import Window, closure, rms, window

COMPLETIONS = 12


def world(seed: int, moved: float, prompts: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two policies (prompts, completions) `moved` apart, and which completions are correct."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(prompts, COMPLETIONS))
    correct = np.arange(COMPLETIONS) < 4
    after = logits + moved * rng.normal(size=logits.shape) + 3 * moved * correct
    return *(np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (logits, after)), correct


def fresh_rows(before, after, correct, each: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """ln before/after and prompt of the correct ones among `each` draws of every prompt under `after`."""
    drawn = np.array([rng.choice(COMPLETIONS, each, p=law) for law in after])
    prompt, place = np.nonzero(correct[drawn])
    y = drawn[prompt, place]
    return np.log(before[prompt, y] / after[prompt, y]), prompt


def exact(before, after, correct) -> float:
    return float(np.log(after[:, correct].sum(1).mean() / before[:, correct].sum(1).mean()))


def test_it_is_the_log_ratio_of_success_over_prompts_without_bias():
    before, after, correct = world(0, 0.3, prompts=300)
    rng, truth, found = np.random.default_rng(1), exact(before, after, correct), []
    for _ in range(2000):  # prompts of a step are a sample of all, and the error says so
        some = rng.choice(300, 12, replace=False)
        found.append(window(8, 8, *fresh_rows(before[some], after[some], correct, 8, rng)))
    values = np.array([w.value for w in found])
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / np.sqrt(2000))
    assert np.sqrt(np.mean(np.square([w.se for w in found]))) == pytest.approx(values.std(), rel=0.15)


def test_the_correction_takes_off_the_bias_of_a_logarithm():
    rng, spread, n = np.random.default_rng(0), 0.8, 8
    log_ratio = rng.normal(-(spread**2) / 2, spread, size=(20000, n))  # mean weight 1: displacement 0
    plain = -np.log(np.exp(log_ratio).mean(1)).mean()
    corrected = np.mean([window(1, 1, row, np.arange(n)).value for row in log_ratio])
    assert plain > 0.03 and abs(corrected) < plain / 3


@pytest.mark.parametrize("moved", [0.008, 0.02])
def test_split_halves_recover_a_small_change(moved):
    before, after, correct = world(2, moved)
    truth, rng = abs(exact(before, after, correct)), np.random.default_rng(3)
    assert 0.01 <= truth <= 0.05
    found = [window(i, 1, *fresh_rows(before, after, correct, 10, rng)) for i in range(3000)]
    assert rms(found) == pytest.approx(truth, rel=0.2)


def test_without_any_change_the_halves_multiply_to_nothing():
    before, _, correct = world(4, 0.0)
    noise = np.random.default_rng(5)
    found = []
    for i in range(2000):
        log_ratio, prompt = fresh_rows(before, before, correct, 4, noise)
        found.append(window(i, 1, log_ratio + noise.normal(0, 0.1, size=len(prompt)) - 0.005, prompt))
    assert rms(found) < 0.01


@pytest.mark.parametrize("depth", [3.0, 40.0, 900.0])  # 900 nats underflow, 40 cancel in a sum with 1
def test_the_error_survives_prompts_that_are_worlds_apart(depth):
    # Left out one by one of weights 1, w, w with w = e^-depth: ln w, ln (1+w)/2, ln (1+w)/2.
    leaves = np.array([-depth, *[np.log1p(np.exp(-depth)) - np.log(2)] * 2])
    expected = np.sqrt(2 / 3 * ((leaves - leaves.mean()) ** 2).sum())
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        found = window(1, 1, np.array([0.0, -depth, -depth])[order], [5, 6, 7])
        assert found.se == pytest.approx(expected, rel=1e-9)


def test_a_single_row_has_no_halves_and_no_error():
    one = window(3, 1, [-0.2], [7])
    assert one.value == pytest.approx(0.2) and one.halves is None and one.se == np.inf
    assert rms([one]) is None


@pytest.mark.parametrize("rows", [[], [0.1, np.nan]])
def test_rows_that_say_nothing_are_refused(rows):
    with pytest.raises(ValueError, match="displacement at step 5"):
        window(5, 1, rows, np.zeros(len(rows)))


def test_windows_add_up_to_what_probes_say():
    windows = [Window(8, 8, 16, 0.4, 0.1, None), Window(16, 8, 16, 0.3, 0.2, None)]
    found = closure(windows, start=(0.2, 0.01), end=(0.4, 0.02))
    assert found.value == pytest.approx(0.7 - np.log(2))
    assert found.se == pytest.approx(np.sqrt(0.1**2 + 0.2**2 + 0.05**2 + 0.05**2))
    assert closure(windows, (0.0, 0.0), (0.4, 0.02)) is None and closure([], (0.1, 0.01), (0.2, 0.01)) is None


@pytest.mark.parametrize("step", [12, 24])  # overlaps the first one; leaves eight updates out
def test_windows_that_do_not_adjoin_are_refused(step):
    windows = [Window(8, 8, 16, 0.4, 0.1, None), Window(step, 8, 16, 0.3, 0.2, None)]
    with pytest.raises(ValueError, match="adjoining"):
        closure(windows, start=(0.2, 0.01), end=(0.4, 0.02))


def test_a_window_goes_through_json_and_back():
    one = window(8, 8, [0.1, 0.2, 0.3], [0, 1, 1])
    assert Window.from_json(one.as_json()) == one
