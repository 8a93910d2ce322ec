"""A run that reads demonstrations alone *is* SFT: every step goes through SFTTrainer's own code.

Under `kl_sampler: demonstrations`, beta/2 l^2 of each sequence is added to its loss: l = log pi - log reference.
"""

from contextlib import contextmanager, nullcontext

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers import Trainer, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOTrainer, SFTTrainer
from trl.trainer.utils import add_fused_lm_head, identity

from fe_posttrain.training import demonstrations
from fe_posttrain.training.account import Account
from fe_posttrain.training.demonstration_terms import is_plain, of_log_probs, of_logits
from fe_posttrain.training.finite import stop_unless_finite
from fe_posttrain.training.log_ratios import LogRatios


class RunsAsSFT(GRPOTrainer):
    """Routes data, batches and loss to SFTTrainer and Trainer when `args.is_sft`; else GRPOTrainer's stay."""

    _account: Account
    _own_reward: bool  # whether the user gave a reward, so that evaluation can make rollouts

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
        if args.uses_reference:
            self._require_temperature_1()
            self._log_ratios = LogRatios(self)
        set_seed(args.seed)

    def _require_temperature_1(self) -> None:
        """Where rollouts of evaluation, or a reference that TRL loads, would be scored at another temperature."""
        rolls_out = self._own_reward and self.eval_dataset is not None
        if self.temperature != 1 and (rolls_out or is_deepspeed_zero3_enabled()):
            beside = "evaluation by rollouts" if rolls_out else "ZeRO-3"
            raise ValueError(
                f"temperature: {self.temperature} with kl_sampler: demonstrations and {beside}; policy and "
                "reference are scored at temperature 1; write temperature: 1"
            )

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

    def _sft_loss(self, model, inputs, return_outputs, num_items_in_batch):
        """SFTTrainer's loss with -log pi per sequence beside it, and under beta the penalty from the same forward."""
        sequences, tokens = demonstrations.count_sequences(inputs), (inputs["labels"][:, 1:] != -100).sum()
        if self.model.training:
            self._account.add(gradient_tokens=tokens, demonstrations=sequences)
        if self.args.demonstration_beta:
            return self._soft_sft_loss(model, inputs, return_outputs, num_items_in_batch, sequences)
        log_reference = self._log_ratios.reference_of(inputs) if self.args.uses_reference else None
        plain = is_plain(self.args)
        with nullcontext() if plain and log_reference is None else _first_output(model) as seen:
            out = SFTTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        loss = out[0] if return_outputs else out
        weight = self.args.weights_at(self.state.global_step, self.state.max_steps).demonstration
        stop_unless_finite(self.accelerator, "demonstration", loss, loss.reshape(1))
        mode = "train" if self.model.training else "eval"
        scale = 1 / tokens.clamp(min=1)
        if num_items_in_batch is not None:  # the mean over the whole step; `scale` brings a sum to SFTTrainer's loss
            across = self.args.average_tokens_across_devices
            processes = self.accelerator.num_processes // self._tp_size if across else 1
            scale = processes / torch.as_tensor(num_items_in_batch).clamp(min=1)
        self._record(mode, "free_energy/demonstration", weight * loss.detach() / scale, sequences)
        if not plain:
            trained = inputs["labels"][:, 1:] != -100
            loss = scale * of_log_probs(self.args, seen[0].log_probs, seen[0].entropy, trained).energy.sum()
        loss = loss if weight == 1 else weight * loss
        if log_reference is not None:
            log_ratios = self._log_ratios.of(inputs, log_reference, seen[0].log_probs)
            loss = loss + scale * self._penalty(mode, log_ratios, sequences)
        return (loss, out[1]) if return_outputs else loss

    def _soft_sft_loss(self, model, inputs, return_outputs, num_items_in_batch, sequences: int):
        """The mean over tokens of the distance to a soft target. TRL calls for it with the logits of a forward of its
        own, and makes another one, without gradient, for its metrics."""
        found = []

        def loss_of(outputs, labels, num_items_in_batch=None):
            called = {key: value for key, value in inputs.items() if key != "labels"}
            found.append(of_logits(self, outputs.logits, called, labels))
            tokens = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
            return self.args.demonstration_energy_weight * found[0].energy.sum() / torch.as_tensor(tokens).clamp(min=1)

        self.compute_loss_func = loss_of
        try:
            out = SFTTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        finally:
            self.compute_loss_func = None
        loss = out[0] if return_outputs else out
        stop_unless_finite(self.accelerator, "demonstration", loss, loss.reshape(1))
        mode = "train" if self.model.training else "eval"
        summed = self.args.demonstration_energy_weight * found[0].negative_log_probs.sum()
        self._record(mode, "free_energy/demonstration", summed, sequences)
        return out

    def _penalty(self, mode: str, log_ratios: Tensor, sequences: int) -> Tensor:
        """beta/2 sum l^2 over the demonstrations of a micro-batch; l in nats, 0 for those without trained tokens."""
        if mode == "train":
            self._beta_in_force = self.args.weights_at(self.state.global_step, self.state.max_steps).beta
        halved_squares = log_ratios.square().sum() / 2
        stop_unless_finite(self.accelerator, "demonstration penalty", halved_squares, log_ratios)
        self._record(mode, "free_energy/demonstration_penalty", halved_squares.detach(), sequences)
        self._metrics[mode]["free_energy/beta"].append(self._beta_in_force)
        return self._beta_in_force * halved_squares

    def _record(self, mode: str, name: str, summed: Tensor, sequences: int) -> None:
        """Append to a metric the mean of what every process summed over its sequences."""
        totals = self.accelerator.gather(torch.stack([summed, summed.new_tensor(sequences)])).view(-1, 2).sum(0)
        self._metrics[mode][name].append((totals[0] / totals[1]).item())


@contextmanager
def _first_output(model):
    """A list that holds what `model` first returned inside: the loss's own forward."""
    seen: list = []
    handle = model.register_forward_hook(lambda _, __, output: seen or seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
