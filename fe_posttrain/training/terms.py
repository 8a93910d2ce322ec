"""The terms of F as they are measured on rollouts, written into TRL's metrics."""

import torch
from torch import Tensor

from fe_posttrain.theory.gibbs import bernoulli_log_partition
from fe_posttrain.theory.kl import KL_ESTIMATORS
from fe_posttrain.training.finite import require_finite
from fe_posttrain.training.prefixes import Prefixes
from fe_posttrain.training.scoring import ScoresRollouts

# Among the metrics until a row is logged: 1 for a micro-batch on rollouts, 0 for one without.
ROLLED_OUT = "rolled out"
KNOWN_P = "reference_p"  # column of exact p_ref(x) of a 0/1 reward: where it is known, the gap is logged


class RecordsTerms(ScoresRollouts):
    """Means over the rollouts of all processes: reward energy, KL(pi || reference), gap."""

    _prefixes: Prefixes | None = None

    @staticmethod
    def _trained_mask(batch: dict) -> Tensor:
        """Tokens (B, T) that advantages multiply: the policy's own, and those of a prefix that join them."""
        mask = batch["completion_mask"]
        return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).bool()

    @classmethod
    def _loss_mask(cls, batch: dict) -> Tensor:
        """The policy's own tokens (B, T), that the KL is taken on."""
        mask = cls._trained_mask(batch)
        return mask & ~batch["prefix_mask"] if "prefix_mask" in batch else mask

    @property
    def _starts_inside(self) -> bool:
        """Whether rollouts of this generation may start inside a demonstration: they are no draws of the policy."""
        return self._prefixes is not None and self._prefixes.in_force

    def _show(self, advantages: Tensor) -> None:
        """In TRL's table of completions, put the advantages that train the rows in the place of TRL's own."""
        column = self._logs["advantages"]
        for _ in range(min(len(column), len(advantages))):
            column.pop()
        column.extend(advantages.tolist())

    def _account_generation(self, batch: dict) -> None:
        """Count what was drawn and judged; tokens of tools and prefixes were given. A bank was counted when drawn."""
        if self._uses_bank:
            return
        given = (batch["completion_mask"] * (1 - batch["tool_mask"])).sum() if "tool_mask" in batch else 0
        judged = len(self._completion_ids) if self._own_reward else 0
        self._account.add(generated_tokens=sum(map(len, self._completion_ids)) - given, verifier_calls=judged)

    def _recorder(self, inputs: dict):
        """Under `estimator: trl`: record the KL from the loss's own forward, where there is a reference."""
        mask, log_reference = self._loss_mask(inputs), inputs.get("ref_per_token_logps")
        if log_reference is None:
            return None
        mode = "train" if self.model.training else "eval"

        def record(log_policy: Tensor) -> None:
            self._record_kl((log_policy - log_reference).masked_fill(~mask, 0.0), mask, mode, ours=False)

        return record

    def _record_kl(self, log_ratio: Tensor, mask: Tensor, mode: str, *, ours: bool = True) -> None:
        """`free_energy/kl` in nats per sequence, beta, and TRL's `kl`: the k3 mean per token."""
        k3 = KL_ESTIMATORS["k3_token"].value_of(log_ratio)
        rows = torch.stack([log_ratio.sum(1), k3, mask.sum(1).float()], dim=1)
        rows = self.accelerator.gather(rows)
        require_finite("KL", rows)
        metrics = self._metrics[mode]
        metrics["free_energy/kl"].append(rows[:, 0].mean().item())
        metrics["free_energy/beta"].append(self._beta_in_force)
        if ours:
            metrics["kl"].append((rows[:, 1].sum() / rows[:, 2].sum().clamp(min=1)).item())

    def _record_reused(self, energy_reward: Tensor, log_ratio: Tensor, mask: Tensor) -> None:
        """On a step that makes no rollouts: the terms of F on the older ones, with the log-probs of now."""
        energy = -self.accelerator.gather(energy_reward).nanmean().item()
        self._metrics["train"]["free_energy/reward"].append(energy)
        if self.args.uses_reference:
            self._record_kl(log_ratio, mask, "train")

    def _add_total(self, metrics: dict[str, list[float]]) -> None:
        """`free_energy/total` of the row about to be logged, and beta; steps without rollouts count 0 in reward and KL,
        which have no weight there."""
        rolled_out = metrics.pop(ROLLED_OUT, [1.0])
        share = _mean(rolled_out)
        if share < 1:
            metrics["free_energy/reward"] = [share * _mean(metrics.get("free_energy/reward") or [0.0])]
        terms = [_mean(metrics[key]) for key in ("free_energy/reward", "free_energy/demonstration") if key in metrics]
        if not (terms and ("free_energy/reward" in metrics or self.args.is_sft)):
            return
        held = [key for key in ("free_energy/kl", "free_energy/demonstration_penalty") if key in metrics]
        if held:
            betas = metrics["free_energy/beta"]
            pairs = zip(betas, metrics[held[0]], strict=True)
            terms.append(share * _mean([beta * nats for beta, nats in pairs]))
            metrics["free_energy/beta"] = [share * _mean(betas)]
        else:
            metrics["free_energy/beta"] = [self._beta_in_force]
        metrics["free_energy/total"] = [sum(terms)]

    def _record_gap(self, known_p: Tensor, mode: str) -> None:
        """F* and F - F* of the batch where p_ref is known: F* = -beta log(1 + p_ref (e^{w_r/beta} - 1))."""
        args, beta = self.args, self._beta_in_force
        if beta == 0 or not args.has_gibbs_optimum or self._starts_inside:
            return
        optimum = -beta * bernoulli_log_partition(
            self.accelerator.gather(known_p.double()),
            reward_energy_weight=args.reward_energy_weight,
            beta=beta,
        )
        metrics = self._metrics[mode]
        total = metrics["free_energy/reward"][-1] + beta * metrics["free_energy/kl"][-1]
        metrics["free_energy/optimum"].append(optimum.mean().item())
        metrics["free_energy/gap"].append(total - optimum.mean().item())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
