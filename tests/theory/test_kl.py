"""Each KL estimator: mean value and mean gradient against enumeration, masks, zeros of the reference."""

import math

import pytest
import torch
from toy_policy import Toy

from fe_posttrain.theory.kl import KL_ESTIMATORS, exact_kl

TOY = Toy(3, 3, ends=True)
REFERENCE = TOY.table(1)
KL_IN_VALUE = {"k1_in_reward", "k1_to_go", "k3_sequence_ratio", "k3_token_ratio", "k3_token", "k1_in_loss"}
EXACT = {"k1_in_reward", "k1_to_go", "k2_sequence", "k3_sequence_ratio"}


def _laws():
    table = TOY.table(2).requires_grad_()
    return table, TOY.token_log_probs(table), TOY.token_log_probs(REFERENCE)


def _true_kl(table):
    log_pi = TOY.log_probs(table)
    return (log_pi.exp() * (log_pi - TOY.log_probs(REFERENCE))).sum()


def _mean_gradient(name):
    table, log_pi, log_ref = _laws()
    surrogate = KL_ESTIMATORS[name].surrogate(log_pi, log_ref, TOY.mask)
    weights = log_pi.detach().sum(-1).exp()
    return torch.autograd.grad((weights * surrogate).sum(), table)[0]


def _gradient_of_frozen_prefixes(kl_per_prefix):
    table = TOY.table(2).requires_grad_()
    reached = TOY.prefix_probs(table.detach())
    return torch.autograd.grad((reached * kl_per_prefix(table)).sum(), table)[0]


def test_the_registry_names_each_estimator_once():
    assert all(name == estimator.name for name, estimator in KL_ESTIMATORS.items())
    assert {name for name, estimator in KL_ESTIMATORS.items() if estimator.exact_gradient} == EXACT


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_mean_value(name):
    table, log_pi, log_ref = (tensor.detach() for tensor in _laws())
    values = KL_ESTIMATORS[name].value(log_pi, log_ref, TOY.mask)
    mean = float((log_pi.sum(-1).exp() * values).sum())
    kl = float(_true_kl(table))
    if name in KL_IN_VALUE:
        assert mean == pytest.approx(kl, rel=1e-12)
    else:
        ratios = log_pi - log_ref if name == "k2_token" else (log_pi - log_ref).sum(-1, keepdim=True)
        assert mean == pytest.approx(float((log_pi.sum(-1).exp() * (ratios**2).sum(-1)).sum() / 2))
        assert mean != pytest.approx(kl, rel=0.05)


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_mean_gradient_is_that_of_the_kl_exactly_where_it_is_said_to_be(name):
    table = TOY.table(2).requires_grad_()
    (exact,) = torch.autograd.grad(_true_kl(table), table)
    error = (_mean_gradient(name) - exact).norm() / exact.norm()
    if name in EXACT:
        assert error < 1e-12
    else:
        assert error > 0.05


def test_what_the_other_gradients_are():
    frozen = _gradient_of_frozen_prefixes(lambda table: TOY.next_token_kl(table, REFERENCE))
    other_way = _gradient_of_frozen_prefixes(lambda table: TOY.next_token_kl(REFERENCE, table))
    torch.testing.assert_close(_mean_gradient("k2_token"), frozen)
    torch.testing.assert_close(_mean_gradient("k3_token_ratio"), frozen)
    torch.testing.assert_close(_mean_gradient("k3_token"), other_way)
    torch.testing.assert_close(_mean_gradient("k1_in_loss"), torch.zeros_like(frozen))
    assert frozen.norm() > 0.1 < other_way.norm()


