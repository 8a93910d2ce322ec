"""What a demonstrated token costs: -log pi, the same with a factor phi, or the distance to a soft target."""

from typing import NamedTuple

import torch
from torch import Tensor

from fe_posttrain.theory.projections import demonstration_loss
from fe_posttrain.training import reference
from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.gates import SHAPING
from fe_posttrain.training.named import find


class TokenEnergies(NamedTuple):
    """Of a batch of demonstrations, (rows, T - 1), zero where a token is not trained.

    energy: what is descended. negative_log_probs: -log pi, no gradient; what `free_energy/demonstration` reports
    under every projection.
    """

    energy: Tensor
    negative_log_probs: Tensor


def is_plain(args: FreeEnergyConfig) -> bool:
    """Whether the energy of a demonstrated token is -log pi and nothing else."""
    return (
        args.demonstration_projection == "forward"
        and args.demonstration_beta == 0
        and args.demonstration_shaping is None
    )


def of_log_probs(args: FreeEnergyConfig, log_probs: Tensor, entropies: Tensor, trained: Tensor) -> TokenEnergies:
    """At temperature 0, from what the fused head gives.

    Args:
        log_probs, entropies: (rows, T - 1) of the labels after the first, zero where they are not trained; nats.
        trained: (rows, T - 1) bool.
    """
    negative = -log_probs.detach()
    if args.demonstration_projection == "reverse":
        return TokenEnergies(-log_probs.exp().masked_fill(~trained, 0.0), negative)
    if args.demonstration_shaping is None:
        return TokenEnergies(-log_probs, negative)
    shaping = find(SHAPING, args.demonstration_shaping)
    phi = shaping(log_probs.detach(), entropies.detach(), trained)
    return TokenEnergies(-(phi * log_probs).masked_fill(~trained, 0.0), negative)


def of_logits(trainer, logits: Tensor, inputs: dict[str, Tensor], labels: Tensor) -> TokenEnergies:
    """At temperature demonstration_beta: over the whole vocabulary, with the reference scored beside the policy.

    Args:
        logits: (rows, T, V) of the policy.
        inputs: what the model was called with, without labels.
        labels: (rows, T), -100 where nothing is trained.
    """
    args, trained = trainer.args, labels[:, 1:] != -100
    targets = labels[:, 1:][trained]
    log_policy = logits[:, :-1][trained].float().log_softmax(-1)
    with torch.no_grad(), reference.scoring(trainer) as model:
        log_reference = model(**inputs).logits[:, :-1][trained].float().log_softmax(-1)
    energies = demonstration_loss(
        log_policy,
        targets,
        projection=args.demonstration_projection,
        demonstration_beta=args.demonstration_beta,
        log_reference=log_reference,
    )
    negative = -log_policy.detach().gather(-1, targets[:, None])[:, 0]
    apart = torch.zeros(trained.shape, device=logits.device)
    return TokenEnergies(
        apart.masked_scatter(trained, energies.float()), apart.masked_scatter(trained, negative.float())
    )
