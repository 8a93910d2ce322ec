"""F of enumerated policies: terms by hand, zeros, and where gradient descent on it comes to rest."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import lambertw, logsumexp
from toy_policy import Toy, descend

from fe_posttrain.theory.free_energy import FreeEnergyTerms, exact_free_energy

INF = float("inf")
TOY = Toy(3, 3, ends=True)
REFERENCE, REWARD = TOY.table(1), TOY.reward(0)


def test_terms_by_hand():
    terms = exact_free_energy(
        torch.tensor([0.5, 0.5]).log(),
        torch.tensor([0.9, 0.1]).log(),
        torch.tensor([0.0, -1.0]),
        reward_energy_weight=2.0,
        beta=0.1,
        demonstrations=torch.tensor([0.0, 1.0]),
        demonstration_energy_weight=0.3,
    )
    assert float(terms.reward) == pytest.approx(2 * -0.5)
    assert float(terms.demonstration) == pytest.approx(0.3 * math.log(2))
    kl = 0.5 * math.log(5 / 9) + 0.5 * math.log(5)
    assert float(terms.kl) == pytest.approx(kl)
    assert float(terms.total) == pytest.approx(-1 + 0.3 * math.log(2) + 0.1 * kl)


def test_total_takes_plain_numbers_and_beta_zero():
    assert FreeEnergyTerms(reward=-1.0, demonstration=0.5, kl=2.0, beta=0.25).total == 0.0
    assert FreeEnergyTerms(reward=-1.0, demonstration=0.5, kl=INF, beta=0.0).total == -0.5


def test_leading_axes_are_independent_prompts():
    log_policy = torch.stack([TOY.log_probs(TOY.table(seed)) for seed in (2, 3)])
    log_reference, energy = TOY.log_probs(REFERENCE), torch.stack([-REWARD, REWARD])
    together = exact_free_energy(log_policy, log_reference, energy, beta=0.2).total
    for prompt in range(2):
        alone = exact_free_energy(log_policy[prompt], log_reference, energy[prompt], beta=0.2).total
        assert float(together[prompt]) == pytest.approx(float(alone), rel=1e-14)
    assert together[0] != together[1]


def test_demonstration_weight_needs_demonstrations():
    law = torch.tensor([0.5, 0.5]).log()
    with pytest.raises(ValueError, match="demonstrations: None"):
        exact_free_energy(law, law, torch.zeros(2), beta=0.1, demonstration_energy_weight=1.0)


def test_zeros_of_the_policy_cost_nothing_and_give_finite_gradients():
    logits = torch.tensor([0.4, -0.1, -INF, -INF], dtype=torch.float64, requires_grad=True)
    log_reference = torch.tensor([0.4, 0.3, 0.3, 0.0], dtype=torch.float64).log()
    energy = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    shown = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    settings = dict(beta=0.3, demonstration_energy_weight=0.7)
    total = exact_free_energy(logits.log_softmax(-1), log_reference, energy, demonstrations=shown, **settings).total
    (gradient,) = torch.autograd.grad(total, logits)
    few = logits.detach()[:2].requires_grad_()
    kept = exact_free_energy(few.log_softmax(-1), log_reference[:2], energy[:2], demonstrations=shown[:2], **settings)
    (expected,) = torch.autograd.grad(kept.total, few)
    assert total.item() == pytest.approx(kept.total.item(), rel=1e-14)
    torch.testing.assert_close(gradient, torch.cat([expected, torch.zeros(2, dtype=torch.float64)]))


def test_singular_support_is_infinite_and_never_nan():
    policy = torch.tensor([0.5, 0.5], dtype=torch.float64).log().requires_grad_()
    sure = torch.tensor([0.0, -INF], dtype=torch.float64)
    outside = exact_free_energy(policy, sure, torch.zeros(2, dtype=torch.float64), beta=0.1)
    assert outside.kl == INF and outside.total == INF
    assert torch.autograd.grad(outside.total, policy)[0].isfinite().all()
    unreachable = exact_free_energy(
        sure.clone().requires_grad_(),
        policy.detach(),
        torch.zeros(2, dtype=torch.float64),
        beta=0.1,
        demonstrations=torch.tensor([0.0, 1.0], dtype=torch.float64),
        demonstration_energy_weight=1.0,
    )
    assert unreachable.demonstration == INF and unreachable.kl.isfinite()


def _minimiser(**settings):
    """log pi(y) where Adam on F, from the reference, comes to rest."""

    def gradient(table):
        terms = exact_free_energy(TOY.log_probs(table), TOY.log_probs(REFERENCE), -REWARD, **settings)
        return torch.autograd.grad(terms.total, table)[0]

    return TOY.log_probs(descend(gradient, REFERENCE, steps=800, rate=0.1)).numpy()


@pytest.mark.parametrize(("weight", "beta"), [(1.0, 0.3), (2.5, 0.6)])
def test_descent_ends_at_the_gibbs_law(weight, beta):
    found = _minimiser(reward_energy_weight=weight, beta=beta)
    tilted = TOY.log_probs(REFERENCE).numpy() + weight * REWARD.numpy() / beta
    np.testing.assert_allclose(found, tilted - logsumexp(tilted), atol=1e-5)


def test_descent_with_demonstrations_ends_at_the_lambert_optimum():
    shown = torch.zeros_like(REWARD)
    shown[[3, 11]] = torch.tensor([0.7, 0.3], dtype=torch.float64)
    weight, demonstration_weight, beta = 0.8, 0.5, 0.4
    found = _minimiser(
        reward_energy_weight=weight,
        beta=beta,
        demonstrations=shown,
        demonstration_energy_weight=demonstration_weight,
    )
    reference, a = TOY.log_probs(REFERENCE).exp().numpy(), demonstration_weight * shown.numpy()
    tilt = np.exp(weight * REWARD.numpy() / beta)

    def law(c):
        plain = reference * tilt * np.exp(-c)
        with np.errstate(invalid="ignore"):
            pulled = a / (beta * lambertw(a / (beta * plain)).real)
        return np.where(a > 0, pulled, plain)

    c = brentq(lambda c: law(c).sum() - 1, 0.0, 20.0, xtol=1e-14)
    np.testing.assert_allclose(np.exp(found), law(c), atol=1e-6)
