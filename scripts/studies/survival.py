"""Runs that are killed, damaged, interrupted or starved, and what is left of them; every process is a real one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
KILLED = [sys.executable, str(Path(__file__).with_name("killed.py"))]
TIMES = {"seconds", "step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}
WAIT = 120

# 36 steps of 8 prompts out of 96, or of 32 demonstrations out of 384: epochs 0, 1 and 2.
COMMON = "--max_steps 36 --save_strategy steps --save_steps 4 --save_total_limit 3 --logging_steps 3 --probe_rows 4"
KINDS = {
    "rl": "recipes/rl.yaml --prompt_rows 96 --per_device_train_batch_size 64 --num_generations 8 --learning_rate 1e-3",
    "sft": "recipes/sft.yaml --demonstration_rows 384 --per_device_train_batch_size 32",
    "mixture": "recipes/mixture.yaml --prompt_rows 96 --demonstration_rows 384 --num_generations 8 "
    "--per_device_demonstration_batch_size 32",
}


def _words(kind: str, folder: Path, *more: str) -> list[str]:
    return ["--config", *KINDS[kind].split(), *COMMON.split(), "--output_dir", str(folder), *more]


def _run(command: list[str], timeout: float = WAIT, **more) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, **more)


def _content(folder: Path) -> tuple[bytes, list[dict]]:
    """Final weights, and logged rows without their times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    plain = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return (folder / "model" / "model.safetensors").read_bytes(), plain


def _uninterrupted(where: Path) -> dict[str, tuple]:
    found = {}
    for kind in KINDS:
        done = _run([*TRAIN, *_words(kind, where / kind)])
        assert done.returncode == 0, done.stderr[-2000:]
        found[kind] = _content(where / kind)
    return found


