#!/usr/bin/env python3
"""Longer evidence than a test suite should make: `scripts/evidence.py NAME` runs it and writes its small result.

    optimum    our estimators, TRL's RLOOTrainer and GRPOTrainer on a world that can be enumerated: what is left
               of the gap F - F* after 400 steps of 128 samples, paired seeds           (about 9 CPU-minutes)
    mixture    recipes/mixture.yaml: exact p per family before and after                (about 2 CPU-minutes)
    recipes    40 recipes with one mistake each through scripts/train.py: exit code, line, suggestion (5 CPU-minutes)

Results lie in scripts/evidence/NAME.json with the versions that made them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "evidence"

STEPS, BETA = 400, 0.3
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "max_steps": STEPS,
    "report_to": "none",
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "log_level": "error",
    "logging_steps": 100,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": 128,
    "num_generations": 16,
    "max_completion_length": 3,
    "beta": BETA,
}


def _arms() -> dict:
    """Name -> (trainer, config, settings of its own)."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer

    return {
        "sequence": (FreeEnergyTrainer, FreeEnergyConfig, {"loss_divisor": 1}),
        "sequence_to_go": (
            FreeEnergyTrainer,
            FreeEnergyConfig,
            {"loss_divisor": 1, "estimator": "sequence_to_go"},
        ),
        "TRL RLOOTrainer": (RLOOTrainer, RLOOConfig, {}),
        "TRL GRPOTrainer, no std": (GRPOTrainer, GRPOConfig, {"scale_rewards": "none"}),
        "TRL GRPOTrainer": (GRPOTrainer, GRPOConfig, {}),
    }


def _train(arm: tuple, seed: int, folder: str) -> float:
    """Remaining gap of one arm on the enumerable world; every arm starts from the same weights on disk."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, PrinterCallback

    from fe_posttrain.tasks import enumerable

    trainer_class, config_class, own = arm
    model = AutoModelForCausalLM.from_pretrained(folder)  # TRL reloads its reference from where this came from
    before = enumerable.log_probs(model)
    trainer = trainer_class(
        model,
        reward_funcs=[enumerable.reward],
        args=config_class(output_dir=tempfile.mkdtemp(), seed=seed, **{**SETTINGS, **own}),
        train_dataset=Dataset.from_dict({"prompt": [enumerable.PROMPT] * 64}),
        processing_class=enumerable.build_tokenizer(),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return enumerable.remaining_gap(enumerable.log_probs(model), before, BETA)


def _train_exactly(folder: str) -> float:
    """The same optimizer on autograd of the exact F: what 400 steps can reach without sampling noise."""
    import torch
    from transformers import AutoModelForCausalLM

    from fe_posttrain.tasks import enumerable
    from fe_posttrain.theory.free_energy import exact_free_energy

    model = AutoModelForCausalLM.from_pretrained(folder)
    before = enumerable.log_probs(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["learning_rate"], weight_decay=0.0)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    rows = enumerable.completions()
    mask = torch.tensor([[i < len(row) for i in range(enumerable.MAX_TOKENS)] for row in rows])
    tokens = torch.tensor([[*row, *[0] * (enumerable.MAX_TOKENS - len(row))] for row in rows])
    prompt = torch.tensor(enumerable.prompt_ids()).expand(len(rows), -1)
    for _ in range(STEPS):
        logits = model(torch.cat([prompt, tokens], dim=1)).logits[:, prompt.shape[1] - 1 : -1]
        chosen = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        log_policy = (chosen * mask).sum(1).double()
        optimizer.zero_grad()
        exact_free_energy(log_policy, before, enumerable.energies(), beta=BETA).total.backward()
        optimizer.step()
        decay.step()
    return enumerable.remaining_gap(enumerable.log_probs(model), before, BETA)


def optimum(seeds: int) -> dict:
    """Remaining gap in percent of the initial one, per arm and seed."""
    import torch
    from transformers.utils import logging

    from fe_posttrain.tasks import enumerable

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    arms = _arms()
    gaps: dict[str, list[float]] = {name: [] for name in ["autograd of the exact F", *arms]}
    for seed in range(seeds):
        folder = tempfile.mkdtemp()
        enumerable.build_model(seed).save_pretrained(folder)
        gaps["autograd of the exact F"].append(100 * _train_exactly(folder))
        for name, arm in arms.items():
            gaps[name].append(100 * _train(arm, seed, folder))
        print(f"seed {seed}: " + ", ".join(f"{name} {values[-1]:.2f} %" for name, values in gaps.items()), flush=True)
    return {
        "what": "remaining gap (F - F*) / (F_start - F*) in percent, 400 steps of 128 samples, beta .3",
        "mean": {name: statistics.mean(values) for name, values in gaps.items()},
        "per_seed": gaps,
    }


def mixture(seeds: int) -> dict:
    """Exact p per family of recipes/mixture.yaml, for some seeds, and the CPU-seconds of the training."""
    runs = []
    for seed in range(seeds):
        folder = Path(tempfile.mkdtemp()) / "run"
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(ROOT / "recipes/mixture.yaml")]
        started = time.time()
        subprocess.run([*command, "--seed", str(seed), "--output_dir", str(folder)], check=True)
        summary = json.loads((folder / "summary.json").read_text())
        kept = {key: summary[key] for key in ("steps", "train_seconds", "families", "free_energy")}
        runs.append({"seed": seed, "wall_seconds": time.time() - started, **kept})
    return {"what": "recipes/mixture.yaml", "runs": runs}


def recipes(seeds: int) -> dict:
    """Every recipe of tests/recipe/spoiled.py launched for real; there is nothing random in it."""
    import resource

    sys.path.insert(0, str(ROOT / "tests" / "recipe"))
    from spoiled import CASES

    rows = []
    for case in CASES:
        path = case.write(Path(tempfile.mkdtemp()))
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(path), *case.overrides]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        lines = [line for line in done.stderr.splitlines() if line.startswith(case.place(path))]
        rows.append(
            {
                "name": case.name,
                "exit_code": done.returncode,
                "key_and_line": len(lines) == 1,
                "suggestion": any(case.suggestion in line for line in lines),
                "traceback": "Traceback" in done.stderr,
                "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
                "says": (lines or [done.stderr[-300:]])[0].replace(str(path), path.name),
            }
        )
        print(rows[-1]["cpu_seconds"], rows[-1]["says"], flush=True)
    return {
        "what": "40 recipes with one mistake each, launched",
        "exit_code_2": sum(row["exit_code"] == 2 for row in rows),
        "key_and_line": sum(row["key_and_line"] for row in rows),
        "suggestion": sum(row["suggestion"] for row in rows),
        "tracebacks": sum(row["traceback"] for row in rows),
        "most_cpu_seconds": max(row["cpu_seconds"] for row in rows),
        "cases": rows,
    }


STUDIES = {"optimum": optimum, "mixture": mixture, "recipes": recipes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--seeds", type=int, default=5)
    words = parser.parse_args()
    started = time.process_time()
    result = STUDIES[words.name](words.seeds)
    from fe_posttrain.training.run import RunFolder, library_versions

    result |= {"cpu_seconds": round(time.process_time() - started, 1), "versions": library_versions()}
    print(json.dumps(result, indent=2))
    RunFolder(RESULTS, shared=True).write_json(f"{words.name}.json", result)


if __name__ == "__main__":
    main()
