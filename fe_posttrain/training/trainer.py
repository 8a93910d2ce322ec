"""FreeEnergyTrainer: GRPOTrainer with the exact gradient of F, demonstrations in the same step, or plain SFT.

How a step runs: TRL's loader delivers prompts; our sampler draws completions and keeps their log-probs; TRL calls
the rewards; log-ratios and rewards of all processes are gathered in TRL's row order, shaped and given leave-one-out
advantages; TRL shuffles, splits and computes the policy loss with them (its own KL switched off: the KL is in the
advantages); the demonstrations' term is added; one backward. TRL's methods are wrapped, never copied.
"""

import logging
from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import Trainer, set_seed
from trl import GRPOTrainer, SFTTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import add_fused_lm_head, identity, nanstd, use_adapter

from fe_posttrain.sequences import Decoding, can_sample, sample
from fe_posttrain.theory.advantages import sequence_advantages, sum_to_go_advantages
from fe_posttrain.theory.gibbs import bernoulli_log_partition
from fe_posttrain.theory.kl import KL_ESTIMATORS
from fe_posttrain.training import demonstrations, reference
from fe_posttrain.training.config import FreeEnergyConfig, what_changes_the_optimum
from fe_posttrain.training.finite import require_finite, require_finite_gradients
from fe_posttrain.training.rewards import no_reward

logger = logging.getLogger(__name__)

KNOWN_P = "reference_p"  # column of exact p_ref(x) of a 0/1 reward: where it is known, the gap is logged


