#!/usr/bin/env python3
"""One run of one arm of scripts/bench.py: its time per step, or its peak memory.

    scripts/bench_arms.py trl_grpo            peak memory of that arm, MiB, as JSON

Peak memory needs a process of its own. Start it from a small one: on Linux a child's `ru_maxrss` begins at the
resident memory of its parent.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["CI"] = "1"  # TRL counts its trainers otherwise

import datasets
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    TrainerCallback,
    logging,
)
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import reference_model

ROLLOUTS = {"num_generations": 16, "max_completion_length": 12, "beta": 0.04}
SFT = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}
ARMS = {
    "ours_rl": (FreeEnergyTrainer, FreeEnergyConfig, ROLLOUTS),
    "trl_grpo": (GRPOTrainer, GRPOConfig, ROLLOUTS),
    "trl_rloo": (RLOOTrainer, RLOOConfig, ROLLOUTS),
    "ours_sft": (FreeEnergyTrainer, FreeEnergyConfig, SFT),
    "trl_sft": (SFTTrainer, SFTConfig, {}),
}
TIME_BATCH, PEAK_BATCH = 64, 32
PEAK_STEPS = 2  # the optimizer has its state from the second step on
WIDER = {"vocab_size": 8192, "hidden_size": 256, "head_dim": 64, "intermediate_size": 768, "num_hidden_layers": 2}
GPU = torch.cuda.is_available()
MIB = 2**20

torch.set_num_threads(1)
datasets.disable_progress_bars()
logging.disable_progress_bar()
_scratch = tempfile.TemporaryDirectory()


def data() -> dict:
    """Rollout prompts and demonstrations; every arm holds both."""
    return {
        "prompts": digits.dataset(["tail_10", "basin"], 512, seed=0),
        "demonstrations": digits.dataset(["barrier", "basin"], 2048, seed=0, demonstrations=True),
    }


def wider_model() -> Path:
    """A folder like the testbed's, with a wider model of random weights."""
    path, folder = Path(tempfile.mkdtemp(dir=_scratch.name)), reference_model()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_pretrained(folder, **WIDER)).save_pretrained(path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(path)
    return path


def trainer(name: str, folder: Path, model, rows: dict, *, batch: int, steps: int):
    """The trainer of an arm, ready to train `model`, which was loaded from `folder`."""
    trainer_class, config_class, settings = ARMS[name]
    args = config_class(
        output_dir=tempfile.mkdtemp(dir=_scratch.name),
        use_cpu=not GPU,
        bf16=False,
        report_to="none",
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
        log_level="error",
        logging_steps=10,
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=1e-7,  # every arm stays at the reference and decodes alike
        **settings,
    )
    if name.endswith("sft"):
        rows = {"demo_dataset" if name == "ours_sft" else "train_dataset": rows["demonstrations"]}
    else:
        rows = {"train_dataset": rows["prompts"], "reward_funcs": [digits.correct]}
    made = trainer_class(model, args=args, processing_class=AutoTokenizer.from_pretrained(folder), **rows)
    made.remove_callback(PrinterCallback)
    return made


def time_per_step(name: str, rows: dict, *, steps: int, warm_up: int) -> float:
    """Milliseconds per step of one run on the testbed's model, without its first steps."""

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (warm_up, steps):
                ends.append(_clock())

    ends: list[float] = []
    folder = reference_model()
    model = AutoModelForCausalLM.from_pretrained(folder)
    run = trainer(name, folder, model, rows, batch=TIME_BATCH, steps=steps)
    run.add_callback(Clock())
    run.train()
    return 1e3 * (ends[1] - ends[0]) / (steps - warm_up)


def peak_memory(name: str) -> dict[str, float]:
    """Peak of one run on the wider model in this process, MiB: whole, and above the peak before the trainer."""
    rows, folder = data(), wider_model()
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cuda" if GPU else None)
    before = _peak()
    trainer(name, folder, model, rows, batch=PEAK_BATCH, steps=PEAK_STEPS).train()
    return {"peak_mib": _peak(), "added_peak_mib": _peak() - before}


def _clock() -> float:
    """Seconds: CPU time of this process, or on a GPU the time at which its work is done."""
    if not GPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _peak() -> float:
    """Highest memory so far, MiB: resident memory of this process, or on a GPU what torch allocated there."""
    if GPU:
        return torch.cuda.max_memory_allocated() / MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


if __name__ == "__main__":
    print(json.dumps(peak_memory(sys.argv[1])))
