"""One target, two projections: the forward side, which fits weighted samples, and both sides of a demonstration.

Reward. The target of F without demonstrations is pi* = ref e^{w_r reward / beta} / Z. The reverse projection
descends KL(pi || pi*) on samples of the policy (theory/advantages.py); the forward one descends KL(pi* || pi) on
samples of any sampler q, weighted by w = e^{w_r reward / beta} ref / q, so that q w / Z = pi*:

    grad KL(pi* || pi) = -sum_y pi* grad log pi = grad -E_q[ w/Z log pi ]
    E_q[ pi/q grad log pi ] = sum_y grad pi = 0, so  w/Z - pi/q  has the same mean gradient as  w/Z

Both have the optimum pi* where pi can express it. At beta = 0 the forward side selects: samples with reward >=
threshold count alike, ref/q left out (RAFT, rejection sampling); that is the limit of 0/1 rewards for draws of ref.

Demonstrations. The energy -1[y_t = y*_t] after each teacher-forced prefix, at temperature `demonstration_beta`
(1 / lambda), has the next-token target softmax(log ref + lambda 1[y*]):

    demonstration_beta   forward                               reverse
    0                    -log pi(y*): SFT                      -pi(y*): DFT
    > 0                  cross-entropy to the target: GIFT     -pi(y*) + demonstration_beta KL(pi_t || ref_t)

With several demonstrations of one prefix, v shown with frequency f_v, forward ends at the mean of their targets
and reverse at the target of their mean energy, softmax(log ref + lambda f): the same only for f in {0, 1}.

Shapes: N rows in group order, G rows a group, B demonstrations, T tokens, V vocabulary; ... any leading axes.
Results about weights are detached. Sources: Li & Liu 2026, arXiv 2605.08368 (the target); Peng et al. 2019, arXiv
1910.00177 (AWR); BOLT, arXiv 2605.02469; RAFT, arXiv 2304.06767; DFT, arXiv 2508.05629; GIFT, arXiv 2601.09233.
"""

import math
from collections.abc import Callable

import torch
from torch import BoolTensor, LongTensor, Tensor

from fe_posttrain.theory.advantages import in_groups

PROJECTIONS = ("reverse", "forward")


def valid_rows(reward: Tensor, log_reference_ratio: Tensor | None, *, beta: float) -> BoolTensor:
    """Rows that weights can be made of: a finite reward and, unless beta is 0, a log-ratio below inf; any shape.

    One of -inf is a completion outside the reference: a valid row of weight 0, so that `control_variate` pushes it
    down.
    """
    return reward.isfinite() & (log_reference_ratio < torch.inf) if beta else reward.isfinite()


def forward_advantages(
    reward: Tensor,
    log_reference_ratio: Tensor | None,
    *,
    group_size: int,
    reward_energy_weight: float = 1.0,
    beta: float,
    threshold: float | None = None,
) -> Tensor:
    """Weights of each group's rows, A_i = G w_i / sum_j w_j over its G valid rows; they have mean 1 there.

    At beta = 0, with s rows selected: A_i = G 1[reward_i >= threshold] / s, and 0 for a group without one. The
    loss is -mean A log pi(y), better with A of `control_variate`. Normalising within the group biases the
    gradient at finite G, but for draws of the *policy* leaves its zero at pi*, where every w_i is the same.
    For draws of anything else (the reference, an older policy) it moves the zero: use `bank_weights`.

    Args:
        reward: shape (N,); not finite (NaN: unscorable): the row is not valid.
        log_reference_ratio: log ref(y) - log q(y) in nats, q the sampler, shape (N,); -inf: weight 0; NaN or inf: not
            valid.
            Never read at beta = 0, where it may be None.
        group_size: G; divides N.
        reward_energy_weight: w_r; selection ignores it.
        beta: temperature, in energy units per nat, 0 or more.
        threshold: smallest reward that is selected at beta = 0; ignored otherwise.

    Returns:
        Shape (N,), 0 for rows that are not valid, in the dtype of `reward` (computed in float64, in log space).

    Raises:
        ValueError: N is not a multiple of `group_size`; beta is negative; beta = 0 without `threshold`.

    >>> reward = torch.tensor([1.0, 0.0, 0.0, 1.0])
    >>> forward_advantages(reward, torch.zeros(4), group_size=2, beta=1.0)  # 2 sigmoid(+-1)
    tensor([1.4621, 0.5379, 0.5379, 1.4621])
    """
    grouped_reward = in_groups(reward, group_size)
    grouped_ratio = in_groups(log_reference_ratio, group_size) if beta else None
    return _normalised(grouped_reward, grouped_ratio, reward_energy_weight, beta, threshold).flatten()