class FreeEnergyTrainer(GRPOTrainer):
    """Descend F(pi) = w_r E[-reward] + w_d E_demonstrations[-log pi] + beta KL(pi || reference).

    Takes what GRPOTrainer takes, by the same names, and `demo_dataset`: rows of `prompt` and `completion` (or
    `text`, `messages`), a stream of their own beside the rollouts. A column `demonstration` of `train_dataset`
    pairs demonstrations with their prompts instead. Without reward energy and beta the run is SFTTrainer's, step
    for step, and generates nothing.

    Raises:
        ValueError: demonstrations without a weight, a weight without demonstrations, or images.
        FloatingPointError: a term of F or a gradient is not finite; raised before the optimizer moves.
    """

    _tag_names = ["trl", "free-energy"]  # noqa: RUF012 (TRL's own class attribute)
    _name = "FreeEnergy"

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: FreeEnergyConfig | None = None,
        train_dataset=None,
        demo_dataset=None,
        eval_dataset=None,
        processing_class=None,
        callbacks=None,
        peft_config=None,
        reward_processing_classes=None,
        optimizers=(None, None),
        quantization_config=None,
        tools=None,
        rollout_func=None,
        environment_factory=None,
    ):
        args = FreeEnergyConfig("free-energy") if args is None else args
        demo_dataset = _check_data(args, train_dataset, demo_dataset)
        self._own_reward = reward_funcs is not None or environment_factory is not None
        if not self._own_reward and args.reward_energy_weight == 0:
            reward_funcs = no_reward
        snapshot = reference.snapshot_is_ours(model, args, peft_config)
        with reference.without_reload(args, snapshot):
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=demo_dataset if args.is_sft else train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                reward_processing_classes=reward_processing_classes,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
                tools=tools,
                rollout_func=rollout_func,
                environment_factory=environment_factory,
            )
        if self._is_vlm:
            raise ValueError("processing_class: a processor for images; only text is supported; pass a tokenizer")
        if snapshot:
            reference.attach_snapshot(self)
        self._exact = args.estimator != "trl"
        self.beta = 0.0 if self._exact else args.beta  # TRL's own KL; ours is in the advantages
        self._beta_in_force = args.beta
        self._divisor = args.loss_divisor or args.max_completion_length
        self._demonstrations = None
        self._demonstration_queue: list = []
        self._gathered_rewards: Tensor | None = None
        self._on_log_probs = None
        self._last_log_probs: Tensor | None = None
        self._checked_reference = not args.uses_reference
        if args.is_sft:
            self._become_sft()
        elif demo_dataset is not None:
            self._demonstrations = demonstrations.DemonstrationStream(demo_dataset, self._tokenizer, args)
        elif args.demonstration_energy_weight:
            self._demonstrations = demonstrations.PairedDemonstrations(train_dataset, self._tokenizer, args)
            self.train_dataset = train_dataset.add_column(demonstrations.PAIRED_ROW, list(range(len(train_dataset))))
        self._decoding = Decoding(args.max_completion_length, args.temperature, args.top_p, args.top_k, args.min_p)
        self._samples = self._can_sample()
        if self._samples:
            self.rollout_func = type(self)._rollout
        if self.accelerator.is_main_process and (lines := what_changes_the_optimum(args)):
            logger.warning("This run does not end at the optimum of F as written:\n  - %s", "\n  - ".join(lines))

    def _send_telemetry(self) -> None:
        """TRL reports every trainer that is built; we do not."""

    # ---- pure SFT: the run is SFTTrainer's ------------------------------------------------------------------

    def _become_sft(self) -> None:
        """Prepare data, collate, score and seed as SFTTrainer does, so that the run equals its bit for bit."""
        args = self.args
        self.train_dataset = demonstrations.prepare(
            self.train_dataset, self._tokenizer, args, shuffle=args.shuffle_dataset
        )
        self.data_collator = demonstrations.collator(self._tokenizer, args)
        self.loss_is_scaled_for_ga = SFTTrainer.loss_is_scaled_for_ga
        self._tp_size = self.get_tp_size()
        self._evaluates_demonstrations = not self._own_reward
        if self.eval_dataset is not None and self._evaluates_demonstrations:
            several = isinstance(self.eval_dataset, dict)
            prepared = {
                name: demonstrations.prepare(rows, self._tokenizer, args, shuffle=False)
                for name, rows in (self.eval_dataset if several else {"": self.eval_dataset}).items()
            }
            self.eval_dataset = prepared if several else prepared[""]
        model = self.model.get_base_model() if is_peft_model(self.model) else self.model
        vars(model).pop("forward", None)
        # At the sampling temperature when evaluation makes rollouts, else as SFTTrainer does.
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        set_seed(args.seed)

    def _set_signature_columns_if_needed(self) -> None:
        if self.args.is_sft:
            self._signature_columns = ["input_ids", "labels", "seq_lengths"]
        super()._set_signature_columns_if_needed()

    def get_train_dataloader(self):
        return Trainer.get_train_dataloader(self) if self.args.is_sft else super().get_train_dataloader()

    def _get_train_sampler(self, dataset=None):
        owner = Trainer if self.args.is_sft else GRPOTrainer
        return owner._get_train_sampler(self, dataset)

    @property
    def _steps_as_sft(self) -> bool:
        """Whether the batch at hand is one of SFT's: in training always, in evaluation without a reward."""
        return self.args.is_sft and (self.model.training or self._evaluates_demonstrations)

    def _get_eval_sampler(self, eval_dataset):
        demonstrates = self.args.is_sft and self._evaluates_demonstrations
        return (Trainer if demonstrates else GRPOTrainer)._get_eval_sampler(self, eval_dataset)

    def get_eval_dataloader(self, eval_dataset=None):
        if self.args.is_sft and self._evaluates_demonstrations:
            return Trainer.get_eval_dataloader(self, eval_dataset)
        kept = self.data_collator, self.args.remove_unused_columns
        self.data_collator, self.args.remove_unused_columns = identity, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator, self.args.remove_unused_columns = kept

    def _prepare_inputs(self, generation_batch):
        if self._steps_as_sft:
            return Trainer._prepare_inputs(self, generation_batch)
        return super()._prepare_inputs(generation_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        owner = SFTTrainer if self._steps_as_sft else GRPOTrainer
        return owner.prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)

    # ---- rollouts -------------------------------------------------------------------------------------------

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
    def _rollout(prompts: list, trainer: "FreeEnergyTrainer") -> dict[str, list]:
        """TRL's `rollout_func`: draw completions and keep the log-probs they were drawn with."""
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        with disable_gradient_checkpointing(trainer.model, trainer.args.gradient_checkpointing_kwargs):
            completion_ids, log_probs = sample(
                trainer.accelerator.unwrap_model(trainer.model_wrapped),
                prompt_ids,
                trainer._decoding,
                eos_token_ids=trainer.eos_token_ids,
                pad_token_id=trainer._tokenizer.pad_token_id,
            )
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": log_probs}

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        for name, column in zip(self.reward_func_names, rewards.unbind(1), strict=True):
            require_finite(f"reward {name}", column.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf))
        self._gathered_rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs):
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._beta_in_force = self.args.beta_at(self.state.global_step, self.state.max_steps)
        if not self._exact:
            self.beta = self._beta_in_force
        known_p = [row.get(KNOWN_P) for row in inputs]
        batch = super()._generate_and_score_completions(inputs)
        per_function = self._gathered_rewards * self.reward_weights.to(self._gathered_rewards.device)
        rewards = per_function.nansum(1).masked_fill(per_function.isnan().all(1), torch.nan)
        weight = self.args.reward_energy_weight
        energy = -weight * rewards.nanmean().item() if weight else 0.0
        self._metrics[mode]["free_energy/reward"].append(energy)
        if not self._exact:
            if weight != 1:
                batch["advantages"] = batch["advantages"] * weight
            return batch
        self._shape(batch, rewards, mode)
        if all(p is not None for p in known_p):
            self._record_gap(torch.tensor(known_p, device=rewards.device), mode)
        return batch

    def _shape(self, batch: dict, rewards: Tensor, mode: str) -> None:
        """Put the exact estimator's advantages into the batch and record KL(pi || reference)."""
        args, beta = self.args, self._beta_in_force
        mask = self._loss_mask(batch)
        if args.uses_reference:
            log_ratio = self._log_ratio(batch, mask)
            self._record_kl(log_ratio, mask, mode)
        else:
            log_ratio = torch.zeros(mask.shape, device=rewards.device)
        group = self.num_generations if mode == "train" else self.num_generations_eval
        settings = {"group_size": group, "reward_energy_weight": args.reward_energy_weight, "beta": beta}
        gather, width = self.accelerator.gather, log_ratio.shape[1]
        if args.estimator == "sequence":
            advantages, baseline = sequence_advantages(rewards, gather(log_ratio.sum(1)), **settings)
        else:
            padded = self.accelerator.pad_across_processes(log_ratio, dim=1)
            advantages, baseline = sum_to_go_advantages(rewards, gather(padded), **settings)
            advantages, baseline = advantages[:, :width], baseline[:, :width]
        scale = self._reward_scale(rewards, group)
        scale = scale if advantages.dim() == 1 else scale[:, None]
        rank, rows = self.accelerator.process_index, len(mask)
        local = slice(rank * rows, (rank + 1) * rows)
        batch["advantages"] = (advantages / scale)[local]
        if "old_per_token_logps" in batch:  # the policy may have moved when a row is used: see `_compute_loss`
            batch["energy_reward"] = args.reward_energy_weight * rewards[local]
            batch["energy_baseline"] = baseline[local]
            batch["energy_scale"] = scale.expand(len(rewards), *scale.shape[1:])[local]
            batch["reference_log_probs"] = batch.pop("_reference_log_probs", torch.zeros_like(log_ratio))
        batch.pop("_reference_log_probs", None)

    @staticmethod
    def _loss_mask(batch: dict) -> Tensor:
        mask = batch["completion_mask"]
        return (mask * batch["tool_mask"] if "tool_mask" in batch else mask).bool()

    def _reward_scale(self, rewards: Tensor, group: int) -> Tensor:
        """What advantages are divided by, (N,): 1, or the deviation that `scale_rewards` asks for."""
        if self.args.scale_rewards == "none" or group < 2:
            return torch.ones_like(rewards)
        if self.args.scale_rewards == "batch":
            return nanstd(rewards).expand_as(rewards) + 1e-4
        return nanstd(rewards.view(-1, group), dim=1).repeat_interleave(group) + 1e-4

    # ---- log-probs of policy and reference ------------------------------------------------------------------

    def _score(self, model, batch: dict) -> Tensor:
        """Log-probs (B, T) of the batch's completions under `model`, by the forward that the loss uses; no grad."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
        ):
            return self._get_per_token_logps_and_entropies(
                model, ids, mask, batch["completion_ids"].size(1), batch_size=self._scoring_batch_size()
            )[0]

    def _scoring_batch_size(self) -> int:
        training = self.model.training
        return self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size

    def _score_reference(self, batch: dict) -> Tensor:
        if self.ref_model is not None:
            return self._score(self.ref_model, batch)
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            return self._score(self.model, batch)

    def _log_ratio(self, batch: dict, mask: Tensor) -> Tensor:
        """log pi - log reference of every trained token, (B, T), zero elsewhere; nats."""
        log_reference = self._score_reference(batch)
        batch["_reference_log_probs"] = log_reference
        if not self._checked_reference and self.model.training:
            self._checked_reference = True
            if self.state.global_step == 0:
                start = self._score(self.model, batch) - log_reference
                reference.check_starts_at_reference(start, mask, reference.low_precision(self))
        if "old_per_token_logps" in batch:
            log_policy = batch["old_per_token_logps"]
        elif "sampling_per_token_logps" in batch and not self._decoding.truncates:
            log_policy = batch["sampling_per_token_logps"]
        else:
            log_policy = self._score(self.model, batch)
        return (log_policy - log_reference).masked_fill(~mask, 0.0)

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        scored = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if torch.is_grad_enabled():
            self._last_log_probs = scored[0].detach()
            if self._on_log_probs is not None:
                self._on_log_probs(self._last_log_probs)
        return scored

    @contextmanager
    def _watching_log_probs(self, watcher):
        """Hand the policy's log-probs to `watcher` after the loss's forward and before TRL uses the batch."""
        self._on_log_probs = watcher
        try:
            yield
        finally:
            self._on_log_probs = None

    # ---- loss -----------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._demonstrations is not None:
            self._demonstration_queue = self._demonstrations.for_step(
                self.state.global_step,
                self._step,
                batches,
                self.accelerator.process_index,
                self.accelerator.num_processes,
            )
            for batch in batches:
                for row in batch:
                    row.pop(demonstrations.PAIRED_ROW, None)
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self._steps_as_sft:
            return self._sft_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._stop_unless_finite("reward and KL", loss, self._last_log_probs)
        if self.model.training and self._demonstration_queue:
            demonstration = self._demonstration_queue.pop(0)
            if demonstration is not None:
                loss = loss + self._demonstration_loss(model, demonstration)
        return loss

    def _compute_loss(self, model, inputs):
        if not self._exact:
            mask, log_reference = self._loss_mask(inputs), inputs.get("ref_per_token_logps")
            mode = "train" if self.model.training else "eval"

            def record(log_policy: Tensor) -> None:
                self._record_kl((log_policy - log_reference).masked_fill(~mask, 0.0), mask, mode, ours=False)

            with self._watching_log_probs(record) if log_reference is not None else nullcontext():
                return super()._compute_loss(model, inputs)
        with self._watching_log_probs(self._refresher(inputs)):
            loss = super()._compute_loss(model, inputs)
        return loss * (self.max_completion_length / self._divisor)

    def _refresher(self, inputs: dict):
        """Recompute the shaped reward with the policy of now, for rollouts that an older policy made."""
        if "energy_reward" not in inputs:
            return None

        def refresh(log_policy: Tensor) -> None:
            log_ratio = log_policy - inputs["reference_log_probs"]
            log_ratio = log_ratio.masked_fill(~self._loss_mask(inputs), 0.0)
            cost, reward = log_ratio.sum(1), inputs["energy_reward"]
            if inputs["energy_baseline"].dim() == 2:
                cost, reward = log_ratio.flip(1).cumsum(1).flip(1), reward[:, None]
            shaped = reward - self._beta_in_force * cost
            advantages = (shaped - inputs["energy_baseline"]) / inputs["energy_scale"]
            inputs["advantages"] = advantages.nan_to_num(nan=0.0)

        return refresh

    def _demonstration_loss(self, model, batch) -> Tensor:
        """w_d E[-log pi(y|x)] of one micro-batch over the constant divisor: tokens summed, sequences averaged."""
        inputs = Trainer._prepare_inputs(self, dict(batch.inputs))
        weights = batch.weights.to(self.accelerator.device)
        if self.temperature == 1:
            log_probs = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
        else:  # the fused head divides by the sampling temperature; demonstrations are the model's own
            labels = inputs.pop("labels")[:, 1:]
            logits = model(**inputs, use_cache=False).logits[:, :-1].float()
            chosen = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            log_probs = chosen.masked_fill(labels == -100, 0.0)
        per_row = -log_probs.sum(1)
        energy = self.args.demonstration_energy_weight * (weights * per_row).sum()
        self._stop_unless_finite("demonstration", energy, per_row)
        recorded = self.accelerator.gather(energy.detach().reshape(1)).sum().item()
        micro_batches = self.current_gradient_accumulation_steps
        self._metrics["train"]["free_energy/demonstration"].append(recorded * micro_batches)
        return energy * self.accelerator.num_processes / self._divisor

    def _sft_loss(self, model, inputs, return_outputs, num_items_in_batch):
        """SFTTrainer's loss, and -log pi per sequence beside it."""
        sequences = demonstrations.count_sequences(inputs)
        out = SFTTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        loss = out[0] if return_outputs else out
        weight = self.args.demonstration_energy_weight
        self._stop_unless_finite("demonstration", loss, loss.reshape(1))
        mode = "train" if self.model.training else "eval"
        tokens = (inputs["labels"][:, 1:] != -100).sum()
        mean = loss.detach()
        if num_items_in_batch is not None:  # the mean over the whole step; bring it back to this micro-batch
            processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            mean = mean * num_items_in_batch / processes / tokens.clamp(min=1)
        totals = self.accelerator.gather(torch.stack([mean * tokens, mean.new_tensor(sequences)])).view(-1, 2).sum(0)
        self._metrics[mode]["free_energy/demonstration"].append((weight * totals[0] / totals[1]).item())
        loss = loss if weight == 1 else weight * loss
        return (loss, out[1]) if return_outputs else loss

    # ---- guards and records ---------------------------------------------------------------------------------

    def _stop_unless_finite(self, term: str, loss: Tensor, per_row: Tensor) -> None:
        finite = torch.isfinite(loss.detach()).float().reshape(1)
        if self.accelerator.gather(finite).min() == 1:
            return
        require_finite(term, per_row)
        require_finite(term, loss.reshape(1), ["its sum"])
        raise FloatingPointError(f"{term}: not finite on another process; its message names the rows")

    def _clip_grad_norm(self, model):
        if self.accelerator.scaler is None:  # fp16: the scaler skips such steps itself
            require_finite_gradients(model)
        return super()._clip_grad_norm(model)

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

    def _record_gap(self, known_p: Tensor, mode: str) -> None:
        """F - F* of the batch where p_ref is known: F* = -beta log(1 + p_ref (e^{w_r/beta} - 1))."""
        args, beta = self.args, self._beta_in_force
        if beta == 0 or args.demonstration_energy_weight or args.reward_energy_weight == 0:
            return
        optimum = -beta * bernoulli_log_partition(
            self.accelerator.gather(known_p.double()),
            reward_energy_weight=args.reward_energy_weight,
            beta=beta,
        )
        metrics = self._metrics[mode]
        total = metrics["free_energy/reward"][-1] + beta * metrics["free_energy/kl"][-1]
        metrics["free_energy/gap"].append(total - optimum.mean().item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        terms = [metrics[key] for key in ("free_energy/reward", "free_energy/demonstration") if key in metrics]
        if terms:
            if "free_energy/kl" in metrics:
                pairs = zip(metrics["free_energy/beta"], metrics["free_energy/kl"], strict=True)
                terms.append([beta * kl for beta, kl in pairs])
            else:
                metrics["free_energy/beta"] = [self._beta_in_force]
            metrics["free_energy/total"] = [sum(sum(values) / len(values) for values in terms)]
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "metrics_to_log"):
                logs.update(callback.metrics_to_log())
        super().log(logs, start_time)


