"""A run without reward energy and beta *is* SFT: every step goes through SFTTrainer's own code."""

import torch
from accelerate.utils import is_peft_model
from transformers import Trainer, set_seed
from trl import GRPOTrainer, SFTTrainer
from trl.trainer.utils import add_fused_lm_head, identity

from fe_posttrain.training import demonstrations
from fe_posttrain.training.finite import stop_unless_finite


class RunsAsSFT(GRPOTrainer):
    """Routes data, batches and loss to SFTTrainer and Trainer when `args.is_sft`; else GRPOTrainer's stay."""

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

    def _sft_loss(self, model, inputs, return_outputs, num_items_in_batch):
        """SFTTrainer's loss, and -log pi per sequence beside it."""
        sequences = demonstrations.count_sequences(inputs)
        out = SFTTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
        loss = out[0] if return_outputs else out
        weight = self.args.demonstration_energy_weight
        stop_unless_finite(self.accelerator, "demonstration", loss, loss.reshape(1))
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
