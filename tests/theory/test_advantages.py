"""The default estimator: exact on average over whole groups, silent at the optimum, deaf to padding and splits."""

from itertools import product

import pytest
import torch
from toy_policy import Toy, plain_free_energy

from fe_posttrain.theory.advantages import leave_one_out, sequence_advantages, sum_to_go_advantages

TOYS = {"variable": Toy(3, 3, ends=True), "fixed": Toy(2, 3, ends=False)}
BETA, WEIGHT = 0.3, 1.7


def _advantages(estimator, toy, reward, token_log_ratio, group_size, beta=BETA):
    """Advantages (N, T) of rows in group order."""
    settings = dict(group_size=group_size, reward_energy_weight=WEIGHT, beta=beta)
    if estimator == "sequence_to_go":
        return sum_to_go_advantages(reward, token_log_ratio, **settings)[0]
    advantages, _ = sequence_advantages(reward, token_log_ratio.sum(-1), **settings)
    return advantages[:, None].expand(token_log_ratio.shape)


def _all_groups(toy, group_size):
    """Row numbers of every group that could be drawn, (groups, G)."""
    return torch.tensor(list(product(range(len(toy.completions)), repeat=group_size)))


def _loss_of_groups(estimator, toy, table, reference, reward, group_size):
    """Loss of every possible group, (groups,): -mean over its rows of sum_t A_t log pi_t."""
    rows = _all_groups(toy, group_size).flatten()
    log_pi = toy.token_log_probs(table)[rows]
    log_ratio = (log_pi - toy.token_log_probs(reference)[rows]).detach()
    advantages = _advantages(estimator, toy, reward[rows], log_ratio, group_size)
    return -(advantages * log_pi).sum(-1).unflatten(0, (-1, group_size)).mean(-1)


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("group_size", [2, 3])
@pytest.mark.parametrize("estimator", ["sequence", "sequence_to_go"])
def test_mean_gradient_over_all_groups_is_the_gradient_of_f(kind, group_size, estimator):
    toy = TOYS[kind]
    reward, reference = toy.reward(0), toy.table(1)
    table = toy.table(2).requires_grad_()
    groups = _all_groups(toy, group_size)
    probability = toy.log_probs(table.detach())[groups].sum(-1).exp()
    losses = _loss_of_groups(estimator, toy, table, reference, reward, group_size)
    (estimated,) = torch.autograd.grad((probability * losses).sum(), table)
    exact_f = plain_free_energy(toy.log_probs(table), toy.log_probs(reference), WEIGHT * reward, BETA)
    (exact,) = torch.autograd.grad(exact_f, table)
    assert exact.norm() > 0.01
    assert (estimated - exact).norm() < 1e-5 * exact.norm()


def _gibbs_table(toy, reference, reward):
    law = (toy.log_probs(reference) + WEIGHT * reward / BETA).exp()
    return toy.table_of(law / law.sum())


def test_every_group_has_zero_gradient_at_the_optimum():
    toy = TOYS["fixed"]
    reward, reference = toy.reward(0), toy.table(1)
    sizes = {}
    for estimator in ("sequence", "sequence_to_go"):
        table = _gibbs_table(toy, reference, reward).requires_grad_()
        losses = _loss_of_groups(estimator, toy, table, reference, reward, 2)
        gradients = [torch.autograd.grad(loss, table, retain_graph=True)[0].norm() for loss in losses]
        sizes[estimator] = max(gradients)
    assert sizes["sequence"] < 1e-12
    assert sizes["sequence_to_go"] > 0.01  # exact on average, but not silent


