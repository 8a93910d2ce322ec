"""Rollouts under the exact estimator: sampled with their log-probs, shaped by reward and KL, given advantages."""

import logging
from dataclasses import replace

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import nanstd

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.sequences.models import can_sample
from fe_posttrain.sequences.sampling import Drawn, sample
from fe_posttrain.theory.advantages import sequence_advantages, sum_to_go_advantages
from fe_posttrain.training import reference
from fe_posttrain.training.account import Account
from fe_posttrain.training.demonstrations import PAIRED_ROW
from fe_posttrain.training.failure_buffer import FailureBuffer
from fe_posttrain.training.finite import require_finite
from fe_posttrain.training.gates import Weights, gate_factors
from fe_posttrain.training.projections import ProjectsForward
from fe_posttrain.training.recording import tell
from fe_posttrain.training.reward_faults import Fault, RewardError, report
from fe_posttrain.training.rollout_events import RolloutEvents
from fe_posttrain.training.terms import KNOWN_P

logger = logging.getLogger(__name__)


class ShapesRollouts(ProjectsForward):
    """Wraps GRPOTrainer's rollouts and policy loss so that the mean gradient is that of F.

    TRL's own KL is off (`beta` of the trainer is 0); ours is in the advantages. Under `estimator: trl` TRL's step
    is left as it is, and only the terms of F are recorded.
    """

    def _set_up_rollouts(self) -> None:
        args = self.args
        self._set_up_scoring()
        self._exact = args.estimator != "trl"
        self.beta = 0.0 if self._exact else args.beta
        self._weights = args.weights_at(0, 0)  # those that the rollouts at hand were shaped with
        self._beta_in_force = self._weights.beta
        self._account = Account()
        self._demonstration_factors: Tensor | None = None  # of the groups at hand, by the gate
        self._first_row = 0  # of this process's, among the rollouts of all
        self._generated_at = 0
        self._divisor = args.loss_divisor or args.max_completion_length
        self._gathered_rewards: Tensor | None = None
        self._masked_rows: dict[str, int] = {}
        self._events = RolloutEvents(self)
        self._completions: list = []
        self._completion_ids: list = []
        self._failure_buffer: FailureBuffer | None = None
        self._drawn_entropies: list[list[float]] | None = None
        self._checked_log_probs = False
        self._decoding = Decoding(args.max_completion_length, args.temperature, args.top_p, args.top_k, args.min_p)
        self._trusts_sampler = not (self._decoding.truncates or self.use_vllm)
        draws = self._can_sample()
        if draws:
            self.rollout_func = type(self)._rollout
        self._set_up_projection(draws)

    @property
    def _weights_now(self) -> Weights:
        """w_r, w_d and beta of the optimizer step at hand."""
        return self.args.weights_at(self.state.global_step, self.state.max_steps)

    def _can_sample(self) -> bool:
        """Whether our sampler draws the rollouts; TRL generates in every other setting."""
        args = self.args
        return (
            self._exact
            and self.rollout_func is None
            and not (self.tools or self.environment_factories)
            and not (args.use_vllm or args.use_transformers_continuous_batching)
            and not (args.generation_kwargs or args.cache_implementation)
            and args.repetition_penalty == 1.0
            and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
            and can_sample(self.model)
        )

    @staticmethod
    def _rollout(prompts: list, trainer: "ShapesRollouts") -> dict[str, list]:
        """TRL's `rollout_func`: draw completions and keep the log-probs they were drawn with."""
        if trainer._uses_bank:
            return trainer._rollout_from_bank(prompts)
        prompt_ids, prefixes = trainer._tokenize_groups(prompts), trainer._prefixes
        drawn, beside = prefixes.draw(trainer._sample, prompt_ids) if prefixes else (trainer._sample(prompt_ids), {})
        trainer._drawn_entropies = drawn.entropies
        return {"prompt_ids": prompt_ids, "completion_ids": drawn.completion_ids, "logprobs": drawn.log_probs} | beside

    def _sample(self, token_ids: list[list[int]], **settings) -> Drawn:
        """A completion of each prompt by the policy as it is; `settings` as `sample` takes them."""
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return sample(
                self.accelerator.unwrap_model(self.model_wrapped),
                token_ids,
                self._decoding,
                eos_token_ids=self.eos_token_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                compiled=self.args.compile_generation,
                **settings,
            )

    def _tokenize_groups(self, prompts: list) -> list[list[int]]:
        """Token ids of each prompt; one that stands in consecutive rows is tokenised once."""
        different = [i for i in range(len(prompts)) if i == 0 or prompts[i] != prompts[i - 1]]
        ids = self._tokenize_prompts([prompts[i] for i in different])[0]
        counts = [stop - start for start, stop in zip(different, [*different[1:], len(prompts)], strict=True)]
        return [found for found, count in zip(ids, counts, strict=True) for _ in range(count)]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        judged = (
            self._rewards_from_bank()
            if self._uses_bank
            else self._judge(inputs, prompts, completions, completion_ids_list)
        )
        self._gathered_rewards, self._completions, self._completion_ids = judged, completions, completion_ids_list
        return judged

    def _judge(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        """(N, functions) rewards of all processes' rows, by TRL's code; NaN where one failed."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        faults = [fault for function in self.reward_funcs for fault in getattr(function, "faults", [])]
        rewards = self._without(faults, rewards, len(prompts))
        for name, column in zip(self.reward_func_names, rewards.unbind(1), strict=True):
            require_finite(f"reward {name}", column.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf))
        return rewards

    def _without(self, faults: list[Fault], rewards: Tensor, rows: int) -> Tensor:
        """Gathered rewards (N, functions) with NaN in the rows that any function failed on, by `reward_fault_policy`.

        Raises:
            RewardError: on every process, if a row failed and the policy is to stop, or too many did.
        """
        failed = torch.zeros(rows, device=self.accelerator.device)
        failed[[fault.row for fault in faults]] = 1
        failed = self.accelerator.gather(failed).bool()
        if failed.any():
            first = self.accelerator.process_index * rows
            faults = gather_object([replace(fault, row=first + fault.row) for fault in faults])
            message, share = report(faults, len(failed)), failed.float().mean().item()
            if self.args.reward_fault_policy == "stop":
                raise RewardError(f"{message}\nwrite reward_fault_policy: mask to leave such rows out")
            if share > self.args.reward_fault_limit:
                raise RewardError(f"{message}\nmore than reward_fault_limit: {self.args.reward_fault_limit:g} of them")
            if not self._masked_rows and self.accelerator.is_main_process:
                logger.warning("%s\nleft out of the loss and counted from now on (reward_fault_policy: mask)", message)
            tell(self, "fault", message=message, rows=int(failed.sum()))
            for fault in faults:
                self._masked_rows[fault.function] = self._masked_rows.get(fault.function, 0) + 1
            rewards = rewards.masked_fill(failed[:, None], torch.nan)
        for name, count in self._masked_rows.items():  # totals since the start, like TRL's num_tokens
            self._metrics["train" if self.model.training else "eval"][f"rewards/{name}/faults"] = [count]
        return rewards

    def _generate_and_score_completions(self, inputs):
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._generated_at = self.state.global_step
            self._weights = self._weights_now
            self._beta_in_force = self._weights.beta
            self._first_row = self.accelerator.process_index * len(inputs)
            if self._uses_bank:
                self._bank_ready(inputs)
        if not self._exact:
            self.beta = self._beta_in_force
        known_p, self._drawn_entropies = [row.get(KNOWN_P) for row in inputs], None
        rows = [row.pop(PAIRED_ROW, None) for row in inputs]
        if self._prefixes:
            self._prefixes.begin(rows, mode)
        batch = super()._generate_and_score_completions(inputs)
        if mode == "train":
            self._compare_once(batch)
            self._account_generation(batch)
            if self._prefixes:
                self._prefixes.arrange(batch)
        per_function = self._gathered_rewards * self.reward_weights.to(self._gathered_rewards.device)
        rewards = per_function.nansum(1).masked_fill(per_function.isnan().all(1), torch.nan)
        if mode == "train" and self._failure_buffer is not None:
            self._failure_buffer.see(rows, rewards, inputs, self._completions, self._completion_ids)
        if self._uses_bank:  # the terms of F come with the forward of the loss
            self._shape_from_bank(batch)
            return self._by_group(batch)
        weight = self._weights.reward  # in evaluation as in the training before it
        energy = -weight * rewards.nanmean().item() if weight else 0.0
        self._metrics[mode]["free_energy/reward"].append(energy)
        if not self._exact:
            if weight != 1:
                batch["advantages"] = batch["advantages"] * weight
        else:
            self._shape(batch, rewards, mode)
        self._tell(inputs, batch, mode)
        if self._exact and all(p is not None for p in known_p):
            self._record_gap(torch.tensor(known_p, device=rewards.device), mode)
        return self._by_group(batch) if mode == "train" else batch

    def _tell(self, inputs: list[dict], batch: dict, mode: str) -> None:
        """Hand the rollouts to callbacks; `batch` loses what only they read."""
        known = [batch.pop("_policy_log_probs", None), batch.get("old_per_token_logps")]
        if self._exact and self._trusts_sampler:
            known.append(batch.get("sampling_per_token_logps"))
        if mode == "train" and not self._starts_inside:
            log_policy = next((log_probs for log_probs in known if log_probs is not None), None)
            self._events.made(inputs, batch, self._gathered_rewards, self._completions, log_policy)
        batch.pop("_reference_log_probs", None)

    def _shape(self, batch: dict, rewards: Tensor, mode: str) -> None:
        """Put the exact estimator's advantages into the batch and record KL(pi || reference)."""
        args, mask = self.args, self._loss_mask(batch)
        if args.uses_reference:
            log_ratio = self._log_ratio(batch, mask)
            self._record_kl(log_ratio, mask, mode)
        else:
            log_ratio = torch.zeros(mask.shape, device=rewards.device)
        rank, rows = self.accelerator.process_index, len(mask)
        local = slice(rank * rows, (rank + 1) * rows)
        group = self.num_generations if mode == "train" else self.num_generations_eval
        scale = self._reward_scale(rewards, group)
        if mode == "train" and args.quiet_group_rate < 1:
            scale = scale / self._group_weights(rewards, group)
        if mode == "train" and args.projects_forward(self.state.global_step):
            advantages = self._forward_shape(batch, rewards, log_ratio, local) / scale
        else:
            advantages = self._reverse_shape(batch, rewards, log_ratio, scale, mode)
        batch["advantages"] = advantages[local]
        drawn, idle = self._drawn_entropies, (batch["advantages"] == 0).any()
        if drawn is not None and self._trusts_sampler and not _is_reused(batch) and idle:
            drawn = pad_sequence([torch.tensor(row) for row in drawn], batch_first=True)
            drawn = pad(drawn, (0, batch["completion_ids"].shape[1] - drawn.shape[1]))
            batch["sampling_entropies"] = drawn.to(rewards.device)
        self._show(advantages if advantages.dim() == 1 else advantages[:, 0])

    def _reverse_shape(self, batch: dict, rewards: Tensor, log_ratio: Tensor, scale: Tensor, mode: str) -> Tensor:
        """Advantages (N,) or (N, T) of the gradient of F, gated and scaled, of all processes' rows."""
        args = self.args
        weight = self._weights.reward
        group = self.num_generations if mode == "train" else self.num_generations_eval
        settings = {"group_size": group, "reward_energy_weight": weight, "beta": self._beta_in_force}
        gather, width = self.accelerator.gather, log_ratio.shape[1]
        if args.estimator == "sequence":
            advantages, baseline = sequence_advantages(rewards, gather(log_ratio.sum(1)), **settings)
        else:
            padded = self.accelerator.pad_across_processes(log_ratio, dim=1)
            advantages, baseline = sum_to_go_advantages(rewards, gather(padded), **settings)
            advantages, baseline = advantages[:, :width], baseline[:, :width]
        gated = self._gated(rewards, settings) if mode == "train" and args.gate is not None else None
        scale = scale if advantages.dim() == 1 else scale[:, None]
        advantages = (advantages if gated is None else advantages + gated) / scale
        if "old_per_token_logps" in batch:  # the policy may have moved when a row is used: see `_compute_loss`
            rank, rows = self.accelerator.process_index, len(log_ratio)
            local = slice(rank * rows, (rank + 1) * rows)
            batch["energy_reward"] = weight * rewards[local]
            batch["energy_baseline"] = (baseline if gated is None else baseline - gated)[local]
            batch["energy_scale"] = scale.expand(len(rewards), *scale.shape[1:])[local]
            batch["reference_log_probs"] = batch.get("_reference_log_probs", torch.zeros_like(log_ratio))
        return advantages

    def _gated(self, rewards: Tensor, settings: dict) -> Tensor:
        """What the gate adds to advantages (N,): (factor - 1) times their reward's part. Keeps the factors of the
        groups' demonstrations."""
        entropies = None
        if self._drawn_entropies is not None:
            means = [sum(row) / max(1, len(row)) for row in self._drawn_entropies]
            entropies = self.accelerator.gather(torch.tensor(means, device=rewards.device))
        factors, self._demonstration_factors = gate_factors(
            self.args, rewards, entropies, self.num_generations, self.state.global_step, self.state.max_steps
        )
        reward_part = sequence_advantages(rewards, torch.zeros_like(rewards), **settings | {"beta": 0.0})[0]
        metrics = self._metrics["train"]
        metrics["gate/reward"].append(factors.mean().item())
        metrics["gate/demonstration"].append(self._demonstration_factors.mean().item())
        return (factors - 1) * reward_part

    def _reward_scale(self, rewards: Tensor, group: int) -> Tensor:
        """What advantages are divided by, (N,): 1, or the deviation that `scale_rewards` asks for."""
        if self.args.scale_rewards == "none" or group < 2:
            return torch.ones_like(rewards)
        if self.args.scale_rewards == "batch":
            return nanstd(rewards).expand_as(rewards) + 1e-4
        return nanstd(rewards.view(-1, group), dim=1).repeat_interleave(group) + 1e-4

    def _group_weights(self, rewards: Tensor, group: int) -> Tensor:
        """1 for rows (N,) of groups with reward signal; of those without, 1/q with probability q and else 0.

        The mean over draws is 1 for every row, so the expected gradient is that of all groups. The draw depends on
        seed and micro-step alone: the same on every process and after a resume.
        """
        rate, grouped = self.args.quiet_group_rate, rewards.view(-1, group)
        drawn = np.random.default_rng([self.args.seed, self._step]).random(len(grouped))
        weights = torch.as_tensor((drawn < rate) / rate, dtype=rewards.dtype, device=rewards.device)
        quiet = (grouped == grouped[:, :1]).all(1)
        return torch.where(quiet, weights, 1.0).repeat_interleave(group)

    def _log_ratio(self, batch: dict, mask: Tensor) -> Tensor:
        """log pi - log reference of every trained token, (B, T), zero elsewhere; nats."""
        log_reference = self._score_reference(batch)
        batch["_reference_log_probs"] = log_reference
        if not self._checked_log_probs and self.model.training:
            self._checked_log_probs = True
            self._check_log_probs(batch, log_reference, mask)
        if "old_per_token_logps" in batch:
            log_policy = batch["old_per_token_logps"]
        elif "sampling_per_token_logps" in batch and self._trusts_sampler:
            log_policy = batch["sampling_per_token_logps"]
        else:
            log_policy = self._score(self.model, batch)
        batch["_policy_log_probs"] = log_policy
        return (log_policy - log_reference).masked_fill(~mask, 0.0)

    def _check_log_probs(self, batch: dict, log_reference: Tensor, mask: Tensor) -> None:
        """Once, on the first rollouts: the policy is at its reference, and the sampler's log-probs are the policy's."""
        scored = self._score(self.model, batch)
        low_precision = reference.low_precision(self)
        if self.state.global_step == self._resets.taken_at:
            reference.check_starts_at_reference(scored - log_reference, mask, low_precision)
        if self._trusts_sampler and "sampling_per_token_logps" in batch:
            apart = reference.mean_difference(batch["sampling_per_token_logps"] - scored, mask)
            if not apart <= reference.rounding(low_precision):
                self._trusts_sampler = False
                logger.warning(
                    "The log-probs of the sampler differ from those of the scoring forward by %.2g nats per token "
                    "(absolute positions beside padded prompts?). From now on every step scores its rollouts once "
                    "more.",
                    apart,
                )

    def _compute_loss(self, model, inputs):
        self._by_row(inputs)
        watcher = self._watcher(inputs)

        beside: list[Tensor | float] = []  # terms that read the same forward

        def watch(scored: Tensor) -> None:
            if self._prefixes:
                beside.append(self._prefixes.likelihood(inputs, scored))
            log_policy = scored.detach()
            self._events.scored(inputs, log_policy)
            if watcher is not None:
                watcher(log_policy)

        with_gradient = self._rows_with_gradient(inputs)
        kept = self._prefixes.with_hints(inputs, with_gradient) if self._prefixes else with_gradient
        with self._watching_log_probs(watch), self._without_idle(inputs, kept):
            loss = super()._compute_loss(model, inputs)
        if self.model.training:
            mask = self._trained_mask(inputs)
            self._account.add(gradient_tokens=(mask if with_gradient is None else mask[with_gradient]).sum())
        loss = loss * (self.max_completion_length / self._divisor) if self._exact else loss
        return loss + sum(beside)

    def _rows_with_gradient(self, inputs: dict) -> Tensor | None:
        """Which rows (B,) have a gradient under the exact estimators: those with an advantage. None: ask not."""
        if not self._exact or self._entropy_bonus_enabled:
            return None
        rows = len(inputs["advantages"])
        if "energy_reward" in inputs and self._beta_in_force > 0:  # advantages come with the forward
            return inputs["energy_scale"].view(rows, -1).isfinite().all(1)
        if "forward_valid" in inputs and self._beta_in_force > 0:
            return inputs["forward_valid"]
        return (inputs["advantages"] != 0).view(rows, -1).any(1)

    def _watcher(self, inputs: dict):
        """What reads the policy's log-probs before TRL uses the batch: to record terms of F, or to shape with them."""
        if not self._exact:
            return self._recorder(inputs)
        return self._forward_watcher(inputs) if "forward_weights" in inputs else self._refresher(inputs)

    def _refresher(self, inputs: dict):
        """Recompute the shaped reward with the policy of now, for rollouts that an older policy made."""
        if "energy_reward" not in inputs:
            return None

        def refresh(log_policy: Tensor) -> None:
            log_ratio = log_policy - inputs["reference_log_probs"]
            mask = self._loss_mask(inputs)
            log_ratio = log_ratio.masked_fill(~mask, 0.0)
            cost, reward = log_ratio.sum(1), inputs["energy_reward"]
            if self._generated_at != self.state.global_step:
                self._record_reused(reward, log_ratio, mask)
            if inputs["energy_baseline"].dim() == 2:
                cost, reward = log_ratio.flip(1).cumsum(1).flip(1), reward[:, None]
            shaped = reward - self._beta_in_force * cost
            advantages = (shaped - inputs["energy_baseline"]) / inputs["energy_scale"]
            inputs["advantages"] = advantages.nan_to_num(nan=0.0)

        return refresh


def _is_reused(batch: dict) -> bool:
    """Whether rows may be used when the policy has moved on."""
    return "old_per_token_logps" in batch or "forward_weights" in batch
