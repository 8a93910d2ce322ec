"""The failure buffer: demonstrations of prompts that every rollout failed on, trained on between RL steps.

After ReLIFT (Ma et al. 2025, arXiv 2506.07527, and its public code): a prompt whose rollouts all fail, and are all
well-formatted where that is asked, enters with its demonstration. As soon as `failure_buffer` of them wait, the oldest
ones are read once, in order of entry, by an AdamW of their own at a constant learning rate; the others go on waiting.

What differs from its code: -log pi is summed over tokens and averaged over demonstrations, then divided by F's one
constant (there it is a mean over tokens); and where one RL step lets in several buffers full, all are read at once.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback

from fe_posttrain.training.demonstrations import PairedDemonstrations
from fe_posttrain.training.finite import require_finite_gradients, stop_unless_finite
from fe_posttrain.training.rewards import find_reward

OPTIMIZER = "failure_buffer.safetensors"  # the moments of its AdamW
_NO_COLUMNS = ("prompt", "completion", "completion_ids")


class FailureBuffer(TrainerCallback):
    """Prompts that failed as whole groups, by their row of train_dataset; every process holds the same.

    `FreeEnergyTrainer` makes one where `failure_buffer` is positive, tells it of each generation (`see`), and puts it
    before all other callbacks: what they measure at the end of a step is the model after the buffer's own steps.

    Args:
        trainer: its trainer, whole weights on every process.
        paired: demonstrations by row of train_dataset; rows without one never enter.

    Raises:
        ValueError: sharded weights, dropped columns, or a `failure_buffer_format` that is not there.
    """

    def __init__(self, trainer, paired: PairedDemonstrations):
        args = trainer.args
        if trainer._sharded():
            raise ValueError(
                "failure_buffer: with FSDP or DeepSpeed; its steps need whole weights on every process; launch with "
                "DDP, or write failure_buffer: 0"
            )
        if args.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns: true with failure_buffer; the rows that say whose demonstration is whose would "
                "be dropped; write remove_unused_columns: false"
            )
        self.trainer, self.paired = trainer, paired
        self.rows: list[int] = []
        self.steps = 0
        self._format = _format(args.failure_buffer_format)
        self._optimizer: torch.optim.AdamW | None = None

    def see(
        self,
        rows: Sequence[int],
        rewards: Tensor,
        inputs: Sequence[dict],
        completions: Sequence,
        completion_ids: Sequence[list[int]],
    ) -> None:
        """After a generation: let in the prompts that failed.

        Args:
            rows: of train_dataset, one for each completion of this process.
            rewards: (N,) weighted sums over all processes, groups adjoining; NaN (no reward) is no failure.
            inputs, completions, completion_ids: of this process, for `failure_buffer_format`.
        """
        trainer = self.trainer
        gather = trainer.accelerator.gather
        failed = rewards < trainer.args.success_threshold
        if self._format is not None:
            formatted = self._formatted(inputs, completions, completion_ids)
            failed &= gather(torch.tensor(formatted, device=rewards.device)).bool()
        groups = failed.view(-1, trainer.num_generations).all(1)
        prompts = gather(torch.tensor(rows, device=rewards.device)).view(-1, trainer.num_generations)[:, 0]
        self.rows += [row for row in prompts[groups].tolist() if row in self.paired.rows]

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Empty the buffer if it is full and no rollouts wait that its steps would make older than the policy."""
        capacity, size = args.failure_buffer, args.failure_buffer_batch_size or args.per_device_train_batch_size
        weight = args.weights_at(state.global_step - 1, state.max_steps).demonstration  # of the step just made
        read, surprise = 0, 0.0
        while weight > 0 and len(self.rows) >= capacity and self.trainer.at_block_end:
            rows, self.rows = self.rows[:capacity], self.rows[capacity:]
            surprise += sum(self._step(rows[start : start + size], weight) for start in range(0, capacity, size))
            read += capacity
        metrics = self.trainer._metrics["train"]
        metrics["failure_buffer/size"], metrics["failure_buffer/steps"] = [len(self.rows)], [self.steps]
        if read:
            metrics["failure_buffer/loss"].append(weight * surprise / read)

    def checkpoint_state(self) -> dict[str, Any]:
        """The rows that wait, and the steps made."""
        return {"rows": self.rows, "steps": self.steps}

    def load_checkpoint_state(self, kept: dict[str, Any]) -> None:
        """Take back what `checkpoint_state` gave."""
        self.rows, self.steps = list(kept["rows"]), kept["steps"]

    def save_checkpoint_files(self, folder: Path) -> None:
        """Write the optimizer's state, the same on every process; there is none before the first step."""
        if self.steps and self.trainer.accelerator.is_main_process:
            state = self._own_optimizer().state_dict()["state"]
            named = {f"{i}.{name}": value for i, values in state.items() for name, value in values.items()}
            save_file({name: value.contiguous() for name, value in named.items()}, folder / OPTIMIZER)

    def load_checkpoint_files(self, folder: Path) -> None:
        """Take back what `save_checkpoint_files` wrote; after `load_checkpoint_state`."""
        if not self.steps:
            return
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in load_file(folder / OPTIMIZER).items():
            i, _, name = name.partition(".")
            state.setdefault(int(i), {})[name] = value
        optimizer = self._own_optimizer()
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _formatted(self, inputs: Sequence[dict], completions: Sequence, completion_ids: Sequence) -> list[float]:
        """1 for each completion of this process that is well-formatted, else 0."""
        values = self._format(
            prompts=[row["prompt"] for row in inputs],
            completions=completions,
            completion_ids=completion_ids,
            **{key: [row[key] for row in inputs] for key in inputs[0] if key not in _NO_COLUMNS},
        )
        if len(values) != len(inputs):
            raise ValueError(
                f"failure_buffer_format: {len(values)} values for {len(inputs)} completions; each has one; return as "
                "many"
            )
        return [float(value > 0) for value in values]

    def _step(self, rows: list[int], weight: float) -> float:
        """One optimizer step on w_d times the mean energy over F's divisor; returns the sum of -log pi, nats.

        Args:
            rows: of train_dataset, for all processes.
            weight: w_d.
        """
        trainer = self.trainer
        args, accelerator, optimizer = trainer.args, trainer.accelerator, self._own_optimizer()
        world, mine = accelerator.num_processes, rows[accelerator.process_index :: accelerator.num_processes]
        size = args.per_device_demonstration_batch_size or args.per_device_train_batch_size
        scale = weight * world / (len(rows) * trainer._divisor)
        total = torch.zeros(1, device=accelerator.device)
        for start in range(0, -(-len(rows) // world), size):
            part = mine[start : start + size]
            # Where none is left, a forward all the same, with weight 0: under DDP every process makes as many.
            inputs = self.paired.collate([self.paired.rows[row] for row in part or rows[:1]])
            energies = trainer._token_energies(trainer.model_wrapped, Trainer._prepare_inputs(trainer, inputs))
            energy = scale * energies.energy.sum() * bool(part)
            stop_unless_finite(accelerator, "demonstration (failure buffer)", energy, energies.energy)
            energy.backward()
            if part:
                total += energies.negative_log_probs.sum()
                trainer._account.add(gradient_tokens=(inputs["labels"][:, 1:] != -100).sum(), demonstrations=len(part))
        norm = require_finite_gradients(trainer.model)
        if args.failure_buffer_max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(trainer.model.parameters(), args.failure_buffer_max_grad_norm, norm)
        optimizer.step()
        trainer.model.zero_grad()
        self.steps += 1
        return accelerator.gather(total).sum().item()

    def _own_optimizer(self) -> torch.optim.AdamW:
        """Made when first needed: the weights are where they stay by then. Decay spares what the trainer's spares."""
        if self._optimizer is None:
            args, model = self.trainer.args, self.trainer.model
            decayed = set(self.trainer.get_decay_parameter_names(model))
            trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
            rate = args.failure_buffer_learning_rate
            self._optimizer = torch.optim.AdamW(
                [
                    {"params": [w for name, w in trained if name in decayed], "weight_decay": args.weight_decay},
                    {"params": [w for name, w in trained if name not in decayed], "weight_decay": 0.0},
                ],
                lr=args.learning_rate if rate is None else rate,
                betas=(args.adam_beta1, args.adam_beta2),
                eps=args.adam_epsilon,
            )
        return self._optimizer


def _format(entry: str | None):
    """The function that `failure_buffer_format` names; None where none is asked."""
    if entry is None:
        return None
    try:
        return find_reward(entry)
    except ValueError as error:
        raise ValueError(f"failure_buffer_format: {str(error).removeprefix('reward_funcs: ')}") from error
