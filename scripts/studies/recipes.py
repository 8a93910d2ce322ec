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