def kills(count: int = 20) -> dict:
    """`kill -9` in every phase of a step and of a save, resumed and compared with the uninterrupted run."""
    sys.path.insert(0, str(Path(__file__).parent))
    from killed import PHASES

    rng = random.Random(0)
    where = Path(tempfile.mkdtemp())
    wanted, rows = _uninterrupted(where), []
    phases = [phase for phase in PHASES for _ in range(count // len(PHASES) + 1)]
    rng.shuffle(phases)
    for i, phase in enumerate(phases[:count]):
        kind = list(KINDS)[i % 3]
        if kind == "sft" and phase == "generation":
            phase = "backward"
        last = 9 if phase in ("save", "manifest", "rename", "rotate") else 12 if phase == "metrics" else 36
        longest = {"save": 12, "manifest": 4, "rename": 0}.get(phase, 40)  # ms: a save takes some 15
        call, delay = rng.randint(1, last), rng.choice([0, rng.uniform(0, longest)])
        folder = where / f"killed-{i}"
        died = _run([*KILLED, phase, str(call), f"{delay:.1f}", *_words(kind, folder)])
        left = sorted(path.name for path in folder.iterdir())
        again = _run([*TRAIN, *_words(kind, folder, "--resume")])
        same = again.returncode == 0 and _content(folder) == wanted[kind]
        says = [line for line in again.stdout.splitlines() if "continuing" in line or "starting from" in line]
        row = {
            "kind": kind,
            "phase": phase,
            "call": call,
            "delay_ms": round(delay, 1),
            "killed": died.returncode == -signal.SIGKILL,
            "half_save_left": ".staging" in left,
            "resumed": says[0].split("/")[-1] if says else None,
            "bit_identical": same,
        }
        rows.append(row)
        print(json.dumps(row), again.stderr[-500:] if not same else "", flush=True)
        shutil.rmtree(folder)
    identical = sum(row["bit_identical"] and row["killed"] for row in rows)
    return {"what": kills.__doc__, "bit_identical": f"{identical} of {len(rows)}", "runs": rows}


def damage(count: int = 4) -> dict:
    """Every file of the newest checkpoint missing, cut short, or with one bit flipped; some resumed for real."""
    from fe_posttrain.training.checkpoints import newest_complete

    where, rng = Path(tempfile.mkdtemp()), random.Random(1)
    wanted, rows, silent = {}, [], 0
    for kind in ("mixture", "sft"):
        folder = where / kind
        done = _run([*TRAIN, *_words(kind, folder)])
        assert done.returncode == 0, done.stderr[-2000:]
        wanted[kind] = _content(folder)
        before, newest = folder / "checkpoint-32", folder / "checkpoint-36"
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        for path in files:
            whole = path.read_bytes()
            flipped = bytearray(whole)
            flipped[rng.randrange(len(whole) - 1)] ^= 1 << rng.randrange(8)
            spoiled = {"missing": None, "cut short": whole[: len(whole) // 2], "one bit": bytes(flipped)}
            for how, content in spoiled.items():
                path.unlink()
                if content is not None:
                    path.write_bytes(content)
                found = newest_complete(folder)
                ok = found.folder == before and path.name in found.damaged[0]
                silent += not ok
                rows.append({"kind": kind, "file": path.name, "how": how, "found_and_previous_used": ok})
                path.write_bytes(whole)
        for path in rng.sample(files, count // 2):
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            again = _run([*TRAIN, *_words(kind, folder, "--resume")])
            says = "passed over a damaged checkpoint" in again.stdout and "checkpoint-32" in again.stdout
            rows.append(
                {
                    "kind": kind,
                    "file": path.name,
                    "how": "cut short, resumed",
                    "found_and_previous_used": says,
                    "bit_identical": _content(folder) == wanted[kind],
                }
            )
            print(json.dumps(rows[-1]), again.stderr[-500:], flush=True)
    found = sum(row["found_and_previous_used"] for row in rows)
    return {"what": damage.__doc__, "found": f"{found} of {len(rows)}", "silent": silent, "cases": rows}


def signals(count: int = 20) -> dict:
    """SIGTERM and SIGINT at random moments: how long leaving takes, and whether the resumed run is the same."""
    rng = random.Random(2)
    where = Path(tempfile.mkdtemp())
    wanted, rows = _uninterrupted(where), []
    for i in range(count):
        kind = list(KINDS)[i % 3]
        number = (signal.SIGTERM, signal.SIGINT)[i % 2]
        folder, after = where / f"asked-{i}", rng.randint(1, 10)
        process = subprocess.Popen(
            [*TRAIN, *_words(kind, folder, "--save_steps", "1000")],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        asked = _await_rows(folder, after, process)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(number)
        process.wait(WAIT)
        seconds = time.time() - asked
        again = _run([*TRAIN, *_words(kind, folder, "--resume")])
        row = {
            "kind": kind,
            "signal": number.name,
            "code": process.returncode,
            "seconds_to_leave": round(seconds, 2),
            "resumed_from_checkpoint": "continuing from" in again.stdout,
            "bit_identical": again.returncode == 0 and _content(folder) == wanted[kind],
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
        shutil.rmtree(folder)
    good = sum(row["bit_identical"] and row["resumed_from_checkpoint"] for row in rows)
    return {
        "what": signals.__doc__,
        "exact": f"{good} of {len(rows)}",
        "longest_seconds_to_leave": max(row["seconds_to_leave"] for row in rows),
        "runs": rows,
    }


def _await_rows(folder: Path, count: int, process: subprocess.Popen) -> float:
    """Wait until so many rows are logged, and return the time."""
    end = time.time() + WAIT
    metrics = folder / "metrics.jsonl"
    while time.time() < end and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= count:
            return time.time()
        time.sleep(0.02)
    raise RuntimeError(f"{folder.name}: no {count} rows before the process ended")


REWARDS = """
import math, time
from fe_posttrain.tasks.digits import correct

KIND = "{kind}"

def spoiled(prompts, completions, **columns):
    rewards = correct(prompts, completions)
    at = [i for i, y in enumerate(completions) if y[:1] == "7"]
    if at and KIND == "raises":
        raise KeyError("no such grade")
    if at and KIND == "leaves":
        raise SystemExit(3)
    if at and KIND == "wrong length":
        return rewards[:-1]
    if at and KIND == "wrong container":
        return {{"rewards": rewards}}
    if at and KIND == "hangs":
        time.sleep(1000)
    value = {{"nan": math.nan, "infinity": math.inf, "huge": 1e38, "wrong type": "1.0"}}.get(KIND)
    return [value if value is not None and i in at else r for i, r in enumerate(rewards)]
"""
FAULTS = ("raises", "leaves", "nan", "infinity", "huge", "wrong type", "wrong length", "wrong container", "hangs")


def rewards() -> dict:
    """Nine kinds of reward faults under both policies: code, message, weights, and the count of masked rows."""
    from safetensors.torch import load_file

    where, rows = Path(tempfile.mkdtemp()), []
    for kind in FAULTS:
        file = where / f"{kind.replace(' ', '_')}.py"
        file.write_text(REWARDS.format(kind=kind))
        for policy in ("stop", "mask"):
            folder = where / f"{file.stem}-{policy}"
            words = [*KINDS["rl"].split(), *COMMON.split(), "--max_steps", "3", "--logging_steps", "1"]
            words += ["--reward_funcs", f"['{file}:spoiled']", "--reward_timeout", "0.5"]
            words += ["--reward_fault_policy", policy, "--reward_fault_limit", "0.5", "--log_completions", "true"]
            done = _run([*TRAIN, "--config", *words, "--output_dir", str(folder)])
            row = {"kind": kind, "policy": policy, "code": done.returncode}
            row["names_function_and_row"] = "spoiled: row " in done.stderr
            if policy == "mask":
                logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                row["masked_rows"] = max(line.get("rewards/spoiled/faults", 0) for line in logged)
                weights = load_file(folder / "model" / "model.safetensors")
                row["weights_finite"] = all(bool(w.isfinite().all()) for w in weights.values())
            rows.append(row)
            print(json.dumps(row), done.stderr[-300:] if done.returncode not in (0, 3) else "", flush=True)
    good = sum(
        row["names_function_and_row"] and (row["code"] == 3 if row["policy"] == "stop" else row["weights_finite"])
        for row in rows
    )
    counts = {row["masked_rows"] for row in rows if row["policy"] == "mask"}
    return {
        "what": rewards.__doc__,
        "as_they_should_be": f"{good} of {len(rows)}",
        "masked_rows_agree_over_kinds": len(counts) == 1,
        "runs": rows,
    }


def surroundings() -> dict:
    """No room on the disk at a save, wandb without login, unreachable or dying, and one rank of two that fails."""
    where, found = Path(tempfile.mkdtemp()), {}
    plain = _run([*TRAIN, *_words("rl", where / "plain")])
    assert plain.returncode == 0, plain.stderr[-2000:]
    wanted = _content(where / "plain")
    found["disk full"] = _disk_full(where / "full", wanted)
    print(json.dumps(found), flush=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    clean["HOME"] = str(where)
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    for name, more in {"no login": {}, "unreachable": nowhere, "dying": {"WANDB_MODE": "offline"}}.items():
        folder = where / name.replace(" ", "-")
        environment = {**clean, "FE_POSTTRAIN_CACHE": _cache(), **more}
        started = time.time()
        process = subprocess.Popen(
            [*TRAIN, *_words("rl", folder, "--report_to", "wandb")],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if name == "dying":
            _await_rows(folder, 3, process)
            subprocess.run(["pkill", "-9", "-P", str(process.pid)], check=False)
        said = process.communicate(timeout=WAIT)[0]
        found[name] = {
            "code": process.returncode,
            "seconds": round(time.time() - started, 1),
            "says": [line for line in said.splitlines() if line.startswith("wandb: ") and "WARN" not in line],
            "training_unaffected": process.returncode == 0 and _content(folder) == wanted,
        }
        print(json.dumps(found[name]), flush=True)
    found["one rank of two fails"] = _failing_rank(where / "two")
    return {"what": surroundings.__doc__, **found}


def _cache() -> str:
    return os.environ.get("FE_POSTTRAIN_CACHE") or str(Path.home() / ".cache" / "fe_posttrain")


def _disk_full(folder: Path, wanted: tuple) -> dict:
    """A file system of 3 MB, when this may mount one: room for two checkpoints and no third."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False).returncode
    if mounted != 0:
        return {"skipped": "no right to mount a small file system"}
    try:
        words = _words("rl", folder / "run", "--save_total_limit", "20")
        done = _run([*TRAIN, *words])
        kept = [path.name for path in (folder / "run").glob("checkpoint-*")]
        from fe_posttrain.training.checkpoints import damage as wrong

        return {
            "code": done.returncode,
            "warnings": done.stderr.count("was not saved"),
            "checkpoints_left": len(kept),
            "all_whole": all(wrong(folder / "run" / name) is None for name in kept),
            "metrics_complete": (folder / "run" / "metrics.jsonl").read_text().count("\n") == len(wanted[1]),
            "last_words": done.stderr.strip().splitlines()[-1].replace(str(folder), "..."),
        }
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def _failing_rank(folder: Path) -> dict:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    started = time.time()
    done = _run([*launch, KILLED[1], "second-rank", "0", "0", *_words("rl", folder)], env=environment)
    return {
        "code": done.returncode,
        "seconds_with_start": round(time.time() - started, 1),
        "names_the_error": "rank 1 of the study fails" in done.stderr,
    }
