"""Weighted samples: values by hand, where their expected gradient ends, and that both projections end there."""

from itertools import product
from math import exp

import pytest
import torch
from toy_policy import Toy, descend, minimise, plain_free_energy

from fe_posttrain.theory.gibbs import gibbs_log_probs
from fe_posttrain.theory.projections import bank_weights, control_variate, forward_advantages, valid_rows

NAN, INF = float("nan"), float("inf")
TOYS = {"variable": Toy(3, 2, ends=True), "fixed": Toy(2, 2, ends=False)}
BETA, WEIGHT = 0.4, 1.3


def _double(*values):
    return torch.tensor(values, dtype=torch.float64)


def _kl(log_p, log_q):
    return float((log_p.exp() * (log_p - log_q)).sum(-1))


def _target(log_reference, reward):
    law = log_reference + WEIGHT * reward / BETA
    return law - law.exp().sum().log()


# -- values --------------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    reward = _double(1, 0, 0, 1, NAN, 0, 1, 0, 1)
    ratio = _double(0, 2, 1, 0, 0, 0, 0, INF, -INF)
    ratio[1] = _double(2).log()
    advantages = forward_advantages(reward, ratio, group_size=3, reward_energy_weight=2.0, beta=1.0)
    first = [exp(2), 2, exp(1)]
    expected = [3 * w / sum(first) for w in first]
    expected += [2 * exp(2) / (exp(2) + 1), 0, 2 / (exp(2) + 1)]  # two valid rows
    expected += [2, 0, 0]  # two, one of them outside the reference
    assert advantages.tolist() == pytest.approx(expected, abs=1e-14)


def test_outside_the_reference_a_row_is_pushed_down():
    reward, ratio = _double(1, 1, 1, 1), _double(0, -INF, -INF, -INF)
    advantages = forward_advantages(reward, ratio, group_size=2, beta=0.5)
    assert advantages.tolist() == [2, 0, 0, 0]  # a group wholly outside has no weight to share
    valid = valid_rows(reward, ratio, beta=0.5)
    assert control_variate(advantages, None, valid=valid).tolist() == [1, -1, -1, -1]


def test_selection_by_hand():
    reward = _double(1, 0.6, 0, 0, 0, 0.4, NAN, 0.5, 0)
    advantages = forward_advantages(reward, None, group_size=3, beta=0.0, threshold=0.5)
    assert advantages.tolist() == [1.5, 1.5, 0, 0, 0, 0, 0, 2, 0]


def test_selection_never_reads_the_ratio():
    reward = _double(1, 0)
    assert forward_advantages(reward, _double(NAN, -INF), group_size=2, beta=0.0, threshold=1.0).tolist() == [2, 0]


def test_control_variate_by_hand():
    advantages, valid = _double(1.5, 0.5, 0), torch.tensor([True, True, False])
    assert control_variate(advantages, None, valid=valid).tolist() == [0.5, -0.5, 0]
    ratio = _double(2, 0.25, 7).log()
    assert control_variate(advantages, ratio, valid=valid).tolist() == pytest.approx([-0.5, 0.25, 0], abs=1e-15)


