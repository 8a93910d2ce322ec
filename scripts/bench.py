#!/usr/bin/env python3
"""CPU time per optimizer step against TRL's trainers, on the same model, data and batch.

    scripts/bench.py                          both comparisons, 7 alternating pairs each
    scripts/bench.py --pairs 3 --only rl      a quicker look
    scripts/bench.py --json result.json       and keep the record

Arms alternate inside one process on one thread; each run starts from the testbed's reference, leaves out its first
steps and is timed by process CPU time, so that other work on the machine hardly matters. Learning rates are tiny:
both arms stay at the reference and decode alike. A ratio below 1 means less time than TRL.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["CI"] = "1"  # TRL counts its trainers otherwise
warnings.filterwarnings("ignore", category=FutureWarning)

STEPS, WARM_UP = 60, 10
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": STEPS,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "logging_steps": 10,
    "learning_rate": 1e-7,
    "per_device_train_batch_size": 64,
    "log_level": "error",
}
ROLLOUTS = {"num_generations": 16, "max_completion_length": 12, "beta": 0.04}


def _timed(trainer) -> float:
    """CPU-seconds per step of one training run, without its first steps."""
    from transformers import PrinterCallback, TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in (WARM_UP, STEPS):
                setattr(self, f"at_{state.global_step}", time.process_time())

    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    return (getattr(clock, f"at_{STEPS}") - getattr(clock, f"at_{WARM_UP}")) / (STEPS - WARM_UP)


def _comparisons(folder: Path) -> dict:
    """Name -> (ours, theirs), each a function that runs one arm once."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
    from fe_posttrain.tasks import digits

    prompts = digits.dataset(["tail_10", "basin"], 512, seed=0)
    demos = digits.dataset(["barrier", "basin"], 2048, seed=0, demonstrations=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def arm(trainer_class, config_class, settings, **arguments):
        def once() -> float:
            args = config_class(output_dir=tempfile.mkdtemp(), **COMMON, **settings)
            model = AutoModelForCausalLM.from_pretrained(folder)
            return _timed(trainer_class(model, args=args, processing_class=tokenizer, **arguments))

        return once

    rl = {"reward_funcs": [digits.correct], "train_dataset": prompts}
    pure = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}
    return {
        "rl": (
            arm(FreeEnergyTrainer, FreeEnergyConfig, ROLLOUTS, **rl),
            arm(GRPOTrainer, GRPOConfig, ROLLOUTS, **rl),
        ),
        "sft": (
            arm(FreeEnergyTrainer, FreeEnergyConfig, pure, demo_dataset=demos),
            arm(SFTTrainer, SFTConfig, {}, train_dataset=demos),
        ),
    }


def compare(ours, theirs, pairs: int) -> dict:
    """Alternate the arms and summarise the paired ratios."""
    ours(), theirs()  # first runs pay for imports and caches
    times = [(ours(), theirs()) if i % 2 else tuple(reversed((theirs(), ours()))) for i in range(pairs)]
    ratios = sorted(a / b for a, b in times)
    return {
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "ours_ms": 1e3 * statistics.median(a for a, _ in times),
        "trl_ms": 1e3 * statistics.median(b for _, b in times),
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", choices=["rl", "sft"])
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()

    import datasets
    import torch
    from transformers.utils import logging

    from fe_posttrain.tasks.pretraining import reference_model
    from fe_posttrain.training.run import library_versions

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    names = {
        "rl": "FreeEnergyTrainer / GRPOTrainer, beta > 0, batch 64, G 16",
        "sft": "pure demonstrations / SFTTrainer, batch 64",
    }
    found = {"load": os.getloadavg(), "versions": library_versions()}
    for key, (ours, theirs) in _comparisons(reference_model()).items():
        if words.only in (None, key):
            found[key] = row = compare(ours, theirs, words.pairs)
            low, high = row["ratio_range"]
            print(
                f"{names[key]}: {row['ratio']:.3f} ({low:.3f} to {high:.3f}; "
                f"{row['ours_ms']:.1f} against {row['trl_ms']:.1f} CPU-ms a step)",
                flush=True,
            )
    if words.json:
        words.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