def _check_data(args: FreeEnergyConfig, train_dataset, demo_dataset):
    """The demonstrations of a run, or one message about what is missing or contradicts itself."""
    columns = getattr(train_dataset, "column_names", None) or []
    paired = demonstrations.PAIRED in columns
    if demo_dataset is not None and not args.demonstration_energy_weight:
        raise ValueError(
            "demonstration_energy_weight: 0 with a demo_dataset; it would never be read; write a positive weight or "
            "leave the demonstrations out"
        )
    if demo_dataset is not None and paired:
        raise ValueError(
            "demo_dataset: given beside a column `demonstration` of train_dataset; a run has one source of "
            "demonstrations; leave one out"
        )
    if not args.is_sft:
        if args.demonstration_energy_weight and demo_dataset is None and not paired:
            raise ValueError(
                "demo_dataset: missing with demonstration_energy_weight "
                f"{args.demonstration_energy_weight}; pass rows of prompt and completion, or give train_dataset a "
                "column `demonstration`"
            )
        return demo_dataset
    if demo_dataset is None and paired:
        return train_dataset.select_columns(["prompt", demonstrations.PAIRED]).rename_column(
            demonstrations.PAIRED, "completion"
        )
    demo_dataset = train_dataset if demo_dataset is None else demo_dataset
    if demo_dataset is None:
        raise ValueError("demo_dataset: missing; without reward energy and beta the run is SFT; pass demonstrations")
    return demo_dataset