def test_leave_one_out_by_hand():
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    expected = torch.tensor([[1 - 4.0, 2 - 3.5, 6 - 1.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(leave_one_out(values), expected)
    columns = leave_one_out(torch.stack([values, 10 * values], dim=-1))
    torch.testing.assert_close(columns, torch.stack([expected, 10 * expected], dim=-1))


def test_leave_one_out_never_reads_invalid_rows():
    values = torch.tensor([[1.0, float("nan"), 6.0], [4.0, float("inf"), float("nan")]])
    valid = torch.tensor([[True, False, True], [True, False, False]])
    expected = torch.tensor([[1 - 6.0, 0.0, 6 - 1.0], [0.0, 0.0, 0.0]])
    assert torch.equal(leave_one_out(values, valid), expected)


def test_sequence_advantages_by_hand():
    reward = torch.tensor([1.0, 0.0, 1.0, 1.0])
    log_ratio = torch.tensor([2.0, 0.0, -1.0, 1.0])
    # s = 2 r - .5 log_ratio = 1, 0 | 2.5, 1.5
    advantages, baseline = sequence_advantages(reward, log_ratio, group_size=2, reward_energy_weight=2.0, beta=0.5)
    assert advantages.tolist() == [1.0, -1.0, 1.0, -1.0]
    assert baseline.tolist() == [0.0, 1.0, 1.5, 2.5]


def test_sum_to_go_advantages_by_hand():
    reward = torch.tensor([1.0, 0.0])
    log_ratio = torch.tensor([[2.0, 4.0, -2.0], [6.0, 0.0, 0.0]])  # the second row ends after one token
    # s = r - .5 to_go = [1-2, 1-1, 1+1] and [0-3, 0, 0]
    advantages, baseline = sum_to_go_advantages(reward, log_ratio, group_size=2, beta=0.5)
    assert advantages.tolist() == [[2.0, 0.0, 2.0], [-2.0, 0.0, -2.0]]
    assert baseline.tolist() == [[-3.0, 0.0, 0.0], [-1.0, 0.0, 2.0]]


@pytest.mark.parametrize("estimator", ["sequence", "sequence_to_go"])
@pytest.mark.parametrize("broken", ["reward", "log_ratio"])
def test_an_unscorable_row_is_as_if_it_were_not_there(estimator, broken):
    toy = TOYS["variable"]
    reward = toy.reward(3)[:8]
    log_ratio = (toy.token_log_probs(toy.table(4)) - toy.token_log_probs(toy.table(5)))[:8]
    if broken == "reward":
        reward[5] = float("nan")
    else:
        log_ratio[5, 0] = float("inf")  # log ref = -inf: outside the reference's support
    whole = _advantages(estimator, toy, reward, log_ratio, 4)
    others = torch.tensor([4, 6, 7])
    alone = _advantages(estimator, toy, reward[others], log_ratio[others], 3)
    torch.testing.assert_close(whole[others], alone)
    assert (whole[5] == 0).all()
    assert whole[others].abs().min() > 0


@pytest.mark.parametrize("estimator", ["sequence", "sequence_to_go"])
def test_a_group_without_two_scorable_rows_teaches_nothing(estimator):
    toy = TOYS["fixed"]
    reward = torch.tensor([float("nan"), 1.0, float("nan"), float("nan")])
    log_ratio = torch.ones(4, 3)
    assert (_advantages(estimator, toy, reward, log_ratio, 2) == 0).all()


def test_nothing_flows_through_advantages():
    reward, log_ratio = torch.rand(4), torch.randn(4, 3, requires_grad=True)
    for tensors in (
        sequence_advantages(reward, log_ratio.sum(-1), group_size=2, beta=0.1),
        sum_to_go_advantages(reward, log_ratio, group_size=2, beta=0.1),
    ):
        assert not any(tensor.requires_grad for tensor in tensors)


def test_infinite_log_ratio_is_free_at_beta_zero():
    advantages, _ = sequence_advantages(
        torch.tensor([1.0, 0.0]), torch.tensor([float("inf"), 0.0]), group_size=2, beta=0.0
    )
    assert advantages.tolist() == [1.0, -1.0]


def test_groups_must_be_whole():
    with pytest.raises(ValueError, match="group_size: 3 for 4 rows"):
        sequence_advantages(torch.zeros(4), torch.zeros(4), group_size=3, beta=0.1)


@pytest.mark.parametrize("estimator", ["sequence", "sequence_to_go"])
def test_gradient_does_not_depend_on_micro_batches_or_padding(estimator):
    """One constant divisor: the gradients of parts add up to that of the whole, however many tokens each has."""
    toy = TOYS["variable"]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(toy.completions), (12,), generator=generator)
    reference, table = toy.table(1), toy.table(2).requires_grad_()

    def gradient(parts, columns):
        total = torch.zeros_like(table)
        for part in parts:
            log_pi = toy.token_log_probs(table)[part]
            log_ratio = (log_pi - toy.token_log_probs(reference)[part]).detach()
            wide = torch.zeros(len(part), columns, dtype=torch.float64)
            wide[:, : toy.length] = log_ratio
            advantages = _advantages(estimator, toy, toy.reward(0)[part], wide, 3)[:, : toy.length]
            loss = -(advantages * log_pi).sum() / (len(rows) * toy.length)
            total += torch.autograd.grad(loss, table)[0]
        return total

    whole = gradient([rows], toy.length)
    assert whole.norm() > 0.01
    for parts, columns in ((rows.split(3), 3), ([rows[:9], rows[9:]], 7), ([rows], 11)):
        torch.testing.assert_close(gradient(parts, columns), whole)