def test_values_by_hand():
    log_pi = torch.tensor([[math.log(0.5), math.log(0.25)]])
    log_ref = torch.tensor([[math.log(0.25), math.log(0.5)]])  # d = +ln 2, -ln 2; D = 0
    mask = torch.ones(1, 2, dtype=torch.bool)
    tokens = (0.5 - 1 + math.log(2)) + (2 - 1 - math.log(2))
    expected = {
        "k1_in_reward": 0.0,
        "k1_to_go": 0.0,
        "k1_in_loss": 0.0,
        "k2_sequence": 0.0,
        "k3_sequence_ratio": 0.0,
        "k2_token": math.log(2) ** 2,
        "k3_token": tokens,
        "k3_token_ratio": tokens,
    }
    for name, value in expected.items():
        found = float(KL_ESTIMATORS[name].value(log_pi, log_ref, mask))
        assert found == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("name", KL_ESTIMATORS)
@pytest.mark.parametrize("junk", [float("nan"), -float("inf"), 1e30])
def test_padding_is_never_read(name, junk):
    """Values and gradients equal those of the unpadded rows, whatever stands under the mask; rows do not mix."""
    _, log_pi, log_ref = _laws()
    log_pi = log_pi.detach()
    padded = torch.cat([torch.where(TOY.mask, log_pi, junk), torch.full((len(log_pi), 2), junk)], dim=1)
    padded_ref = torch.cat([torch.where(TOY.mask, log_ref, junk), torch.full((len(log_pi), 2), junk)], dim=1)
    mask = torch.cat([TOY.mask, torch.zeros(len(log_pi), 2, dtype=torch.bool)], dim=1)
    padded.requires_grad_()
    estimator = KL_ESTIMATORS[name]
    values = estimator.value(padded, padded_ref, mask)
    (gradient,) = torch.autograd.grad(estimator.surrogate(padded, padded_ref, mask).sum(), padded)
    assert (gradient[~mask] == 0).all()
    for row in range(len(log_pi)):
        alone, alone_ref = padded.detach()[row, mask[row]][None].requires_grad_(), padded_ref[row, mask[row]][None]
        every = torch.ones_like(alone, dtype=torch.bool)
        torch.testing.assert_close(values[row : row + 1], estimator.value(alone, alone_ref, every))
        (expected,) = torch.autograd.grad(estimator.surrogate(alone, alone_ref, every).sum(), alone)
        torch.testing.assert_close(gradient[row, mask[row]], expected[0])


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_a_token_the_reference_cannot_produce(name):
    """That row's estimate is +inf; no NaN anywhere and the other row's gradient is untouched."""
    log_pi = torch.tensor([[-1.0, -2.0], [-0.5, -1.5]], requires_grad=True)
    log_ref = torch.tensor([[-1.5, -float("inf")], [-1.0, -1.0]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    estimator = KL_ESTIMATORS[name]
    values = estimator.value(log_pi, log_ref, mask)
    assert values[0] == float("inf") and values[1].isfinite()
    (gradient,) = torch.autograd.grad(estimator.surrogate(log_pi, log_ref, mask).sum(), log_pi)
    assert not gradient.isnan().any()
    (alone,) = torch.autograd.grad(estimator.surrogate(log_pi[1:], log_ref[1:], mask[1:]).sum(), log_pi)
    assert torch.equal(gradient[1], alone[1])


def test_exact_kl_by_hand_and_at_zeros():
    inf = float("inf")
    half, skew = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert float(exact_kl(half, skew)) == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))
    sure = torch.tensor([0.0, -inf])
    assert float(exact_kl(sure, skew)) == pytest.approx(-math.log(0.9))
    assert float(exact_kl(sure, sure)) == 0
    assert float(exact_kl(half, sure)) == inf


def test_exact_kl_gradient_is_finite_at_zeros():
    logits = torch.tensor([0.3, -0.2, -float("inf"), 0.1], requires_grad=True)
    log_ref = torch.tensor([-1.0, -2.0, -float("inf"), -float("inf")])
    (gradient,) = torch.autograd.grad(exact_kl(logits.log_softmax(-1), log_ref), logits)
    assert gradient.isfinite().all()
    assert gradient[2] == 0
