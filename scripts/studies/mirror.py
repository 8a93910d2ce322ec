"""wandb as a mirror of the run folder: the quick start read back, runs that are killed and replayed, no server."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from studies.survival import KILLED, ROOT, TRAIN, WAIT

REPLAY = [sys.executable, str(ROOT / "scripts" / "replay.py")]
WANDB = str(Path(sys.executable).parent / "wandb")
TIMES = {"seconds", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
SHORT = "--max_steps 40 --probe_rows 4 --support_draws 8 --support_steps 10 --support_reference_draws 64".split()


def mirror(kills: int = 10) -> dict:
    """Every number of the quick start in its offline wandb run; kills and replays; wandb away in three ways."""
    where, found = Path(tempfile.mkdtemp()), {}
    found["quick start"] = _quick_start(where / "quick")
    print(json.dumps(found), flush=True)
    found["kills"] = _kills(where, kills)
    found["without wandb"] = _without(where)
    shutil.rmtree(where)
    return {"what": mirror.__doc__, **found}


def _environment(**more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return clean | {"FE_POSTTRAIN_CACHE": str(_cache())} | more


def _cache() -> Path:
    return Path(os.environ.get("FE_POSTTRAIN_CACHE") or Path.home() / ".cache" / "fe_posttrain")


def _quick_start(folder: Path) -> dict:
    """scripts/quickstart.sh, and `wandb leet inspect --summary --json` of what it leaves."""
    command = [str(ROOT / "scripts" / "quickstart.sh"), "--output_dir", str(folder)]
    subprocess.run(command, env=_environment(), capture_output=True, timeout=WAIT * 10, check=True)
    from fe_posttrain.view.catalogue import find, in_wandb
    from fe_posttrain.view.reading import RunData

    last = {key: value for key, value in RunData(folder).last().items() if key not in ("step", "seconds")}
    shown = json.loads(_inspected(_offline(folder), "--summary"))["summary"]
    return {
        "logged_keys": len(last),
        "in_catalogue": sum(find(key) is not None for key in last),
        "in_wandb_with_the_last_value": sum(shown.get(in_wandb(key)) == value for key, value in last.items()),
    }


def _kills(where: Path, count: int) -> dict:
    """`kill -9` at random moments, then scripts/replay.py: rows that are lost, and the replayed run row by row."""
    from studies.killed import PHASES

    words = ["--config", str(ROOT / "recipes" / "quickstart.yaml"), *SHORT]
    whole = where / "whole"
    subprocess.run([*TRAIN, *words, "--output_dir", str(whole)], env=_environment(), check=True, capture_output=True)
    wanted, rng, runs = _rows(whole), random.Random(3), []
    phases = rng.choices([phase for phase in PHASES if phase not in ("save", "manifest", "rename", "rotate")], k=count)
    for i, phase in enumerate(phases):
        folder, counted = where / f"killed-{i}", where / f"counted-{i}"
        call, delay = rng.randint(2, 40), rng.uniform(0, 40)
        command = [*KILLED, phase, str(call), f"{delay:.2f}", *words, "--output_dir", str(folder)]
        died = subprocess.run(command, env=_environment(COUNT_ROWS=str(counted)), capture_output=True, timeout=WAIT)
        made = counted.read_text().count("\n") if counted.exists() else 0
        kept = _rows(folder)
        replayed = subprocess.run(
            [*REPLAY, str(folder)], env=_environment(), capture_output=True, text=True, check=True
        )
        runs.append(
            {
                "phase": phase,
                "killed": died.returncode == -9,
                "rows_logged": made,
                "rows_lost": made - len(kept),
                "same_as_uninterrupted": kept == wanted[: len(kept)],
                "replayed_row_by_row": _same_history(_offline(folder), folder),
            }
        )
        print(json.dumps(runs[-1]), replayed.stdout.strip(), flush=True)
        shutil.rmtree(folder)
    good = sum(r["killed"] and r["rows_lost"] <= 1 and r["replayed_row_by_row"] for r in runs)
    most = max(r["rows_lost"] for r in runs)
    return {"at_most_one_row_lost_and_replay_equal": f"{good} of {count}", "most_rows_lost": most, "runs": runs}


def _without(where: Path) -> dict:
    """No login, a closed port, files named wandb: how much later training starts than without wandb, and the replay."""
    home, elsewhere = where / "home", where / "elsewhere"
    for folder in (home, elsewhere):
        folder.mkdir()
    (elsewhere / "wandb").write_text("not a folder")
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    cases = {
        "no wandb": ({}, ["--report_to", "none"]),
        "no login": ({}, []),
        "closed port": (nowhere, []),
        "a file named wandb": ({"WANDB_MODE": "offline"}, []),
        "no wandb again": ({}, ["--report_to", "none"]),
    }
    found: dict[str, dict] = {}
    for name, (environment, words) in cases.items():
        folder = where / name.replace(" ", "-")
        command = [*TRAIN, "--config", str(ROOT / "recipes" / "quickstart.yaml"), *SHORT, *words]
        started = time.time()
        process = subprocess.Popen(
            [*command, "--output_dir", str(folder)],
            cwd=elsewhere if "file" in name else ROOT,
            env=_environment(HOME=str(home), PYTHONPATH=str(ROOT), **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while process.poll() is None and not (folder / "metrics.jsonl").exists():
            time.sleep(0.02)
        first = time.time() - started
        said = process.communicate(timeout=WAIT * 2)[0]
        found[name] = {"code": process.returncode, "seconds_to_first_row": round(first, 1)}
        if not words:
            found[name]["says"] = [line for line in said.splitlines() if line.startswith("wandb: ")]
            subprocess.run([*REPLAY, str(folder)], env=_environment(), check=True, capture_output=True)
            found[name]["replay_complete"] = _same_history(_offline(folder), folder)
        print(name, json.dumps(found[name]), flush=True)
    plain = max(found[name]["seconds_to_first_row"] for name in ("no wandb", "no wandb again"))
    for case in found.values():
        case["later_than_without_wandb"] = round(case["seconds_to_first_row"] - plain, 1)
    (elsewhere / "wandb").unlink()
    return {name: {k: _without_paths(v, where) for k, v in case.items()} for name, case in found.items()}


def _without_paths(value, where: Path):
    return [re.sub(re.escape(str(where)) + r"\S*", "RUN", line) for line in value] if isinstance(value, list) else value


def _rows(folder: Path) -> list[dict]:
    """Whole rows of metrics.jsonl without their times."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def _offline(folder: Path) -> Path:
    return sorted((folder / "wandb").glob("offline-run-*"))[-1]


def _inspected(run: Path, *words: str) -> str:
    command = [WANDB, "leet", "inspect", "--json", *words, str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=run).stdout


def _same_history(run: Path, folder: Path) -> bool:
    """Whether the history of a wandb run is metrics.jsonl, row by row and number by number."""
    from fe_posttrain.view.catalogue import in_wandb
    from fe_posttrain.view.reading import RunData

    records = map(json.loads, _inspected(run).splitlines())
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    seen = [{k: v for k, v in item.items() if k.startswith(("train/", "eval/"))} for item in items]
    wanted = []
    for row in RunData(folder).metrics:
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        step = numbers.pop("step")
        del numbers["seconds"]
        wanted.append({in_wandb(key): value for key, value in numbers.items()} | {"train/global_step": step})
    return seen == wanted
