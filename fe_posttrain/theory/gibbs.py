"""Where the free energy is smallest, and how far above that a policy is.

Without demonstrations the optimum is the reference reweighted, at temperature beta:

    pi*(y) = ref(y) e^{-w_r energy(y) / beta} / Z,     F* = -beta log Z,     F(pi) - F* = beta KL(pi || pi*)

A 0/1 verifier makes it one number per prompt: logit p* = logit p_ref + w_r / beta. The demonstration term is
not such a tilt; its optimum needs the Lambert W function.

Source: Li & Liu 2026, arXiv 2605.08368. Shapes: the last axis enumerates the Y completions, leading axes
broadcast. Everywhere: `reward_energy_weight` is w_r, energies are finite, beta is in energy units per nat and
positive (at beta = 0 there is no Gibbs law), and a -inf in `log_reference` stays -inf in the optimum.
"""

import torch
from torch import Tensor

from fe_posttrain.theory.kl import exact_kl
from fe_posttrain.theory.lambert import log_lambert_w

_BISECTIONS = 64  # more than the bits of a float64


def log_partition(log_reference: Tensor, energy: Tensor, *, reward_energy_weight: float = 1.0, beta: float) -> Tensor:
    """log Z = log sum_y ref(y) e^{-w_r energy(y) / beta} in nats; (..., Y) -> (...).

    ValueError unless beta > 0.
    """
    return _tilted(log_reference, energy, reward_energy_weight, beta).logsumexp(-1)


def gibbs_log_probs(log_reference: Tensor, energy: Tensor, *, reward_energy_weight: float = 1.0, beta: float) -> Tensor:
    """log pi*(y), normalised; (..., Y) -> (..., Y). ValueError unless beta > 0.

    >>> log_reference = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    >>> gibbs_log_probs(log_reference, torch.tensor([0.0, -1.0]), beta=1.0).exp()  # sigmoid(1) = .7311
    tensor([0.2689, 0.7311], dtype=torch.float64)
    """
    return _tilted(log_reference, energy, reward_energy_weight, beta).log_softmax(-1)


def optimal_free_energy(
    log_reference: Tensor, energy: Tensor, *, reward_energy_weight: float = 1.0, beta: float
) -> Tensor:
    """F* = -beta log Z in energy units; (..., Y) -> (...). ValueError unless beta > 0."""
    return -beta * log_partition(log_reference, energy, reward_energy_weight=reward_energy_weight, beta=beta)


def free_energy_gap(
    log_policy: Tensor,
    log_reference: Tensor,
    energy: Tensor,
    *,
    reward_energy_weight: float = 1.0,
    beta: float,
) -> Tensor:
    """F(pi) - F* >= 0 in energy units (gap / beta is in nats), for w_d = 0; (..., Y) -> (...).

    Computed as beta KL(pi || pi*), which is the same and does not subtract two nearly equal numbers. +inf
    where the policy has mass outside the reference. ValueError unless beta > 0.
    """
    optimum = gibbs_log_probs(log_reference, energy, reward_energy_weight=reward_energy_weight, beta=beta)
    return beta * exact_kl(log_policy, optimum)


def bernoulli_log_partition(p_reference: float | Tensor, *, reward_energy_weight: float = 1.0, beta: float) -> Tensor:
    """log Z = log(1 + p_ref (e^{w_r / beta} - 1)) in nats, for a 0/1 reward that is 1 with probability p_ref.

    Accurate for w_r / beta of hundreds, for p_ref down to the smallest number of its dtype, and at 0 and 1;
    any shape (a float is taken as float64). ValueError unless beta > 0.
    """
    p = _probability(p_reference)
    tilt = torch.tensor(reward_energy_weight / _positive(beta), dtype=p.dtype, device=p.device)
    if tilt < 1:
        return torch.log1p(p * torch.expm1(tilt))
    return torch.logaddexp(torch.log1p(-p), p.log() + tilt)


def bernoulli_optimum(p_reference: float | Tensor, *, reward_energy_weight: float = 1.0, beta: float) -> Tensor:
    """p* = P_{pi*}(reward 1) for a 0/1 reward: logit p* = logit p_ref + w_r / beta; any shape.

    >>> round(float(bernoulli_optimum(0.5, beta=0.5)), 6)  # 1 / (1 + e^-2)
    0.880797
    """
    return torch.sigmoid(torch.logit(_probability(p_reference)) + reward_energy_weight / _positive(beta))


def demonstration_optimum(
    log_reference: Tensor,
    energy: Tensor,
    demonstrations: Tensor,
    *,
    reward_energy_weight: float,
    demonstration_energy_weight: float,
    beta: float,
) -> Tensor:
    """log pi of the minimiser of F with a demonstration term.

    With a(y) = w_d p_D(y), setting the derivative of F to zero under sum_y pi = 1 gives

        pi = a / (beta W),   W e^W = a / (beta ref) e^{w_r energy / beta + c}     where a > 0
        pi = ref e^{-w_r energy / beta - c}                                       elsewhere

    with the one c that makes the mass 1. The mass falls in c, and c is bracketed: demonstrations only add
    mass, so c >= log Z; and the stationarity condition times pi, summed, is beta c = sum_y a - (w_r E[energy]
    + beta KL) with a last bracket of at least -beta log Z, so c <= log Z + sum_y a / beta.

    Args:
        log_reference, energy: shape (..., Y).
        demonstrations: shape (..., Y): p_D(y) times (demonstration rate / rollout rate of the prompt), >= 0.
        reward_energy_weight, demonstration_energy_weight, beta: w_r, w_d and beta.

    Returns:
        Normalised log-probs, shape (..., Y), in the dtype of `log_reference` (computed in float64).

    Raises:
        ValueError: beta is not positive, or a completion is demonstrated that the reference cannot produce: F
            is then infinite for every policy.
    """
    tilted = _tilted(log_reference.double(), energy.double(), reward_energy_weight, beta)
    pull = demonstration_energy_weight * demonstrations.double() / beta
    tilted, pull = torch.broadcast_tensors(tilted, pull)
    shown = pull > 0
    if (shown & (tilted == -torch.inf)).any():
        raise ValueError(
            "demonstrations: mass where the reference has none; F is infinite for every policy; leave those "
            "completions out, or use a reference that can produce them"
        )

    def log_probs(c: Tensor) -> Tensor:
        plain = tilted - c
        log_pull = torch.where(shown, pull, 1.0).log()
        log_w = log_lambert_w(torch.where(shown, log_pull - plain, 0.0))
        return torch.where(shown, log_pull - log_w, plain)

    low = tilted.logsumexp(-1, keepdim=True)
    high = low + pull.sum(-1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        heavy = log_probs(middle).logsumexp(-1, keepdim=True) > 0
        low, high = torch.where(heavy, middle, low), torch.where(heavy, high, middle)
    return log_probs((low + high) / 2).log_softmax(-1).to(log_reference.dtype)


def _tilted(log_reference: Tensor, energy: Tensor, reward_energy_weight: float, beta: float) -> Tensor:
    """log ref - w_r energy / beta: the Gibbs law before normalisation."""
    return log_reference - reward_energy_weight * energy / _positive(beta)


def _positive(beta: float) -> float:
    if not beta > 0:
        raise ValueError(f"beta: {beta}; the optimum is a Gibbs law at temperature beta; write a positive number")
    return beta


def _probability(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
