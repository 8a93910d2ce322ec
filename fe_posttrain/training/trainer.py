"""FreeEnergyTrainer: GRPOTrainer with the exact gradient of F, demonstrations in the same step, or plain SFT.

How a step runs: TRL's loader delivers prompts; our sampler draws completions and keeps their log-probs; TRL calls
the rewards; log-ratios and rewards of all processes are gathered in TRL's row order, shaped and given leave-one-out
advantages; TRL shuffles, splits and computes the policy loss with them (its own KL switched off: the KL is in the
advantages); the demonstrations' term is added; one backward. TRL's methods are wrapped, never copied.
"""

import logging
from collections.abc import Callable

import torch
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import Trainer

from fe_posttrain.training import demonstrations, reference, tokenizer
from fe_posttrain.training.announcements import what_changes_the_optimum
from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.demonstration_terms import TokenEnergies, of_log_probs, of_logits
from fe_posttrain.training.failure_buffer import FailureBuffer
from fe_posttrain.training.finite import require_finite_gradients, stop_unless_finite
from fe_posttrain.training.prefixes import Prefixes
from fe_posttrain.training.reference_resets import ReferenceResets
from fe_posttrain.training.resuming import Resumes
from fe_posttrain.training.reward_faults import guard, require_signature
from fe_posttrain.training.rewards import no_reward
from fe_posttrain.training.run import RunFolder
from fe_posttrain.training.terms import ROLLED_OUT

logger = logging.getLogger(__name__)

WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)  # each process has every gradient