def test_bank_weights_divide_by_the_mean_over_the_prompt():
    reward = torch.stack([_double(1, 0, 0, NAN), _double(0, 0, 0, 0)])
    weights = bank_weights(reward, torch.zeros_like(reward), beta=0.5)
    mean = (exp(2) + 2) / 3
    assert weights[0].tolist() == pytest.approx([exp(2) / mean, 1 / mean, 1 / mean, 0], abs=1e-14)
    assert weights[1].tolist() == pytest.approx([1] * 4, abs=1e-15)
    assert bank_weights(reward, None, beta=0.0, threshold=1.0).tolist() == [[3, 0, 0, 0], [0] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_thousand_nats_do_not_overflow(dtype):
    beta = 2.0**-7  # reward / beta: 1024 and 1023.875
    reward = torch.tensor([8, 8 - 2.0**-10, -8, -8 + 2.0**-10, 8, -8], dtype=dtype)
    advantages = forward_advantages(reward, torch.zeros(6, dtype=dtype), group_size=2, beta=beta)
    high = 2 / (1 + exp(-0.125))
    assert advantages.dtype == dtype
    assert advantages.tolist() == pytest.approx([high, 2 - high, 2 - high, high, 2, 0], rel=1e-6)


def test_rows_that_are_not_valid_might_as_well_be_missing():
    reward, ratio = _double(0.3, NAN, 0.9, 0.1, INF, 0.7), _double(0.1, 0.2, -0.3, NAN, 0.0, 0.5)
    kept = valid_rows(reward, ratio, beta=BETA)
    assert kept.tolist() == [True, False, True, False, False, True]
    whole = forward_advantages(reward, ratio, group_size=6, beta=BETA)
    part = forward_advantages(reward[kept], ratio[kept], group_size=3, beta=BETA)
    assert torch.equal(whole[kept], part) and not whole[~kept].any()


@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_a_group_without_a_valid_row_is_silent(beta):
    reward = _double(NAN, NAN, 1, 0)
    advantages = forward_advantages(reward, torch.zeros(4), group_size=2, beta=beta, threshold=0.5)
    assert advantages[:2].tolist() == [0, 0] and advantages[2] > 1
    valid = valid_rows(reward, torch.zeros(4), beta=beta)
    assert control_variate(advantages, None, valid=valid)[:2].tolist() == [0, 0]


def test_weights_are_constants_to_the_gradient():
    ratio = torch.zeros(4, requires_grad=True)
    advantages = forward_advantages(torch.rand(4), ratio, group_size=2, beta=1.0)
    assert not advantages.requires_grad
    assert not control_variate(advantages, ratio, valid=torch.ones(4, dtype=torch.bool)).requires_grad


def test_selection_is_the_limit_of_zero_one_rewards():
    rewards = torch.tensor([row for row in product([0.0, 1.0], repeat=4) if any(row)], dtype=torch.float64)
    selected = forward_advantages(rewards.flatten(), None, group_size=4, beta=0.0, threshold=1.0)
    errors = []
    for beta in (0.5, 0.1, 0.02):
        weighted = forward_advantages(rewards.flatten(), torch.zeros(rewards.numel()), group_size=4, beta=beta)
        errors.append(float((weighted - selected).abs().max()))
    assert errors[0] > 0.1 and errors[1] < 1e-3 and errors[2] < 1e-12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 3}, "group_size: 3 for 4 rows; .*; write a divisor of 4"),
        ({"beta": -0.1}, "beta: -0.1; .*; write 0 or a positive number"),
        ({"beta": NAN}, "beta: nan; .*; write 0 or a positive number"),
        ({"beta": 0.0}, "threshold: None at beta 0; .*; write the smallest reward that counts"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        forward_advantages(torch.zeros(4), torch.zeros(4), **{"group_size": 2, "beta": 0.1, **changes})


# -- expected gradients ----------------------------------------------------------------------------------------------


def _groups(toy, group_size):
    return torch.tensor(list(product(range(len(toy.completions)), repeat=group_size)))


def _coefficients(toy, groups, reward, log_ref, log_sampler, log_pi, *, controlled):
    """Of every row of every possible group, (groups, G)."""
    rows = groups.flatten()
    ratio = (log_ref - log_sampler)[rows]
    advantages = forward_advantages(
        reward[rows], ratio, group_size=groups.shape[1], reward_energy_weight=WEIGHT, beta=BETA
    )
    if controlled:
        valid = valid_rows(reward[rows], ratio, beta=BETA)
        advantages = control_variate(advantages, (log_pi - log_sampler)[rows], valid=valid)
    return advantages.view(groups.shape)


def _mean_gradient(toy, table, reward, log_ref, log_sampler=None, *, group_size, controlled=True):
    """Gradient of the forward loss averaged over all groups that the sampler (None: the policy) could draw."""
    log_pi = toy.log_probs(table)
    log_sampler = log_pi.detach() if log_sampler is None else log_sampler
    groups = _groups(toy, group_size)
    coefficients = _coefficients(toy, groups, reward, log_ref, log_sampler, log_pi.detach(), controlled=controlled)
    probability = log_sampler[groups].sum(-1).exp()
    loss = -(probability * (coefficients * log_pi[groups]).mean(-1)).sum()
    return torch.autograd.grad(loss, table)[0]


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("own", [True, False])
def test_the_control_variate_leaves_the_mean_gradient_alone(kind, own):
    toy = TOYS[kind]
    table, log_ref = toy.table(2).requires_grad_(), toy.log_probs(toy.table(1))
    log_sampler = None if own else toy.log_probs(toy.table(5))
    plain, controlled = (
        _mean_gradient(toy, table, toy.reward(0), log_ref, log_sampler, group_size=2, controlled=controlled)
        for controlled in (False, True)
    )
    assert plain.norm() > 0.01
    assert (plain - controlled).norm() < 1e-12


@pytest.mark.parametrize("kind", TOYS)
def test_own_draws_pull_towards_the_target(kind):
    """E[A | y] rises with w(y) = pi*/pi, so its covariance with w, the speed of -KL(pi* || pi), is positive."""
    toy = TOYS[kind]
    reward, log_ref, log_pi = toy.reward(0), toy.log_probs(toy.table(1)), toy.log_probs(toy.table(2))
    target = _target(log_ref, reward)
    groups = _groups(toy, 3)
    told = _coefficients(toy, groups, reward, log_ref, log_pi, log_pi, controlled=True)
    companions = log_pi[groups[:, 1:]].sum(-1).exp()
    mean = torch.zeros(len(reward), dtype=torch.float64).index_add_(0, groups[:, 0], companions * told[:, 0])
    assert (mean[(target - log_pi).argsort()].diff() > 1e-3).all()
    assert float((log_pi.exp() * mean).sum()) == pytest.approx(0, abs=1e-12)
    assert (target.exp() * mean).sum() > 0.1


@pytest.mark.parametrize("kind", TOYS)
def test_own_draws_rest_on_the_target_in_every_group(kind):
    toy = TOYS[kind]
    reward, log_ref = toy.reward(0), toy.log_probs(toy.table(1))
    target = _target(log_ref, reward)
    at_rest = _coefficients(toy, _groups(toy, 3), reward, log_ref, target, target, controlled=True)
    assert at_rest.abs().max() < 1e-12


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("group_size", [2, 3])
def test_own_draws_end_at_the_gibbs_law_at_every_group_size(kind, group_size):
    toy = TOYS[kind]
    reward, reference = toy.reward(0), toy.table(1)
    log_ref = toy.log_probs(reference)
    end = descend(
        lambda table: _mean_gradient(toy, table, reward, log_ref, group_size=group_size),
        reference,
        steps=300,
        rate=0.1,
    )
    target = _target(log_ref, reward)
    assert _kl(log_ref, target) > 0.1
    assert _kl(toy.log_probs(end), target) < 1e-6


@pytest.mark.parametrize("sampler", ["reference", "other"])
def test_both_projections_end_at_the_gibbs_law(sampler):
    """Forward on a bank that holds every completion as often as its sampler draws it; reverse on F itself."""
    toy = Toy(3, 3, ends=True)
    reward = toy.reward(0)
    counts = 1 + torch.randint(6, (len(toy.completions),), generator=torch.Generator().manual_seed(3))
    bank = torch.arange(len(counts)).repeat_interleave(counts)
    drawn = toy.table_of(counts / counts.sum().double())
    reference = drawn if sampler == "reference" else toy.table(1)
    log_ref = toy.log_probs(reference)
    ratio = (log_ref - toy.log_probs(drawn))[bank]

    weights = bank_weights(reward[bank][None], ratio[None], reward_energy_weight=WEIGHT, beta=BETA)[0]
    forward = minimise(lambda table: -(weights * toy.log_probs(table)[bank]).mean(), reference)
    reverse = minimise(lambda table: plain_free_energy(toy.log_probs(table), log_ref, WEIGHT * reward, BETA), reference)
    forward, reverse = toy.log_probs(forward), toy.log_probs(reverse)
    target = gibbs_log_probs(log_ref, -reward, reward_energy_weight=WEIGHT, beta=BETA)
    assert _kl(log_ref, target) > 0.1
    assert _kl(target, forward) < 1e-6 and _kl(reverse, target) < 1e-6 and _kl(forward, reverse) < 1e-6
    if sampler == "other":
        uncorrected = bank_weights(reward[bank][None], 0 * ratio[None], reward_energy_weight=WEIGHT, beta=BETA)[0]
        end = minimise(lambda table: -(uncorrected * toy.log_probs(table)[bank]).mean(), reference)
        assert _kl(target, toy.log_probs(end)) > 0.01


# -- two completions, groups of three: everything by hand ------------------------------------------------------------


def _mean_weight_of_a_success(p, tilt):
    """E[A_i | i succeeds] when k of its two companions succeed, each with probability p; a success weighs `tilt`."""
    none, one, both = (1 - p) ** 2, 2 * p * (1 - p), p**2
    return none * 3 * tilt / (tilt + 2) + one * 3 * tilt / (2 * tilt + 1) + both


@pytest.mark.parametrize(("p", "tilt"), [(0.2, 4.0), (0.7, 4.0), (0.5, 0.25), (0.3, 1.0)])
def test_mean_weight_in_groups_of_three(p, tilt):
    """What a policy that succeeds with probability p, where pi*/pi of a success is `tilt` times that of a failure,
    is told on average about its successes: more of them below the target, none at it."""
    groups = torch.tensor(list(product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    probability = (groups * p + (1 - groups) * (1 - p)).prod(-1)
    ratio = groups.flatten() * _double(tilt).log()
    advantages = forward_advantages(0 * groups.flatten(), ratio, group_size=3, beta=1.0).view(groups.shape)
    told = control_variate(advantages.flatten(), None, valid=torch.ones(24, dtype=torch.bool)).view(groups.shape)
    mean = float((probability[:, None] * groups * told).sum() / (3 * p))
    assert mean == pytest.approx(_mean_weight_of_a_success(p, tilt) - 1, abs=1e-12)
    assert (mean > 1e-3) == (tilt > 1) and (mean < -1e-3) == (tilt < 1)


def test_normalising_within_groups_of_reference_draws_ends_elsewhere():
    """Weights of reference draws are refitted to p_ref E[A | success], which is not p*: the reason for bank_weights."""
    p_ref, beta = 0.2, 1 / 3
    tilt = exp(1 / beta)
    target = p_ref * tilt / (p_ref * tilt + 1 - p_ref)
    groups = torch.tensor(list(product([0.0, 1.0], repeat=3)), dtype=torch.float64)
    probability = (groups * p_ref + (1 - groups) * (1 - p_ref)).prod(-1)
    advantages = forward_advantages(groups.flatten(), torch.zeros(24), group_size=3, beta=beta).view(groups.shape)

    def loss(logit):
        log_pi = torch.where(groups == 1, torch.nn.functional.logsigmoid(logit), torch.nn.functional.logsigmoid(-logit))
        return -(probability * (advantages * log_pi).mean(-1)).sum()

    end = float(minimise(loss, _double(0.0)).sigmoid())
    assert end == pytest.approx(p_ref * _mean_weight_of_a_success(p_ref, tilt), abs=1e-8)
    assert target - end > 0.3  # .83 is the target, .47 where it ends

    bank = _double(1, 0, 0, 0, 0)  # a fifth succeeds, as in the reference
    weights = bank_weights(bank[None], torch.zeros(1, 5), beta=beta)[0]
    assert float((weights * bank).mean()) == pytest.approx(target, abs=1e-12)
