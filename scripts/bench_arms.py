"""The trainers that scripts/bench.py compares: built alike, and timed alike."""

import copy
import os
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # a rollout_func is an experiment to TRL
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # memory profiles begin after the model is there
os.environ["CI"] = "1"  # TRL counts its trainers otherwise

import datasets
import torch
import transformers
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer

OURS = "ours"
TRAINERS = {
    OURS: (FreeEnergyTrainer, FreeEnergyConfig),
    "grpo": (GRPOTrainer, GRPOConfig),
    "rloo": (RLOOTrainer, RLOOConfig),
    "sft": (SFTTrainer, SFTConfig),
}
SFT = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}  # ours as SFTTrainer
GPU = torch.cuda.is_available()

torch.set_num_threads(1)
datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
scratch = tempfile.TemporaryDirectory()


def build(kind: str, model, tokenizer, rows, reward: Callable | None = None, *, rollout_func=None, **settings):
    """A trainer of this kind, ready to train `model`.

    Args:
        kind: a key of `TRAINERS`.
        rows: prompts, or without `reward` demonstrations.
        settings: what the trainer's config takes beside what is common to all arms.
    """
    trainer_class, config_class = TRAINERS[kind]
    common = {
        "output_dir": tempfile.mkdtemp(dir=scratch.name),
        "use_cpu": not GPU,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "log_level": "error",
        "learning_rate": 1e-7,  # every arm stays at the reference and decodes alike
    }
    args = config_class(**common | settings)
    given = {"train_dataset": rows, "reward_funcs": [reward], "rollout_func": rollout_func}
    if reward is None:
        given = {"demo_dataset" if kind == OURS else "train_dataset": rows}
    elif rollout_func is None:
        del given["rollout_func"]
    beta, copies = args.beta if kind == "grpo" else 0.0, not model.config._name_or_path
    if beta and copies:
        args.beta = 0.0  # a model made in memory lies nowhere that TRL could load its reference from
    made = trainer_class(model, args=args, processing_class=tokenizer, **given)
    if beta and copies:
        args.beta = made.beta = beta
        made.ref_model = made.accelerator.prepare_model(_reference(made), evaluation_mode=True)
    made.remove_callback(PrinterCallback)
    return made


def _reference(trainer: GRPOTrainer):
    """A copy of the trainer's model, made ready as GRPOTrainer makes the one that it loads."""
    model = copy.deepcopy(trainer.model).requires_grad_(False).eval()
    vars(model).pop("forward")  # the fused head of the copy still closes over the original
    add_fused_lm_head(model, temperature=trainer.temperature)
    return model


def mark():
    """A moment: CPU time of this process, or on a GPU an event in its stream."""
    if not GPU:
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(start, end) -> float:
    """Seconds between two moments."""
    if not GPU:
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class Phases(TrainerCallback):
    """Reads a meter at the ends of steps `first` and `last`, and around what makes and scores the rollouts between.

    Args:
        read: a reading, as `mark` is one; `between` makes a number of two.
        start, stop: called before the first reading and after the last one.
    """

    def __init__(self, trainer, first: int, last: int, read=mark, between=seconds, start=None, stop=None):
        self.trainer, self.first, self.last, self.read, self.between = trainer, first, last, read, between
        self.start, self.stop = start, stop
        self._readings = {"step": [], "rollouts": [], "generation": []}
        self._on = False
        trainer.add_callback(self)
        if not isinstance(trainer, SFTTrainer):
            for method, name in (("_generate_and_score_completions", "rollouts"), ("_generate", "generation")):
                setattr(trainer, method, self._around(getattr(trainer, method), name))

    def _around(self, method, name: str):
        def read_around(*args, **kwargs):
            if not self._on:
                return method(*args, **kwargs)
            before = self.read()
            result = method(*args, **kwargs)
            self._readings[name].append((before, self.read()))
            return result

        return read_around

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.first:
            if self.start is not None:
                self.start()
            self._on, self._began = True, self.read()
        elif state.global_step == self.last:
            self._readings["step"].append((self._began, self.read()))
            self._on = False
            if self.stop is not None:
                self.stop()

    def per_step(self) -> dict[str, float]:
        """What the meter moved in a step: in all, and where rollouts are made in generation, scoring and update."""
        steps = self.last - self.first
        step, rollouts, generation = (
            sum(self.between(*pair) for pair in self._readings[name]) / steps
            for name in ("step", "rollouts", "generation")
        )
        if not self._readings["rollouts"]:
            return {"step": step}
        return {"step": step, "generation": generation, "scoring": rollouts - generation, "update": step - rollouts}


def timed(trainer, *, warm_up: int, steps: int) -> dict[str, float]:
    """Seconds per step of one run without its first steps (`Phases`), and the mean length of its completions."""
    phases, key = Phases(trainer, warm_up, steps), "completions/mean_length"
    trainer.train()
    lengths = [row[key] for row in trainer.state.log_history if key in row and row["step"] > warm_up]
    return phases.per_step() | ({"length": sum(lengths) / len(lengths)} if lengths else {})
