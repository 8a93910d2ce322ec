"""The optimum of F and the gap to it, against SciPy, enumeration and high-precision arithmetic."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import lambertw, logsumexp
from toy_policy import Toy, plain_free_energy

from fe_posttrain.theory.gibbs import (
    bernoulli_log_partition,
    bernoulli_optimum,
    demonstration_optimum,
    free_energy_gap,
    gibbs_log_probs,
    log_partition,
    optimal_free_energy,
)
from fe_posttrain.theory.lambert import log_lambert_w

INF = float("inf")
TOY = Toy(3, 3, ends=True)
LOG_REF, REWARD = TOY.log_probs(TOY.table(1)), TOY.reward(0)
TILTS = [dict(reward_energy_weight=w, beta=b) for w, b in ((1.0, 0.3), (2.5, 0.05), (0.0, 1.0), (1.0, 0.002))]


@pytest.mark.parametrize("tilt", TILTS)
def test_partition_and_law_agree_with_scipy(tilt):
    tilted = LOG_REF.numpy() + tilt["reward_energy_weight"] * REWARD.numpy() / tilt["beta"]
    assert float(log_partition(LOG_REF, -REWARD, **tilt)) == pytest.approx(logsumexp(tilted), rel=1e-13, abs=1e-12)
    np.testing.assert_allclose(gibbs_log_probs(LOG_REF, -REWARD, **tilt), tilted - logsumexp(tilted), atol=1e-11)


@pytest.mark.parametrize("tilt", TILTS[:3])
def test_gap_is_the_distance_to_the_lowest_free_energy(tilt):
    """F(pi) - F*, with F* = F(pi*), is beta KL(pi || pi*) and is what the gap reports."""
    weight, beta = tilt.values()
    log_pi = TOY.log_probs(TOY.table(2))
    tilted = LOG_REF + weight * REWARD / beta
    log_optimum = tilted - logsumexp(tilted.numpy())
    lowest = float(plain_free_energy(log_optimum, LOG_REF, weight * REWARD, beta))
    assert float(optimal_free_energy(LOG_REF, -REWARD, **tilt)) == pytest.approx(lowest, abs=1e-12)
    gap = float(free_energy_gap(log_pi, LOG_REF, -REWARD, **tilt))
    above = float(plain_free_energy(log_pi, LOG_REF, weight * REWARD, beta)) - lowest
    nats = float((log_pi.exp() * (log_pi - log_optimum)).sum())
    assert gap == pytest.approx(above, rel=1e-10)
    assert gap == pytest.approx(beta * nats, rel=1e-10)
    assert gap > 0.01


def test_gap_of_the_optimum_is_zero_and_of_the_singular_infinite():
    tilt = TILTS[1]
    optimum = gibbs_log_probs(LOG_REF, -REWARD, **tilt)
    assert float(free_energy_gap(optimum, LOG_REF, -REWARD, **tilt)) == pytest.approx(0, abs=1e-14)
    hole = LOG_REF.clone()
    hole[4] = -INF
    assert float(free_energy_gap(LOG_REF, hole, -REWARD, **tilt)) == INF


def test_a_completion_outside_the_reference_stays_outside():
    hole = LOG_REF.clone()
    hole[4] = -INF
    hole.requires_grad_()
    law = gibbs_log_probs(hole, -REWARD, beta=0.1)
    assert law[4] == -INF
    (gradient,) = torch.autograd.grad(log_partition(hole, -REWARD, beta=0.1), hole)
    torch.testing.assert_close(gradient, law.detach().exp())  # d log Z / d log ref = pi*


def test_prompts_are_independent():
    energy = torch.stack([-REWARD, REWARD])
    together = gibbs_log_probs(LOG_REF, energy, beta=0.2)
    for prompt in range(2):
        tilted = LOG_REF - energy[prompt] / 0.2
        np.testing.assert_allclose(together[prompt], tilted - logsumexp(tilted.numpy()), atol=1e-12)


@pytest.mark.parametrize("tilt", TILTS)
def test_a_binary_reward_makes_it_one_number(tilt):
    reward = (REWARD > 0.6).double()
    p_ref = LOG_REF.exp()[reward > 0].sum()
    tilted = LOG_REF.numpy() + tilt["reward_energy_weight"] * reward.numpy() / tilt["beta"]
    log_z = logsumexp(tilted)
    assert float(bernoulli_log_partition(p_ref, **tilt)) == pytest.approx(log_z, rel=1e-12, abs=1e-12)
    p_star = float(np.exp(tilted - log_z)[reward.numpy() > 0].sum())
    assert float(bernoulli_optimum(p_ref, **tilt)) == pytest.approx(p_star, rel=1e-12)


def _decimal_log_partition(p: float, ratio: float) -> float:
    with localcontext() as context:
        context.prec = 400
        return float((1 + Decimal(p) * (Decimal(ratio).exp() - 1)).ln())


@pytest.mark.parametrize("p", [0.0, 1e-300, 1e-30, 1e-12, 1e-3, 0.5, 1 - 1e-12, 1.0])
@pytest.mark.parametrize("ratio", [1e-9, 1e-3, 0.7, 1.0, 1.5, 20.0, 68.0, 700.0, 900.0])
def test_bernoulli_log_partition_at_extremes(p, ratio):
    found = float(bernoulli_log_partition(p, reward_energy_weight=ratio, beta=1.0))
    assert found == pytest.approx(_decimal_log_partition(p, ratio), rel=1e-12, abs=0)


def test_bernoulli_log_partition_in_float32():
    p = torch.tensor([0.0, 1e-30, 0.01, 1.0])
    found = bernoulli_log_partition(p, beta=0.005)
    expected = [_decimal_log_partition(float(value), 200.0) for value in p]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("p", [1e-30, 1e-6, 0.03, 0.5])
@pytest.mark.parametrize("ratio", [0.5, 5.0, 60.0])
def test_logit_shift_is_weight_over_beta(p, ratio):
    p_star = float(bernoulli_optimum(p, reward_energy_weight=2.0, beta=2.0 / ratio))
    odds = p / (1 - p) * math.exp(ratio)
    assert p_star == pytest.approx(odds / (1 + odds), rel=1e-12)


def test_certain_outcomes_stay_certain():
    p = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert bernoulli_optimum(p, beta=0.01).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("function", [log_partition, gibbs_log_probs, optimal_free_energy])
def test_no_gibbs_law_without_a_temperature(function, beta):
    with pytest.raises(ValueError, match=r"beta: .*; write a positive number"):
        function(LOG_REF, -REWARD, beta=beta)


def test_lambert_w_against_scipy_and_beyond_it():
    z = torch.linspace(-600, 600, 2401, dtype=torch.float64)
    expected = np.log(lambertw(np.exp(z.numpy())).real)
    np.testing.assert_allclose(log_lambert_w(z), expected, rtol=1e-12, atol=1e-12)
    z = torch.tensor([-1e4, -50.0, 0.999999, 1.0, 1e4, 1e12], dtype=torch.float64)
    found = log_lambert_w(z)
    np.testing.assert_allclose(found + found.exp(), z, rtol=1e-14)  # the equation itself, where e^z overflows


DEMONSTRATIONS = torch.zeros_like(REWARD)
DEMONSTRATIONS[[3, 11]] = torch.tensor([0.7, 0.3], dtype=torch.float64)


@pytest.mark.parametrize(
    ("weight", "demonstration_weight", "beta", "rate"),
    [(1.0, 0.5, 0.4, 1.0), (0.0, 1.0, 1.0, 1.0), (1.0, 2.0, 0.1, 0.25), (1.0, 1e-6, 0.3, 1.0)],
)
def test_demonstration_optimum_against_scipy(weight, demonstration_weight, beta, rate):
    shown = rate * DEMONSTRATIONS
    found = demonstration_optimum(
        LOG_REF,
        -REWARD,
        shown,
        reward_energy_weight=weight,
        demonstration_energy_weight=demonstration_weight,
        beta=beta,
    )
    a, tilted = demonstration_weight * shown.numpy(), LOG_REF.numpy() + weight * REWARD.numpy() / beta

    def law(c):
        plain = np.exp(tilted - c)
        with np.errstate(invalid="ignore"):
            pulled = a / (beta * lambertw(a / (beta * plain)).real)
        return np.where(a > 0, pulled, plain)

    c = brentq(lambda c: law(c).sum() - 1, -30.0, 30.0, xtol=1e-14)
    np.testing.assert_allclose(found.exp(), law(c), rtol=1e-9)


def test_demonstration_optimum_where_the_argument_of_w_overflows():
    """A demonstration at ref e^-2000: every completion must give the same multiplier c."""
    log_ref = torch.tensor([math.log(0.9), math.log(0.1), -2000.0], dtype=torch.float64)
    energy = torch.tensor([0.0, -1.0, -0.5], dtype=torch.float64)
    shown = torch.tensor([0.0, 0.4, 0.6], dtype=torch.float64)
    a, beta = 0.2 * shown, 0.01
    found = demonstration_optimum(
        log_ref, energy, shown, reward_energy_weight=1.0, demonstration_energy_weight=0.2, beta=beta
    )
    c = log_ref - energy / beta - found + a / (beta * found.exp())
    np.testing.assert_allclose(c, c[0].expand(3), rtol=1e-9)
    assert float(found.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(found.exp()[2]) > 1e-3


def test_demonstration_optimum_has_a_batch_axis_and_a_gibbs_limit():
    shown = torch.stack([DEMONSTRATIONS, torch.zeros_like(REWARD)])
    settings = dict(reward_energy_weight=1.0, demonstration_energy_weight=0.5, beta=0.4)
    together = demonstration_optimum(LOG_REF, -REWARD, shown, **settings)
    alone = demonstration_optimum(LOG_REF, -REWARD, DEMONSTRATIONS, **settings)
    torch.testing.assert_close(together[0], alone)
    tilted = LOG_REF.numpy() + REWARD.numpy() / 0.4
    np.testing.assert_allclose(together[1], tilted - logsumexp(tilted), atol=1e-12)
    assert demonstration_optimum(LOG_REF.float(), -REWARD, shown, **settings).dtype == torch.float32


def test_demonstrations_outside_the_reference_are_refused():
    hole = LOG_REF.clone()
    hole[3] = -INF
    settings = dict(reward_energy_weight=1.0, demonstration_energy_weight=0.5, beta=0.4)
    with pytest.raises(ValueError, match="demonstrations: mass where the reference has none"):
        demonstration_optimum(hole, -REWARD, DEMONSTRATIONS, **settings)
    hole = LOG_REF.clone()
    hole[5] = -INF  # not demonstrated: simply never produced
    law = demonstration_optimum(hole, -REWARD, DEMONSTRATIONS, **settings)
    assert law[5] == -INF and not law.isnan().any()
