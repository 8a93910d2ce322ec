"""Save whole checkpoints at the end of a generation block, and continue from one as if nothing had happened.

TRL and transformers restore weights, optimizer, scheduler, random states and the step. What they leave out is kept
here: the micro-step count, the order of prompts in later epochs, metrics gathered since the last log, a reference
that moves, and what callbacks hold.
"""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from trl.trainer.utils import RepeatSampler

from fe_posttrain.training import checkpoints
from fe_posttrain.training.recording import tell
from fe_posttrain.training.rollouts import ShapesRollouts
from fe_posttrain.training.run import decide_together
from fe_posttrain.training.weights import hash_of

logger = logging.getLogger(__name__)

REFERENCE = "reference.safetensors"  # of a reference that moves during the run


class Resumes(ShapesRollouts):
    """Checkpoints of FreeEnergyTrainer.

    Callbacks may have `checkpoint_state() -> dict` and `load_checkpoint_state(dict)`: what they return is saved and
    given back, JSON values only. What is larger goes into files of their own: `save_checkpoint_files(folder)`, called
    on every process, and `load_checkpoint_files(folder)`.

    `checkpoint_notes`: what the manifest of every checkpoint carries beside the hashes, JSON values.
    `stop_requested`: asked at the end of each generation block; true on any process makes all save and stop.
    """

    def _set_up_resuming(self) -> None:
        self.checkpoint_notes: dict[str, Any] = {}
        self.stop_requested: Callable[[], bool] = lambda: False
        self.stopped_early = False
        self._staging: Path | None = None
        self._resuming_from: Path | None = None
        self._fingerprint: str | None = None
        self.add_callback(_BlockEnds(self))

    def train(self, resume_from_checkpoint=None, **kwargs):
        """As Trainer's; True takes the newest complete checkpoint of the run folder.

        Raises:
            ValueError: the checkpoint is missing or damaged, or belongs to other weights.
        """
        folder = None
        if resume_from_checkpoint:
            folder = decide_together(lambda: self._checked(resume_from_checkpoint))
            self._resuming_from = Path(folder)
            self.args.eval_on_start = False  # the run has had its start
        return super().train(resume_from_checkpoint=folder, **kwargs)

    def _checked(self, asked: str | bool) -> str:
        """The folder to resume from: whole, and more than weights."""
        folder = asked
        if asked is True:
            found = checkpoints.newest_complete(self.args.output_dir)
            for line in found.damaged:
                logger.warning("passed over a damaged checkpoint: %s", line)
            if found.folder is None:
                raise ValueError(f"resume_from_checkpoint: no complete checkpoint in {self.args.output_dir}")
            folder = found.folder
        elif wrong := checkpoints.damage(Path(asked)):
            raise ValueError(f"resume_from_checkpoint: {asked}: {wrong}; take another checkpoint")
        checkpoints.require_resumable(Path(folder), self.accelerator.num_processes)
        return str(folder)

    def _run_epoch(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:  # resumed from the last step: transformers would add one
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    @property
    def at_block_end(self) -> bool:
        """Whether every rollout that was made has been used, so that nothing but the random state has to be kept."""
        if not self.args.generates:
            return True
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    def _get_output_dir(self, trial):
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not while the checkpoint is staged: what is pushed in the background must not move."""
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial) -> None:
        """Stage, describe, rename; an error of the file system costs this checkpoint and nothing else."""
        run_folder, step = Path(super()._get_output_dir(trial)), self.state.global_step
        staged = run_folder / checkpoints.STAGING / f"{checkpoints.PREFIX}{step}"
        best, self.state.best_global_step = self.state.best_global_step, None  # or its path would be the staged one
        error = None
        try:
            self._staging = staged.parent
            super()._save_checkpoint(model, trial)
            self._save_progress(staged)
        except checkpoints.WRITE_ERRORS as caught:
            error = checkpoints.failed_write(caught)
        finally:
            self._staging = None
            self.state.best_global_step = best
        errors = [line for line in gather_object([error]) if line]
        if self.accelerator.is_main_process:
            if not errors:
                errors = self._publish(staged, run_folder, step)
            if errors:
                shutil.rmtree(staged.parent, ignore_errors=True)
                logger.warning(
                    "The checkpoint of step %d was not saved: %s. The run goes on; earlier checkpoints are intact. "
                    "Make room before the next one.",
                    step,
                    errors[0],
                )
            tell(self, "checkpoint", name=None if errors else staged.name, error=errors[0] if errors else None)
            if self.args.push_to_hub and not errors:
                self._push_from_checkpoint(str(run_folder / staged.name))
        self.accelerator.wait_for_everyone()

    def _publish(self, staged: Path, run_folder: Path, step: int) -> list[str]:
        """Main process: finish a staged checkpoint and move it to its place. Returns what went wrong."""
        try:
            if self.state.best_global_step == step:
                self.state.best_model_checkpoint = str(run_folder / staged.name)
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            notes = {
                "resumable": not self.args.save_only_model,
                "processes": self.accelerator.num_processes,
                **self.checkpoint_notes,
            }
            checkpoints.write_manifest(staged, step, notes)
            checkpoints.publish(staged, run_folder)
            staged.parent.rmdir()
            checkpoints.rotate(run_folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        except OSError as caught:
            return [str(caught)]
        return []

    def _load_best_model(self) -> None:
        if wrong := decide_together(lambda: checkpoints.damage(Path(self.state.best_model_checkpoint))):
            logger.warning(
                "load_best_model_at_end: %s: %s; the final model is that of the last step",
                self.state.best_model_checkpoint,
                wrong,
            )
            return
        super()._load_best_model()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._resuming_from is not None:  # of the final row: steps of all processes over the time of this one
            for key in ("train_samples_per_second", "train_steps_per_second"):
                logs.pop(key, None)
        super().log(logs, start_time)

    def _progress_file(self) -> str:
        world = self.accelerator.num_processes
        return "progress.json" if world == 1 else f"progress_{self.accelerator.process_index}.json"

    def _save_progress(self, staged: Path) -> None:
        """Write what the next process needs beside TRL's files; each process its own."""
        metrics = {mode: {k: [float(x) for x in v] for k, v in m.items()} for mode, m in self._metrics.items()}
        progress = {
            "micro_step": self._step,
            "metrics": metrics,
            "loss": self._tr_loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "train_tokens": self._total_train_tokens,
            "masked_rows": self._masked_rows,
            "account": self._account.state(),
            "checked_log_probs": self._checked_log_probs,
            "trusts_sampler": self._trusts_sampler,
            "reference": self._reference_fingerprint(),
            "callbacks": {
                type(callback).__name__: callback.checkpoint_state()
                for callback in self.callback_handler.callbacks
                if hasattr(callback, "checkpoint_state")
            },
        }
        (staged / self._progress_file()).write_text(json.dumps(progress, indent=1) + "\n")
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "save_checkpoint_files"):
                callback.save_checkpoint_files(staged)
        if self._reference_moves() and self.accelerator.is_main_process:
            self._save_reference(staged)

    def _restore_progress(self) -> None:
        """Give back what `_save_progress` wrote; after transformers has loaded the rest."""
        folder = self._resuming_from
        progress = json.loads((folder / self._progress_file()).read_text())
        if progress["reference"] != self._reference_fingerprint():
            raise ValueError(
                f"model_name_or_path: its weights are not those that {folder} was trained from; the reference (or "
                "the frozen base under an adapter) would be another one; restore the model folder"
            )
        self._step = progress["micro_step"]
        if not self.at_block_end:
            raise ValueError(
                f"--resume: {folder} is the last step of a finished run and lies inside a generation block; a longer "
                "run cannot continue from it; take an earlier checkpoint"
            )
        for mode, metrics in progress["metrics"].items():
            self._metrics[mode].clear()
            self._metrics[mode].update(metrics)
        self._tr_loss.fill_(progress["loss"])
        self._total_loss_scalar = progress["total_loss"]
        self._globalstep_last_logged = progress["last_logged"]
        self._initial_global_step = 0  # the logged train_loss is the mean over the whole run
        self._total_train_tokens = progress["train_tokens"]
        self._masked_rows = progress["masked_rows"]
        self._account.load_state(progress["account"])
        self._checked_log_probs = progress["checked_log_probs"]
        self._trusts_sampler = progress["trusts_sampler"]
        if self.state.best_global_step:
            best = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
        if self._reference_moves():
            self._load_reference(folder)
        for callback in self.callback_handler.callbacks:
            if type(callback).__name__ in progress["callbacks"]:
                callback.load_checkpoint_state(progress["callbacks"][type(callback).__name__])
            if hasattr(callback, "load_checkpoint_files"):
                callback.load_checkpoint_files(folder)

    def _save_reference(self, folder: Path) -> None:
        weights = {name: value.contiguous().clone() for name, value in self._bare_reference().state_dict().items()}
        save_file(weights, folder / REFERENCE)

    def _load_reference(self, folder: Path) -> None:
        self._bare_reference().load_state_dict(load_file(folder / REFERENCE))

    def _bare_reference(self):
        return self.accelerator.unwrap_model(self.ref_model)

    def _sharded(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _reference_moves(self) -> bool:
        return self.args.sync_ref_model and self.ref_model is not None and not self._sharded()

    def _reference_fingerprint(self) -> str | None:
        """Hash of the weights that checkpoints do not hold: the snapshot, or the frozen base under an adapter."""
        if self._fingerprint is None and not (self._sharded() or self._reference_moves()):
            self._fingerprint = hash_of(self._kept_elsewhere())
        return self._fingerprint

    def _kept_elsewhere(self) -> list[tuple[str, torch.Tensor]]:
        if self.ref_model is not None:
            return list(self._bare_reference().named_parameters())
        model = self.accelerator.unwrap_model(self.model)
        frozen = [(name, weight) for name, weight in model.named_parameters() if not weight.requires_grad]
        return [(name, weight) for name, weight in frozen if not self._resets.owns(name)]

    def _get_train_sampler(self, dataset=None):
        sampler = super()._get_train_sampler(dataset)
        return _PositionedSampler(sampler, lambda: int(self.state.epoch or 0)) if _is_repeating(sampler) else sampler

    def _get_eval_sampler(self, eval_dataset):
        sampler = super()._get_eval_sampler(eval_dataset)
        return _PositionedSampler(sampler, lambda: 0) if _is_repeating(sampler) else sampler


class _PositionedSampler(torch.utils.data.Sampler):
    """RepeatSampler whose order in an epoch depends on seed and epoch alone; TRL's own order in every epoch.

    TRL's draws one permutation after the other from one generator: after a resume in epoch 3 it would start over
    with the permutation of epoch 0.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        self.sampler, self.epoch = sampler, epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self):
        if self.sampler.shuffle and self.sampler.seed is not None:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(self.epoch()):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)


class _BlockEnds(TrainerCallback):
    """Restores progress when training begins; saves and stops only where a generation block ends."""

    def __init__(self, trainer: Resumes):
        self.trainer = trainer
        self._save_at_block_end = False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self.trainer._resuming_from is not None:
            self.trainer._restore_progress()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        trainer = self.trainer
        if not trainer.at_block_end and state.global_step < state.max_steps:
            self._save_at_block_end |= control.should_save
            control.should_save = False
            return
        control.should_save |= self._save_at_block_end
        self._save_at_block_end = False
        asked = torch.tensor([float(trainer.stop_requested())], device=trainer.accelerator.device)
        if trainer.accelerator.gather(asked).any() and state.global_step < state.max_steps:
            trainer.stopped_early = True
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        if self.trainer.stopped_early:  # transformers ends the epoch that is broken off: nothing more is due
            control.should_log = control.should_evaluate = control.should_save = False


def _is_repeating(sampler) -> bool:
    return isinstance(sampler, RepeatSampler)
