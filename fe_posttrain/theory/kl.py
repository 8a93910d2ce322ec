"""KL(pi || ref): exactly by enumeration, and by name from samples.

A KL estimator is two things, and being right about one says nothing about the other: a *value*, whose mean
may or may not be the KL, and a *gradient*, whose mean may or may not be the gradient of the KL. For tokens
drawn from the policy itself write d_t = log pi(y_t|y_<t) - log ref(y_t|y_<t), D = sum_t d_t (D_>=t: from t
on), k3(d) = e^-d - 1 + d, stop for stop_gradient, and rho = pi / stop(pi), which is 1 in value. On-policy:

    name                what is differentiated        mean of the value   mean of the gradient
    k1_in_reward        stop(D) log pi(y)             KL                  grad KL
    k1_to_go            sum_t stop(D_>=t) log pi_t    KL                  grad KL
    k2_sequence         D^2 / 2                       E[D^2] / 2          grad KL
    k3_sequence_ratio   rho k3(D)                     KL                  grad KL
    k2_token            sum_t d_t^2 / 2               E[sum d_t^2] / 2    sum_t grad KL(pi_t || ref_t), frozen
    k3_token_ratio      sum_t rho_t k3(d_t)           KL                  sum_t grad KL(pi_t || ref_t), frozen
    k3_token            sum_t k3(d_t)                 KL                  sum_t grad KL(ref_t || pi_t), frozen
    k1_in_loss          D                             KL                  0: no regularisation at all

Frozen: a token is charged for the KL at its own position (pi_t, ref_t: the next-token laws there) and not for
the KL at the positions that it leads to. The k3 rows need pi > 0 wherever ref > 0. TRL 1.16 uses
`k3_token_ratio`, the GRPO paper `k3_token`.

Shapes: N rows, T tokens. Sources: Schulman 2020, "Approximating KL Divergence" (k1, k2, k3); Shao et al.
2024, arXiv 2402.03300, eq. 4 (GRPO); Li & Liu 2026, arXiv 2605.08368 (the objective).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import BoolTensor, Tensor


def exact_kl(log_policy: Tensor, log_reference: Tensor) -> Tensor:
    """KL(pi || ref) = sum_y pi(y) (log pi(y) - log ref(y)) in nats; (..., Y) -> (...).

    Leading axes broadcast. A completion without mass (-inf in `log_policy`) adds 0 to
    value and gradient. Mass where the reference has none makes the value +inf; the gradient stays finite and
    ignores that completion.
    """
    possible, known = log_policy > -torch.inf, log_reference > -torch.inf
    inside = possible & known
    log_ratio = torch.where(inside, log_policy, 0.0) - torch.where(inside, log_reference, 0.0)
    outside = torch.where((possible & ~known).any(-1), torch.inf, 0.0)
    return (log_policy.exp() * log_ratio).sum(-1) + outside


@dataclass(frozen=True)
class KLEstimator:
    """One way in which KL(pi || ref) enters a loss; the table above says what each is worth.

    Attributes:
        name: key in `KL_ESTIMATORS`.
        placement: `reward` (a detached coefficient of log pi) or `loss` (differentiated itself).
        level: `sequence` or `token`: whose log-ratio goes into k1, k2 or k3.
        exact_gradient: whether the mean on-policy gradient is that of KL(pi || ref).
        value_of: the value of each row, from d; (N, T) -> (N,).
        surrogate_of: what is differentiated, from log pi and d; (N, T), (N, T) -> (N,).
    """

    name: str
    placement: Literal["reward", "loss"]
    level: Literal["sequence", "token"]
    exact_gradient: bool
    value_of: Callable[[Tensor], Tensor]
    surrogate_of: Callable[[Tensor, Tensor], Tensor]

    def value(self, log_policy: Tensor, log_reference: Tensor, mask: BoolTensor) -> Tensor:
        """The estimate of each row in nats, shape (N,), detached; arguments as in `surrogate`.

        TRL's logged `kl`, a mean per token, is `KL_ESTIMATORS["k3_token"].value(...).sum() / mask.sum()`.
        """
        log_policy, log_reference = log_policy.detach(), log_reference.detach()
        return self.value_of(_masked(log_policy, mask) - _masked(log_reference, mask))

    def surrogate(self, log_policy: Tensor, log_reference: Tensor, mask: BoolTensor) -> Tensor:
        """A loss whose gradient, averaged over rows that the policy itself drew, is the table's last column.

        Args:
            log_policy: log pi(y_t | x, y_<t) of the drawn tokens, shape (N, T), with gradient.
            log_reference: log ref of the same tokens, shape (N, T). -inf makes the
                row's estimate +inf, never NaN, and leaves the other rows alone.
            mask: shape (N, T), False on padding; what stands there is never read.

        Returns:
            Shape (N,). Its numbers mean nothing for placement `reward`: read `value` instead.
        """
        log_policy = _masked(log_policy, mask)
        return self.surrogate_of(log_policy, log_policy - _masked(log_reference.detach(), mask))


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0)


def _k2(log_ratio: Tensor) -> Tensor:
    return log_ratio.square() / 2


def _k3(log_ratio: Tensor) -> Tensor:
    return torch.expm1(-log_ratio) + log_ratio


def _ratio(log_policy: Tensor) -> Tensor:
    """pi / stop_gradient(pi): 1, with the gradient of log pi."""
    return torch.exp(log_policy - log_policy.detach())


def _to_go(log_ratio: Tensor) -> Tensor:
    return log_ratio.flip(-1).cumsum(-1).flip(-1)


def _total(values: Tensor) -> Tensor:
    return values.sum(-1)


KL_ESTIMATORS: dict[str, KLEstimator] = {
    estimator.name: estimator
    for estimator in (
        # name, placement, level, exact gradient, value of d, what is differentiated
        KLEstimator("k1_in_reward", "reward", "sequence", True, _total,
                    lambda log_pi, d: _total(d).detach() * _total(log_pi)),
        KLEstimator("k1_to_go", "reward", "token", True, _total,
                    lambda log_pi, d: _total(_to_go(d).detach() * log_pi)),
        KLEstimator("k2_sequence", "loss", "sequence", True, lambda d: _k2(_total(d)),
                    lambda log_pi, d: _k2(_total(d))),
        KLEstimator("k3_sequence_ratio", "loss", "sequence", True, lambda d: _k3(_total(d)),
                    lambda log_pi, d: _ratio(_total(log_pi)) * _k3(_total(d))),
        KLEstimator("k2_token", "loss", "token", False, lambda d: _total(_k2(d)),
                    lambda log_pi, d: _total(_k2(d))),
        KLEstimator("k3_token_ratio", "loss", "token", False, lambda d: _total(_k3(d)),
                    lambda log_pi, d: _total(_ratio(log_pi) * _k3(d))),
        KLEstimator("k3_token", "loss", "token", False, lambda d: _total(_k3(d)),
                    lambda log_pi, d: _total(_k3(d))),
        KLEstimator("k1_in_loss", "loss", "sequence", False, _total,
                    lambda log_pi, d: _total(d)),
    )
}  # fmt: skip