def control_variate(advantages: Tensor, log_policy_sampler_ratio: Tensor | None, *, valid: BoolTensor) -> Tensor:
    """A - pi/q: what remains of the forward weights when their pull towards every sample alike is taken out.

    The mean gradient stays (module docstring), the noise goes: for draws of the policy itself every coefficient is
    0 at pi*. It is subtracted from every valid row, unselected rows and groups without a success included.

    Args:
        advantages: of `forward_advantages`, shape (N,).
        log_policy_sampler_ratio: log pi(y) - log q(y) in nats, shape (N,); None: pi drew the rows, pi/q = 1.
        valid: of `valid_rows`, shape (N,).

    Returns:
        Shape (N,), 0 for rows that are not valid, detached.

    >>> control_variate(torch.tensor([1.5, 0.5, 0.0]), None, valid=torch.tensor([True, True, False]))
    tensor([ 0.5000, -0.5000,  0.0000])
    """
    ratio = torch.ones_like(advantages) if log_policy_sampler_ratio is None else log_policy_sampler_ratio.exp()
    return torch.where(valid, advantages - ratio, 0.0).detach()


def bank_weights(
    reward: Tensor,
    log_reference_ratio: Tensor | None,
    *,
    reward_energy_weight: float = 1.0,
    beta: float,
    threshold: float | None = None,
) -> Tensor:
    """Weights of a bank of draws, w over its mean over *all* valid draws of the prompt.

    At beta = 0, with s of N draws selected: 1[reward >= threshold] N / s, and 0 for a prompt without one. The mean
    over the bank estimates Z once; batches of a few draws normalised on their own would each use another Z and
    end elsewhere than pi*.

    Args:
        reward, log_reference_ratio: as in `forward_advantages`, shape (prompts, N).
        reward_energy_weight, beta, threshold: as in `forward_advantages`.

    Returns:
        Shape (prompts, N), 0 for draws that are not valid, in the dtype of `reward`.

    Raises:
        ValueError: beta is negative; beta = 0 without `threshold`.
    """
    return _normalised(reward, log_reference_ratio, reward_energy_weight, beta, threshold)


def _normalised(
    reward: Tensor, log_ratio: Tensor | None, reward_energy_weight: float, beta: float, threshold: float | None
) -> Tensor:
    """w over its mean over the valid entries of the last axis; 0 where there is nothing to divide by."""
    if not beta >= 0:
        raise ValueError(f"beta: {beta}; the target is a Gibbs law at temperature beta; write 0 or a positive number")
    valid = valid_rows(reward, log_ratio, beta=beta)
    count = valid.sum(-1, keepdim=True)
    if beta == 0:
        if threshold is None:
            raise ValueError(
                "threshold: None at beta 0; without a temperature samples are selected by their reward; write the "
                "smallest reward that counts, or a positive beta"
            )
        chosen = valid & (reward >= threshold)
        return ((count * chosen).double() / chosen.sum(-1, keepdim=True).clamp(min=1)).to(reward.dtype)
    log_weights = reward_energy_weight * reward.detach().double() / beta + log_ratio.detach().double()
    log_weights = torch.where(valid, log_weights, -torch.inf)
    return torch.where(log_weights > -torch.inf, count * log_weights.softmax(-1), 0.0).to(reward.dtype)


