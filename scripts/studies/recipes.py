"""Recipes through the real door: one that trains, and forty with a mistake."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def mixture(seeds: int = 5) -> dict:
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


def chain_sum(seeds: int = 3) -> dict:
    """scripts/chain_sum.py and recipes/chain_sum.yaml as a user runs them: reward of training, p on unseen prompts."""
    scripts = [sys.executable, str(ROOT / "scripts")]
    runs = []
    for seed in range(seeds):
        where = Path(tempfile.mkdtemp())
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        made = subprocess.run(
            [scripts[0], f"{scripts[1]}/chain_sum.py", "--out", str(where / "task"), "--seed", str(seed)],
            check=True,
            capture_output=True,
            text=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = ["--model_name_or_path", f"{where}/task/reference", "--dataset_name", f"{where}/task/train.jsonl"]
        evaluated = ["--eval_dataset_name", f"{where}/task/test.jsonl", "--eval_strategy", "steps", "--eval_on_start"]
        evaluated += ["true", "--eval_steps", "200", "--per_device_eval_batch_size", "256"]
        recipe = str(ROOT / "recipes" / "chain_sum.yaml")
        subprocess.run(
            [
                scripts[0],
                f"{scripts[1]}/train.py",
                "--config",
                recipe,
                "--output_dir",
                str(where / "run"),
                *words,
                *evaluated,
                "--seed",
                str(seed),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        rows = [json.loads(line) for line in (where / "run" / "metrics.jsonl").read_text().splitlines()]
        rewards = [row["reward"] for row in rows if "loss" in row]
        unseen = [row["eval_reward"] for row in rows if "eval_reward" in row]
        runs.append(
            {
                "seed": seed,
                "reference_cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
                "reference_says": made.stdout.splitlines()[-4:-1],
                "reward_first_5_steps": sum(rewards[:5]) / 5,
                "reward_last_20_steps": sum(rewards[-20:]) / 20,
                "unseen_prompts_before_and_after": [unseen[0], unseen[-1]],
            }
        )
        print(json.dumps(runs[-1]), flush=True)
    return {"what": chain_sum.__doc__, "runs": runs}


def recipes() -> dict:
    """Every recipe of tests/recipe/spoiled.py launched for real."""
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
