"""At declared steps the policy as it stands becomes the reference, and the optimizer starts fresh."""

import copy
import logging
from pathlib import Path

from accelerate.utils import is_peft_model
from torch import nn
from transformers import TrainerCallback

from fe_posttrain.training.recording import tell

logger = logging.getLogger(__name__)

ADAPTER = "ref"  # TRL's name for the adapter that is the reference


class ReferenceResets(TrainerCallback):
    """Makes the resets of `reference_resets`, and knows since when the reference in force is the reference.

    A reset is made where a step begins, before its rollouts. Inside a generation block it waits for the block's end:
    the rollouts at hand were scored under the old reference. The learning-rate schedule goes on. Under LoRA the
    reference is a second adapter, `ref`, at first equal to the policy's.

    `taken_at`: the step whose beginning policy is the reference: 0 until a reset; None for a model of its own.

    Raises:
        ValueError: sharded weights, an adapter that cannot be copied, or a reset behind the run's end.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.taken_at: int | None = None if trainer.args.reference_model_name_or_path else 0
        self.done: list[int] = []  # of `_steps`
        self._steps: list[int] = []  # known when training begins
        self._owns_adapter = False
        if not trainer.args.reference_resets:
            return
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise ValueError(
                "reference_resets: the weights are sharded (FSDP or DeepSpeed), and whole ones are copied; run on one "
                "device or under DDP, or train in two runs, the second from the model of the first"
            )
        policy = trainer.accelerator.unwrap_model(trainer.model)
        if is_peft_model(policy) and trainer.args.keeps_reference:
            if ADAPTER not in policy.peft_config:
                self._owns_adapter = True
                _add_adapter(policy)
            _copy_adapter(policy)

    def owns(self, name: str) -> bool:
        """Whether a parameter is of the adapter that was added here: a checkpoint holds it."""
        return self._owns_adapter and ADAPTER in name.split(".")

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._steps = args.reset_steps(state.max_steps)
        if late := [step for step in self._steps if step >= state.max_steps]:
            raise ValueError(
                f"reference_resets: {late[0]}; the run has {state.max_steps} steps, counted from 0; write smaller ones"
            )

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        due = [step for step in self._steps if step <= state.global_step and step not in self.done]
        if due and self.trainer.at_block_end:
            self._reset(state.global_step)
            self.done += due

    def _reset(self, step: int) -> None:
        trainer = self.trainer
        trainer._reference_fingerprint()  # of the weights that the run starts from: later ones are in checkpoints
        policy = trainer.accelerator.unwrap_model(trainer.model)
        if trainer.ref_model is not None:
            trainer._bare_reference().load_state_dict(policy.state_dict())
        elif is_peft_model(policy) and ADAPTER in policy.peft_config:
            _copy_adapter(policy)
        trainer.optimizer.state.clear()
        self.taken_at, trainer._checked_log_probs = step, False  # KL = 0 is checked anew
        tell(trainer, "reference_reset")
        if trainer.accelerator.is_main_process:
            logger.info("step %d: the policy as it stands is the reference from now on; the optimizer is fresh", step)

    def checkpoint_state(self) -> dict:
        """Which resets were made."""
        return {"done": self.done, "taken_at": self.taken_at}

    def load_checkpoint_state(self, kept: dict) -> None:
        """Take back what `checkpoint_state` gave.

        Raises:
            ValueError: the checkpoint comes after a reset and this run has none.
        """
        if kept["done"] and not self.trainer.args.reference_resets:
            raise ValueError(
                f"reference_resets: none, and the checkpoint's reference is the policy of step {kept['taken_at']}; "
                f"write reference_resets: {kept['done']}"
            )
        self.done, self.taken_at = list(kept["done"]), kept["taken_at"]

    def save_checkpoint_files(self, folder: Path) -> None:
        """The reference that a reset has made; under LoRA it is saved as the other adapter is."""
        main = self.trainer.accelerator.is_main_process
        if self.done and self.trainer.ref_model is not None and main:
            self.trainer._save_reference(folder)

    def load_checkpoint_files(self, folder: Path) -> None:
        """Take back what `save_checkpoint_files` wrote."""
        if self.done and self.trainer.ref_model is not None:
            self.trainer._load_reference(folder)


def _add_adapter(model) -> None:
    """A second adapter like the first, frozen and without dropout."""
    config = copy.deepcopy(model.peft_config["default"])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # others change the weights beneath; what it starts with is overwritten
    model.add_adapter(ADAPTER, config)
    for name, module in model.named_modules():
        if name.split(".")[-1] == ADAPTER and isinstance(module, nn.Dropout):
            module.p = 0.0


def _copy_adapter(model) -> None:
    """Put the policy's adapter as it stands into the reference's.

    Raises:
        ValueError: weights outside of the adapter are trained.
    """
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        twin = ".".join(ADAPTER if part == "default" else part for part in name.split("."))
        if twin != name and twin in weights:
            weights[twin].data = weight.detach().clone()
        elif weight.requires_grad:
            raise ValueError(
                f"reference_resets: {name} is trained and no adapter of its own holds it, so there can be no second "
                "one beside it; write lora_modules_to_save and bias such that adapters hold all that is trained, or "
                "use_peft: false"
            )
