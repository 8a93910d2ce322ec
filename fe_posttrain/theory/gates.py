"""Gates: how much reward and how much demonstration a prompt gets, from what its own rollouts achieved.

A gate multiplies the two energy weights of a prompt. Because it looks at the very rollouts that are trained on,
it is not a weight w_r(x) of one F: a gated run descends no fixed free energy and has no gap to show. p is the
success rate of the prompt's group and s the number of successes in it.

    name           reward factor                   demonstration factor   source
    threshold      1[s > g]                        1[s <= g]              HPT, arXiv 2509.04419
    failure_rate   1                               1 - p                  implicit in LUFFY, arXiv 2504.14945
    unsolved       1                               1[s = 0]               ReLIFT, arXiv 2506.07527, without its buffer
    entropy        e^H of solved rows, 0 of others 1                      SRFT, arXiv 2506.19767

LUFFY trains on groups of 7 rollouts and one demonstration of reward 1 with advantage r - mean: in expectation
49/64 of the reward gradient and 7 (1 - p) / 64 of the demonstration's, that is w_r = 49/64 and w_d = 7/64 here.

Shapes: groups prompts, G rows (rollouts) a group.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import BoolTensor, Tensor


@dataclass(frozen=True)
class GroupOutcomes:
    """What the rollouts of each prompt achieved.

    Attributes:
        rewards: shape (groups, G); NaN: unscorable, and neither a success nor a failure.
        solved: whether a row is a success, shape (groups, G); what unscorable rows hold is never read.
        entropies: mean token entropy of each rollout in nats, shape (groups, G), or None.
        step: optimizer step, counted from 0.
        total_steps: of the run.
    """

    rewards: Tensor
    solved: BoolTensor
    entropies: Tensor | None
    step: int
    total_steps: int

    @property
    def successes(self) -> Tensor:
        """s: scorable rows that are solved, shape (groups,), integers."""
        return (self.solved & ~self.rewards.isnan()).sum(-1)

    @property
    def rate(self) -> Tensor:
        """p = s / scorable rows, shape (groups,); 0 for a group without a scorable row."""
        scorable = (~self.rewards.isnan()).sum(-1)
        return self.successes.to(self.rewards.dtype) / scorable.clamp(min=1)


def threshold(groups: GroupOutcomes, *, solved_at_most: int = 0) -> tuple[Tensor, Tensor]:
    """Demonstration instead of reward where at most `solved_at_most` (g) rows are solved: 1[s > g], 1[s <= g].

    Source: HPT, arXiv 2509.04419; its g is 0 or 2.
    """
    failed = (groups.successes <= solved_at_most).to(groups.rewards.dtype)
    return (1 - failed)[:, None], failed


def failure_rate(groups: GroupOutcomes) -> tuple[Tensor, Tensor]:
    """Reward always, the demonstration as far as the group fails: 1, 1 - p."""
    return _ones(groups), 1 - groups.rate


def unsolved(groups: GroupOutcomes) -> tuple[Tensor, Tensor]:
    """Reward always, the demonstration of a prompt that no row solved: 1, 1[s = 0]."""
    return _ones(groups), (groups.successes == 0).to(groups.rewards.dtype)


def entropy(groups: GroupOutcomes) -> tuple[Tensor, Tensor]:
    """Solved rows only, each times e^H with H its mean token entropy; the demonstration always: e^H 1[solved], 1.

    Source: SRFT, arXiv 2506.19767; its other factor, e^-H of the demonstration, is the shaping `confidence`.

    Raises:
        ValueError: no entropies.
    """
    if groups.entropies is None:
        raise ValueError(
            "entropies: None; the gate entropy weighs each rollout by e^H; record the rollouts' mean token "
            "entropies, or write another gate"
        )
    counts = groups.solved & ~groups.rewards.isnan()
    return torch.where(counts, groups.entropies.detach().exp(), 0.0), _ones(groups)[:, 0]


def _ones(groups: GroupOutcomes) -> Tensor:
    return groups.rewards.new_ones(len(groups.rewards), 1)


# name -> gate(groups, **arguments) -> (reward factor of each row, (groups, 1) or (groups, G);
#                                       demonstration factor of each prompt, (groups,))
GATES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "threshold": threshold,
    "failure_rate": failure_rate,
    "unsolved": unsolved,
    "entropy": entropy,
}