class FreeEnergyTrainer(Resumes):
    """Descend F(pi) = w_r E[-reward] + w_d E_demonstrations[-log pi] + beta KL(pi || reference).

    Takes what GRPOTrainer takes, by the same names, and `demo_dataset`: rows of `prompt` and `completion` (or
    `text`, `messages`), a stream of their own beside the rollouts. A column `demonstration` of `train_dataset`
    pairs demonstrations with their prompts instead. Without reward energy and beta the run is SFTTrainer's, step
    for step, and generates nothing; nor does it with `kl_sampler: demonstrations`, whose penalty is added to that.

    Raises:
        ValueError: demonstrations without a weight, a weight without demonstrations, or images.
        FloatingPointError: a term of F or a gradient is not finite; raised before the optimizer moves.
    """

    _tag_names = ["trl", "free-energy"]  # noqa: RUF012 (TRL's own class attribute)
    _name = "FreeEnergy"
    _paper = {  # noqa: RUF012
        "title": "On Distinguishing Capability Elicitation from Capability Creation in Post-Training: "
        "A Free-Energy Perspective",
        "id": "2605.08368",
        "citation": "Li and Liu, 2026, arXiv:2605.08368",
    }

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
        demo_dataset = demonstrations.find(args, train_dataset, demo_dataset)
        self._own_reward = reward_funcs is not None or environment_factory is not None
        if not self._own_reward and not args.uses_reward:
            reward_funcs = no_reward
        if reward_funcs is not None:
            reward_funcs = guard(reward_funcs, args.reward_timeout, args.faults_to_look_for)
            if train_dataset is not None and not args.is_sft:
                require_signature(reward_funcs, train_dataset.column_names or [])
        processing_class = tokenizer.with_settings(processing_class, model, args)
        rows = demo_dataset if args.is_sft else train_dataset
        snapshot = reference.snapshot_is_ours(model, args, peft_config)
        with reference.without_reload(args, snapshot):
            super().__init__(
                model=model,
                reward_funcs=reward_funcs,
                args=args,
                train_dataset=rows,
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
        if args.disable_dropout and (args.is_sft or args.estimator != "trl"):
            reference.disable_attention_dropout(self.model)
        self._adapter_is_new = peft_config is not None
        if snapshot:
            reference.attach(self)
        self._resets = ReferenceResets(self)
        self.model_card: Callable[[], str] | None = None
        self._set_up_rollouts()
        self._set_up_resuming()
        self.add_callback(self._resets)
        self._demonstrations = None
        self._demonstration_queue: list = []
        if args.is_sft:
            self._become_sft()
        elif demo_dataset is not None:
            self._demonstrations = demonstrations.DemonstrationStream(demo_dataset, self._tokenizer, args)
        elif args.reads_demonstrations:
            paired = demonstrations.PairedDemonstrations(train_dataset, self._tokenizer, args)
            if args.failure_buffer:
                self._failure_buffer = FailureBuffer(self, paired)
                self.callback_handler.callbacks.insert(0, self._failure_buffer)  # others measure what it leaves
            elif args.uses_demonstrations:
                self._demonstrations = paired
            if args.prefix_share:
                self._prefixes = Prefixes(self, paired.rows)
            self.train_dataset = train_dataset.add_column(demonstrations.PAIRED_ROW, list(range(len(train_dataset))))
        for callback in self.callback_handler.callbacks:
            self._bind(callback)
        if self.accelerator.is_main_process and (lines := what_changes_the_optimum(args)):
            logger.warning("This run does not end at the optimum of F as written:\n  - %s", "\n  - ".join(lines))

    def _send_telemetry(self) -> None:
        """TRL reports every trainer that is built; we do not."""

    def add_callback(self, callback) -> None:
        """As Trainer's; a callback with `bind(trainer)` is given this trainer, its model as it is now."""
        super().add_callback(callback)
        if hasattr(self, "_demonstration_queue"):  # built; earlier ones are bound at the end of the constructor
            self._bind(self.callback_handler.callbacks[-1])

    def _bind(self, callback) -> None:
        if hasattr(callback, "bind"):
            callback.bind(self)

    def create_model_card(self, *args, **kwargs):
        """TRL writes a card into the run folder at every checkpoint; it is wanted where it is pushed.

        `model_card`, where it is set, says what is pushed instead.
        """
        if not self.args.push_to_hub:
            return
        if self.model_card is None:
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            RunFolder(self.args.output_dir, shared=True).write("README.md", self.model_card())

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
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self._steps_as_sft:
            return self._sft_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training and not self._weights_now.needs_rollouts:
            loss = self._loss_without_rollouts(model)
        else:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self.model.training:
                self._metrics["train"][ROLLED_OUT].append(1.0)
            stop_unless_finite(self.accelerator, "reward and KL", loss, self._last_log_probs)
        if self.model.training and self._demonstration_queue:
            loss = loss + self._demonstration_loss(model, self._demonstration_queue.pop(0))
        return loss

    def _loss_without_rollouts(self, model) -> Tensor:
        """Zero, with a gradient of zero: what reward and KL add where neither has a weight."""
        self._weights, self._beta_in_force, self._demonstration_factors = self._weights_now, 0.0, None
        self._metrics["train"][ROLLED_OUT].append(0.0)
        return sum(weight.sum() for weight in model.parameters() if weight.requires_grad) * 0.0

    def _demonstration_loss(self, model, batch: demonstrations.DemonstrationBatch) -> Tensor:
        """w_d E[-log pi(y|x)] of one micro-batch over the constant divisor: tokens summed, sequences averaged."""
        weight, alone = self._weights_now.demonstration, self.accelerator.num_processes == 1
        batch = batch.gated(self._demonstration_factors, self._first_row, self.num_generations)
        if alone:  # under DDP every process makes as many forwards
            batch = batch.without_weightless()
        if weight == 0 or batch is None:
            self._metrics["train"]["free_energy/demonstration"].append(0.0)
            return torch.zeros((), device=self.accelerator.device)
        energies = self._token_energies(model, Trainer._prepare_inputs(self, dict(batch.inputs)))
        weights = batch.weights.to(energies.energy.device)
        energy = weight * (weights * energies.energy.sum(1)).sum()
        stop_unless_finite(self.accelerator, "demonstration", energy, energies.energy)
        negative = weight * (weights * energies.negative_log_probs.sum(1)).sum()
        recorded = self.accelerator.gather(negative.reshape(1)).sum().item()
        micro_batches = self.current_gradient_accumulation_steps
        self._metrics["train"]["free_energy/demonstration"].append(recorded * micro_batches)
        if (counted := batch.without_weightless()) is not None:
            tokens = (counted.inputs["labels"][:, 1:] != -100).sum()
            self._account.add(gradient_tokens=tokens, demonstrations=demonstrations.count_sequences(counted.inputs))
        return energy * self.accelerator.num_processes / self._divisor

    def _token_energies(self, model, inputs: dict) -> TokenEnergies:
        """What each token of a batch of demonstrations costs, at temperature 1; nats."""
        labels = inputs["labels"]
        trained = labels[:, 1:] != -100
        if self.temperature == 1 and not self.args.demonstration_beta:
            out = model(**inputs, use_cache=False, fused_lm_head=True)
            return of_log_probs(self.args, out.log_probs, out.entropy, trained)
        # The fused head divides by the sampling temperature; demonstrations are the model's own.
        called = {key: value for key, value in inputs.items() if key != "labels"} | {"use_cache": False}
        logits = model(**called).logits
        if self.args.demonstration_beta:
            return of_logits(self, logits, called, labels)
        log_policy = logits[:, :-1].float().log_softmax(-1)
        chosen = log_policy.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0].masked_fill(~trained, 0.0)
        entropies = -(log_policy.exp() * log_policy).sum(-1).detach()
        return of_log_probs(self.args, chosen, entropies, trained)

    def _clip_grad_norm(self, model):
        if self.accelerator.scaler is not None:  # fp16: the scaler skips such steps itself
            return super()._clip_grad_norm(model)
        norm = require_finite_gradients(model)
        if self.accelerator.distributed_type not in WHOLE or type(norm) is not Tensor:  # a DTensor: weights are cut
            return super()._clip_grad_norm(model)
        # What accelerate would do, without computing the norm again.
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        self._add_total(metrics)
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "metrics_to_log"):
                logs.update(callback.metrics_to_log())
        super().log(logs, start_time)
