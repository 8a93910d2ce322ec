"""Forward projection of the reward's target: weighted samples of the policy, or of a bank, instead of advantages."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fe_posttrain.theory.projections import control_variate, forward_advantages, valid_rows
from fe_posttrain.training.bank import Bank, bank_path, chosen, draw_bank
from fe_posttrain.training.finite import require_finite
from fe_posttrain.training.rollout_events import prompt_key
from fe_posttrain.training.run import decide_together
from fe_posttrain.training.terms import RecordsTerms


class ProjectsForward(RecordsTerms):
    """The coefficients of grad log pi under `reward_projection: forward`, and rollouts taken from the bank.

    Both fit pi to pi* = ref e^{w_r r/beta}/Z on draws of q. With A = w/Z - pi/q, w = e^{w_r r/beta} ref/q, the mean of
    -A grad log pi is the gradient of KL(pi* || pi), and A is zero for every completion at pi*: how often q drew one
    does not matter there. At beta = 0 selected rows count alike, and nothing is taken off: that is SFT on them.
    """

    def _set_up_projection(self, draws: bool) -> None:
        """`draws`: whether rollouts are drawn by our own sampler."""
        args = self.args
        self._bank: Bank | None = None
        self._bank_weights: Tensor | None = None
        self._from_bank: Tensor | None = None  # prompt and draw of the rows at hand
        if args.forward_sampler == "bank" and not draws:
            raise ValueError(
                "forward_sampler: bank with vLLM, tools, a rollout_func, generation_kwargs, FSDP or DeepSpeed; the "
                "bank is drawn by the trainer's own sampler; leave those out, or write forward_sampler: policy"
            )

    @property
    def _uses_bank(self) -> bool:
        """Whether the rollouts at hand come from the bank; evaluation always draws its own."""
        return self.args.forward_sampler == "bank" and self.model.training

    def _bank_ready(self, inputs: list[dict]) -> None:
        """Draw the bank where it is due, or read it back, and choose the draws of this generation's rows."""
        args, step = self.args, self.state.global_step
        every = args.bank_refresh_steps
        due = step - step % every if every else 0
        if self._bank is None or self._bank.step != due:
            if due == step:
                self._bank = draw_bank(self)
                if self.accelerator.is_main_process:
                    self._bank.save(bank_path(self, step))
                    for old in bank_path(self, step).parent.glob("step-*.safetensors"):
                        if old != bank_path(self, step) and not self._resumable_from(old):
                            old.unlink()
                self.accelerator.wait_for_everyone()
            else:
                self._bank = decide_together(lambda: Bank.load(bank_path(self, due), due))
            self._bank_weights = None
        weights = self._weights
        if self._bank_weights is None or args.reward_energy_schedule is not None or args.beta_schedule is not None:
            self._bank_weights = self._bank.weights(
                self.reward_weights.cpu(),
                reward_energy_weight=weights.reward,
                beta=weights.beta,
                threshold=args.success_threshold,
            )
        keys = [prompt_key(row["prompt"]) for row in inputs]
        first = self.accelerator.process_index * len(inputs)
        self._from_bank = torch.as_tensor(chosen(self._bank, keys, self.num_generations, args.seed, step, first))

    def _resumable_from(self, path) -> bool:
        """Whether a checkpoint of the run may still need this bank: those since it was drawn, until the next."""
        drawn = int(path.stem.removeprefix("step-"))
        kept = [int(p.name.removeprefix("checkpoint-")) for p in path.parent.parent.glob("checkpoint-*")]
        return any(drawn <= step < drawn + self.args.bank_refresh_steps for step in kept)

    def _rollout_from_bank(self, prompts: list) -> dict[str, list]:
        """What TRL's `rollout_func` gives, without drawing anything."""
        ids = [self._bank.completion(int(prompt), int(draw)) for prompt, draw in self._from_bank]
        return {"prompt_ids": self._tokenize_groups(prompts), "completion_ids": ids, "logprobs": None}

    def _rewards_from_bank(self) -> Tensor:
        """(N, functions) gathered rewards of the rows at hand, as they were judged when drawn."""
        prompt, draw = self._from_bank.T
        rewards = self._bank.rewards[prompt, draw].float().to(self.accelerator.device)
        return self.accelerator.gather(rewards)

    def _shape_from_bank(self, batch: dict) -> None:
        """Put the bank's weights of the rows into the batch, and what the terms of F are measured with."""
        prompt, draw = self._from_bank.T
        device, rows = batch["completion_ids"].device, len(prompt)
        weights = self._bank_weights[prompt, draw].float().to(device)
        first = self.accelerator.process_index * rows
        rewards = (self._gathered_rewards * self.reward_weights.to(device)).nansum(1)
        batch |= {
            "advantages": weights,
            "forward_weights": weights,
            "forward_valid": self._gathered_rewards.isfinite().any(1)[first : first + rows],
            "forward_reward": self._weights.reward * rewards[first : first + rows],
            "log_sampler": self._bank.log_sampler[prompt, draw].float().to(device),
            "bank_log_reference": self._bank.log_reference[prompt, draw].float().to(device),
        }
        batch.pop("old_per_token_logps", None)

    def _forward_shape(self, batch: dict, rewards: Tensor, log_ratio: Tensor, local: slice) -> Tensor:
        """Coefficients (N,) of rollouts of all processes, G w_i / sum_j w_j - 1 on the policy's own draws."""
        beta = self._beta_in_force
        log_reference_ratio = -self.accelerator.gather(log_ratio.sum(1))  # log ref - log q: q is the policy that drew
        weights = forward_advantages(
            rewards,
            log_reference_ratio,
            group_size=self.num_generations,
            reward_energy_weight=self._weights.reward,
            beta=beta,
            threshold=self.args.success_threshold,
        )
        valid = valid_rows(rewards, log_reference_ratio, beta=beta)
        if "old_per_token_logps" in batch:  # used when the policy has moved on: pi/q comes with the forward
            log_sampler = (batch.pop("old_per_token_logps") * self._loss_mask(batch)).sum(1)
            batch |= {"forward_weights": weights[local], "forward_valid": valid[local], "log_sampler": log_sampler}
            batch["forward_reward"] = self._weights.reward * rewards[local]
            batch["reference_log_probs"] = batch.get("_reference_log_probs", torch.zeros_like(log_ratio))
        return control_variate(weights, None, valid=valid) if beta > 0 else weights

    def _forward_watcher(self, inputs: dict):
        """Before the loss uses draws of another law than the policy of now: take pi/q off their weights, and record the
        terms of F. Those of the bank are weighted by pi/q: unbiased, whatever the policy has become."""

        def watch(log_policy: Tensor) -> None:
            mask = self._loss_mask(inputs)
            log_policy = log_policy.masked_fill(~mask, 0.0)
            log_ratio = log_policy.sum(1) - inputs["log_sampler"]
            if "bank_log_reference" in inputs:
                self._record_bank(inputs, log_policy.sum(1), log_ratio.exp())
            elif self._generated_at != self.state.global_step:
                since = (log_policy - inputs["reference_log_probs"]).masked_fill(~mask, 0.0)
                self._record_reused(inputs["forward_reward"], since, mask)
            if self._beta_in_force > 0:
                weights, valid = inputs["forward_weights"], inputs["forward_valid"]
                inputs["advantages"] = control_variate(weights, log_ratio, valid=valid)

        return watch

    def _record_bank(self, inputs: dict, log_policy: Tensor, ratio: Tensor) -> None:
        nats = log_policy - inputs["bank_log_reference"]
        rows = self.accelerator.gather(torch.stack([ratio * inputs["forward_reward"], ratio * nats], dim=1))
        require_finite("reward and KL", rows)
        reward, kl = rows.mean(0).tolist()
        metrics = self._metrics["train"]
        metrics["free_energy/reward"].append(-reward)
        if self.args.uses_reference:
            metrics["free_energy/kl"].append(kl)
            metrics["free_energy/beta"].append(self._beta_in_force)

    def _log_reference_of(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> Tensor:
        """ln ref of each completion, (rows,), float64 nats, at the sampling temperature."""
        pad = self._tokenizer.pad_token_id
        batch = {}
        for name, rows, side in (("prompt", prompt_ids, "left"), ("completion", completion_ids, "right")):
            parts = [torch.tensor(row, device=self.accelerator.device) for row in rows]
            ones = [torch.ones_like(part) for part in parts]
            batch[f"{name}_ids"] = pad_sequence(parts, batch_first=True, padding_value=pad, padding_side=side)
            batch[f"{name}_mask"] = pad_sequence(ones, batch_first=True, padding_side=side)
        scored = self._score_reference(batch)
        return scored.masked_fill(~batch["completion_mask"].bool(), 0.0).double().sum(1).cpu()
