"""The free energy of a policy over enumerated completions.

    F(pi) = w_r E_{y~pi}[energy(y)] + w_d E_{y~p_D}[-log pi(y)] + beta KL(pi || ref)

Source: Li & Liu 2026, arXiv 2605.08368; energy = -reward. Shapes: the last axis enumerates the Y completions
of one prompt, leading axes are prompts (or anything else) and broadcast.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fe_posttrain.theory.kl import exact_kl


@dataclass(frozen=True)
class FreeEnergyTerms:
    """F, one field per term of the equation.

    Attributes:
        reward: w_r E_{y~pi}[energy], weighted, in energy units.
        demonstration: w_d E_{y~p_D}[-log pi(y)], weighted, in energy units.
        kl: KL(pi || ref), *not* weighted, in nats per sequence.
        beta: temperature, in energy units per nat.
    """

    reward: float | Tensor
    demonstration: float | Tensor
    kl: float | Tensor
    beta: float

    @property
    def total(self) -> float | Tensor:
        """F = reward + demonstration + beta kl. At beta = 0 an infinite KL costs nothing."""
        penalty = self.beta * self.kl if self.beta else 0.0
        return self.reward + self.demonstration + penalty


def exact_free_energy(
    log_policy: Tensor,
    log_reference: Tensor,
    energy: Tensor,
    *,
    reward_energy_weight: float = 1.0,
    beta: float,
    demonstrations: Tensor | None = None,
    demonstration_energy_weight: float = 0.0,
) -> FreeEnergyTerms:
    """F of an enumerated policy; differentiable with respect to `log_policy`.

    Args:
        log_policy: log pi(y), shape (..., Y), normalised. -inf is a completion that the policy never
            produces: it adds nothing, to the value or to the gradient.
        log_reference: log ref(y), shape (..., Y). Where it is -inf and the policy has mass, `kl` is +inf and
            the gradient ignores that completion: F has no finite value there (the *singular* regime).
        energy: energy of each completion, shape (..., Y), finite.
        reward_energy_weight: w_r.
        beta: temperature, in energy units per nat.
        demonstrations: p_D(y), shape (..., Y), probabilities (times the number of demonstrations per rollout
            of the prompt, where that is not one).
        demonstration_energy_weight: w_d.

    Returns:
        Terms of shape (...). `demonstration` is +inf where the policy cannot produce a demonstration.

    Raises:
        ValueError: `demonstration_energy_weight` without `demonstrations`.

    Source: Li & Liu 2026, arXiv 2605.08368.

    >>> terms = exact_free_energy(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log(),
    ...                           torch.tensor([0.0, -1.0]), beta=0.1)
    >>> round(float(terms.total), 4)  # -0.5 + 0.1 * 0.5108
    -0.4489
    """
    expected_energy = (log_policy.exp() * energy).sum(-1)
    demonstration = torch.zeros_like(expected_energy)
    if demonstration_energy_weight:
        if demonstrations is None:
            raise ValueError(
                f"demonstrations: None with demonstration_energy_weight {demonstration_energy_weight}; the "
                "term averages over demonstrations; pass their probabilities, or write weight 0"
            )
        surprise = -torch.where(demonstrations > 0, log_policy, 0.0)  # 0 * -inf is no surprise
        demonstration = demonstration_energy_weight * (demonstrations * surprise).sum(-1)
    return FreeEnergyTerms(
        reward=reward_energy_weight * expected_energy,
        demonstration=demonstration,
        kl=exact_kl(log_policy, log_reference),
        beta=beta,
    )
