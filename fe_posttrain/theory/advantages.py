"""Advantages: the coefficients of grad log pi in the default estimator of grad F.

    shaped reward   s = w_r reward - beta sum_t (log pi - log ref), a constant to the gradient
    advantage       A = s - mean of s over the *other* rows of the group
    loss            -1/N sum_rows A log pi(y)

The mean of its gradient is grad F, exactly and at every group size: the baseline does not depend on the row
that it is subtracted from. At the Gibbs optimum s is the same for every completion, so every single batch has
gradient zero there. Dividing A by a standard deviation, or a row's loss by its length, loses the first
property.

Shapes: N rows in group order (rows of a group are neighbours), G rows a group, T tokens. A row whose shaped
reward is not finite (a NaN reward: unscorable; an infinite log-ratio: outside the reference's support) has
advantage 0 and is left out of the others' baseline.

Sources: Li & Liu 2026, arXiv 2605.08368 (F); Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for
free!" and Ahmadian et al. 2024, arXiv 2402.14740 (leave-one-out).
"""

import torch
from torch import BoolTensor, Tensor


def leave_one_out(values: Tensor, valid: BoolTensor | None = None) -> Tensor:
    """Each value minus the mean of the other valid rows of its group.

    Args:
        values: shape (groups, G, ...); what invalid rows hold, NaN included, is never read.
        valid: shape (groups, G); None: all are.

    Returns:
        Same shape as `values`; 0 for invalid rows and for rows without another valid row.

    >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    if valid is None:
        valid = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    return _subtract_baseline(values, valid)[0]


def in_groups(values: Tensor, group_size: int) -> Tensor:
    """Rows in group order as groups, (N, ...) -> (groups, G, ...); ValueError unless G divides N."""
    rows = values.shape[0]
    if group_size < 1 or rows % group_size:
        raise ValueError(
            f"group_size: {group_size} for {rows} rows; rows come in whole groups; write a divisor of {rows}"
        )
    return values.unflatten(0, (-1, group_size))


def sequence_advantages(
    reward: Tensor,
    log_ratio: Tensor,
    *,
    group_size: int,
    reward_energy_weight: float = 1.0,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Advantages of whole completions (estimator `sequence`).

    Args:
        reward: shape (N,); NaN: unscorable.
        log_ratio: sum_t (log pi - log ref) of each completion in nats, shape (N,).
        group_size: G; divides N.
        reward_energy_weight: w_r.
        beta: temperature, in energy units per nat.

    Returns:
        `(advantages, baseline)`, both (N,), detached, in energy units; advantages = s - baseline on valid
        rows. The baseline of a row without another valid row is its own s (0 if it is invalid itself).

    Raises:
        ValueError: N is not a multiple of `group_size`.
    """
    shaped = _shaped(reward, log_ratio, reward_energy_weight, beta)
    return _grouped(shaped, torch.isfinite(shaped), group_size)


def sum_to_go_advantages(
    reward: Tensor,
    log_ratio: Tensor,
    *,
    group_size: int,
    reward_energy_weight: float = 1.0,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """Advantages of tokens, each charged the KL from its own position on (estimator `sequence_to_go`).

        s_t = w_r reward - beta sum_{t' >= t} (log pi_t' - log ref_t')

    What came before a token does not depend on it, so leaving it out changes the variance and not the mean.
    The baseline at position t is the others' mean of s_t; a row that has ended counts with its w_r reward.

    Args:
        reward: shape (N,); NaN: unscorable.
        log_ratio: log pi - log ref of each token in nats, shape (N, T), zero where masked.
        group_size, reward_energy_weight, beta: as in `sequence_advantages`.

    Returns:
        `(advantages, baseline)`, both (N, T), detached, in energy units. Masked positions hold values too:
        the loss masks them.

    Raises:
        ValueError: N is not a multiple of `group_size`.
    """
    to_go = log_ratio.flip(-1).cumsum(-1).flip(-1)
    shaped = _shaped(reward[:, None], to_go, reward_energy_weight, beta)
    return _grouped(shaped, torch.isfinite(shaped).all(-1), group_size)


def _shaped(reward: Tensor, log_ratio: Tensor, reward_energy_weight: float, beta: float) -> Tensor:
    """w_r reward - beta log_ratio, detached; at beta = 0 an infinite log-ratio costs nothing."""
    penalty = beta * log_ratio if beta else torch.zeros_like(log_ratio)
    return (reward_energy_weight * reward - penalty).detach()


def _grouped(shaped: Tensor, valid: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Split rows (N, ...) into groups, subtract baselines, join them again."""
    advantages, baseline = _subtract_baseline(in_groups(shaped, group_size), in_groups(valid, group_size))
    return advantages.flatten(0, 1), baseline.flatten(0, 1)


def _subtract_baseline(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(values - baseline, baseline) with the baseline of each row from the other valid rows of its group."""
    valid = valid.reshape(valid.shape + (1,) * (values.dim() - 2))
    kept = torch.where(valid, values, 0.0)
    others = valid.sum(1, keepdim=True) - valid.long()
    baseline = torch.where(others > 0, (kept.sum(1, keepdim=True) - kept) / others.clamp(min=1), kept)
    return torch.where(valid, kept - baseline, 0.0), baseline