def demonstration_loss(
    log_policy: Tensor,
    targets: LongTensor,
    *,
    projection: str,
    demonstration_beta: float = 0.0,
    log_reference: Tensor | None = None,
) -> Tensor:
    """The demonstration energy after each prefix, from one side or the other (table in the module docstring).

    Exact over the vocabulary. Beside its arguments it keeps for the backward pass one tensor of shape (..., V)
    (forward) or two (reverse) and a mask, and none at `demonstration_beta` 0.

    Args:
        log_policy: log pi of the next token, shape (..., V), normalised, with gradient.
        targets: y*, shape (...), all inside the vocabulary: mask afterwards.
        projection: one of `PROJECTIONS`.
        demonstration_beta: temperature 1 / lambda of the demonstration energy, in energy units per nat.
        log_reference: log ref of the next token, shape (..., V), normalised; read if `demonstration_beta` > 0.

    Returns:
        Loss of each token, shape (...), in the dtype of `log_policy`. Forward in nats; reverse in energy units,
        with +inf where the policy has mass outside the reference.

    Raises:
        ValueError: an unknown projection; a negative or infinite temperature; a positive one without
            `log_reference`.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"projection: {projection!r}; unknown; write one of {', '.join(PROJECTIONS)}")
    if demonstration_beta:
        _check_temperature(demonstration_beta)
        if log_reference is None:
            raise ValueError(
                f"log_reference: None at demonstration_beta {demonstration_beta}; the target is a tilt of the "
                "reference; pass its log-probs, or write demonstration_beta 0"
            )
    shown = _at(log_policy, targets)
    if projection == "reverse":
        if not demonstration_beta:
            return -shown.exp()
        log_ratio = log_policy - log_reference.detach()
        return demonstration_beta * _expectation(log_policy, log_ratio) - shown.exp()
    if not demonstration_beta:
        return -shown
    log_reference = log_reference.detach()
    log_target, log_z = _tilted(_at(log_reference, targets), demonstration_beta)
    kept = (-log_z).exp()  # target = kept ref, and `lift` more at y*
    lift = log_target.exp() - kept * _at(log_reference, targets).double().exp()
    shown = torch.where(lift > 0, shown, 0.0)
    return -kept.to(shown.dtype) * _expectation(log_reference, log_policy) - lift.to(shown.dtype) * shown


def soft_target(log_reference: Tensor, targets: LongTensor, demonstration_beta: float) -> Tensor:
    """softmax(log ref + 1[y*] / demonstration_beta) in logs: the target of both projections.

    Args:
        log_reference: shape (..., V), normalised.
        targets: y*, shape (...).
        demonstration_beta: positive.

    Returns:
        Normalised log-probs, shape (..., V). A y* that the reference cannot produce stays impossible.

    Raises:
        ValueError: `demonstration_beta` is not positive and finite.

    >>> log_reference = torch.tensor([0.5, 0.25, 0.25]).log()
    >>> soft_target(log_reference, torch.tensor(1), 1 / math.log(2)).exp()  # .25 counts twice
    tensor([0.4000, 0.4000, 0.2000])
    """
    _check_temperature(demonstration_beta)
    log_target, log_z = _tilted(_at(log_reference, targets), demonstration_beta)
    result = log_reference - log_z.unsqueeze(-1).to(log_reference.dtype)
    return result.scatter_(-1, targets.unsqueeze(-1), log_target.unsqueeze(-1).to(result.dtype))


def _check_temperature(demonstration_beta: float) -> None:
    if not 0 < demonstration_beta < math.inf:
        raise ValueError(
            f"demonstration_beta: {demonstration_beta}; it is the temperature of a Gibbs law; write a positive "
            "number, or 0 for plain SFT or DFT"
        )


def _at(log_probs: Tensor, targets: LongTensor) -> Tensor:
    return log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def _tilted(log_reference_at: Tensor, demonstration_beta: float) -> tuple[Tensor, Tensor]:
    """(log target(y*), log Z) from log ref(y*), Z = 1 - ref(y*) + ref(y*) e^lambda; (...) each, float64."""
    log_ref = log_reference_at.double().clamp(max=0)  # rounding may leave a log-prob above 0
    lifted = log_ref + 1 / demonstration_beta
    log_z = torch.logaddexp(torch.log1p(-log_ref.exp()), lifted)
    return lifted - log_z, log_z


def _expectation(log_probs: Tensor, values: Tensor) -> Tensor:
    """sum_v e^{log_probs} values, where an impossible v counts 0 whatever its value; (..., V) -> (...)."""
    return (log_probs.exp() * values.masked_fill(log_probs == -torch.inf, 0.0)).sum(-1)


def _plain(log_probs: Tensor, entropies: Tensor | None, mask: BoolTensor) -> Tensor:
    """1: SFT."""
    return mask.to(log_probs.dtype)


def _probability(log_probs: Tensor, entropies: Tensor | None, mask: BoolTensor) -> Tensor:
    """pi. Source: DFT, arXiv 2508.05629."""
    return torch.where(mask, log_probs.detach(), -torch.inf).exp()


def _uncertainty(log_probs: Tensor, entropies: Tensor | None, mask: BoolTensor) -> Tensor:
    """pi (1 - pi). Source: CHORD-phi, arXiv 2508.11408."""
    log_probs = torch.where(mask, log_probs.detach(), -torch.inf)
    return -log_probs.exp() * torch.expm1(log_probs)


def _shrinking(log_probs: Tensor, entropies: Tensor | None, mask: BoolTensor, *, gamma: float = 0.1) -> Tensor:
    """gamma pi / (pi + gamma)^2: -log pi so weighted has the gradient of -pi / (pi + gamma).

    Source: LUFFY, arXiv 2504.14945; its gamma is .1.
    """
    probs = _probability(log_probs, entropies, mask)
    return gamma * probs / (probs + gamma).square()


def _confidence(log_probs: Tensor, entropies: Tensor | None, mask: BoolTensor, *, scale: float = 1.0) -> Tensor:
    """scale e^-H, H the mean token entropy of the sequence. Source: SRFT, arXiv 2506.19767; its scale is .5."""
    if entropies is None:
        raise ValueError(
            "entropies: None; the shaping confidence weighs a demonstration by e^-H; pass the policy's token "
            "entropies, or write another shaping"
        )
    mean = torch.where(mask, entropies.detach(), 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, scale * (-mean).exp(), 0.0).to(log_probs.dtype)


# phi, the factor of -log pi(y_t) of each demonstrated token: name -> phi(log pi(y_t) of the tokens (B, T), entropies
# of pi there in nats (B, T) or None, mask (B, T), **arguments) -> (B, T), detached, 0 where masked
SHAPINGS: dict[str, Callable[..., Tensor]] = {
    "none": _plain,
    "probability": _probability,
    "uncertainty": _uncertainty,
    "shrinking": _shrinking,
    "confidence": _confidence,
}
