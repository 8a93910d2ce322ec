"""The controlled studies, two at a time: comparisons of recipes/comparisons, Echo Chamber and Interplay.

Runs lie in runs/studies; the same command again goes on where it stopped. Claims were written before the runs that are
reported, sizes and learning rates were chosen on pilots. recipes/comparisons/README.md tells questions and sources.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fe_posttrain.whole_files import write_whole

ROOT = Path(__file__).resolve().parents[2]
RUNS = Path("runs/studies")  # below ROOT, where every command is run
EVIDENCE = ROOT / "scripts" / "evidence"
MOST = 0.5  # of the baseline's gain, recovered at least: "most of it"
STAYS = 0.01  # pass@1 of a family that was not opened
MIXED = ("hpt", "chord_mu", "luffy", "relift", "srft")


def tail_and_barrier(found: dict) -> dict:
    arms = {label: arm["families"] for label, arm in found["arms"].items()}
    rl, sft, mixture = arms["rl"], arms["sft"], arms["mixture"]
    return {
        "claim": "certified in every seed: RL elicits tail_10, creates nothing there and leaves barrier below .01; "
        "demonstrations create barrier; the mixture does both",
        "holds": min(rl["tail_10"]["elicited_low"]) > 0
        and max(rl["tail_10"]["created_low"] + rl["barrier"]["created_low"]) == 0
        and max(rl["barrier"]["pass_1"]) < STAYS
        and min(sft["barrier"]["created_low"] + mixture["barrier"]["created_low"]) > 0
        and min(mixture["tail_10"]["elicited_low"]) > 0,
        "numbers": arms,
    }


def fair(found: dict) -> dict:
    pairs = found["pairs"]
    shares = {label: pair["recovered"] for label, pair in pairs.items()}
    return {
        "claim": "tokens and verifier calls equal within 2 % in every seed; the controls recover most of RL's gain: "
        f"the lower end of the 95 % interval is above {MOST}",
        "holds": all(pair["generated"]["holds"] for pair in pairs.values())
        and all(share["all"] is not None and share["all"]["low"] > MOST for share in shares.values()),
        "numbers": {
            "share_recovered": shares,
            "matched": {label: pair["generated"] for label, pair in pairs.items()},
            "pass_1": {label: arm["mean"]["pass_1"] for label, arm in found["arms"].items()},
            "at_equal_kl": {label: pair["kl"] for label, pair in pairs.items()},
        },
    }


def mixing(found: dict) -> dict:
    less = {label: pair["differences"]["pass_1"] for label, pair in found["pairs"].items()}
    return {
        "claim": "no mixed method has a pass@1 above that of SFT then RL: no 95 % interval lies above 0",
        "holds": all(less[label]["low"] <= 0 for label in MIXED),
        "numbers": {
            "pass_1": {label: arm["mean"]["pass_1"] for label, arm in found["arms"].items()},
            "less_sft_then_rl": less,
            "families": {
                label: {name: family["pass_1"] for name, family in arm["families"].items()}
                for label, arm in found["arms"].items()
            },
            "tuning": found["tuning"],
        },
    }


def negative_controls(found: dict) -> dict:
    lows = {label: [run["created_low"] for run in arm["runs"].values()] for label, arm in found["arms"].items()}
    by_role = {role: [low for label, arm in found["arms"].items() if arm["role"] == role for low in lows[label]]
               for role in ("negative", "positive")}  # fmt: skip
    return {
        "claim": "no certified creation in any negative control, certified creation in every positive one",
        "holds": max(by_role["negative"]) == 0 and min(by_role["positive"]) > 0,
        "numbers": {"created_low": lows, "pass_1": {k: arm["mean"]["pass_1"] for k, arm in found["arms"].items()}},
    }


def echo_chamber(found: dict) -> dict:
    return {
        "claim": "without KL one format takes over, with KL the formats end at the optimum's shares",
        "holds": found["collapse"]["holds"] and found["optimum"]["holds"],
        "numbers": {"collapse": found["collapse"], "most_apart": found["optimum"]["most_apart"]},
    }


def interplay(found: dict) -> dict:
    return {
        "claim": "pass@128 moves at the edge of competence alone, and mid-training shifts the edge",
        "holds": found["as_claimed"] == found["runs_made"],
        "numbers": {name: found[name] for name in ("as_claimed", "runs_made", "claim")},
    }


COMPARED: dict[str, Callable[[dict], dict]] = {  # the longest first
    "mixing": mixing,
    "negative_controls": negative_controls,
    "tail_and_barrier": tail_and_barrier,
    "fair_control": fair,
    "projections": fair,
}
OTHERS: dict[str, Callable[[dict], dict]] = {"echo_chamber": echo_chamber, "interplay": interplay}


def studies(*, report: bool = False) -> dict:
    """Run what is not finished, or with `report` only read what is; write tables and figures below scripts/evidence.

    Raises:
        RuntimeError: a study ended with an error.
    """
    (ROOT / RUNS).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        failed = [name for name in pool.map(lambda name: _done(name, report), [*COMPARED, *OTHERS]) if name]
    if failed:
        raise RuntimeError(f"{', '.join(failed)}: ended with an error, see {RUNS}/NAME.log; the same command goes on")
    told = dict(_told())
    return {
        "what": "controlled studies on the testbed; fe_posttrain/methods/README.md explains the numbers",
        "hold": [name for name, one in told.items() if one["holds"]],
        "do_not_hold": [name for name, one in told.items() if not one["holds"]],
        "cpu_seconds_counted": round(sum(one["cpu_seconds"] or 0.0 for one in told.values()), 1),
        "not_counted": [name for name, one in told.items() if one["cpu_seconds"] is None],
        "studies": told,
    }


def command(name: str) -> list[str]:
    """The words, after python, that make a study."""
    if name in OTHERS:
        return ["scripts/evidence.py", name]
    return ["scripts/compare.py", "--config", f"recipes/comparisons/{name}.yaml", "--output_dir", f"{RUNS}/{name}"]


def _done(name: str, report: bool) -> str | None:
    """Run a study in a process of its own and count its CPU-seconds over all starts; its name if it failed."""
    folder = ROOT / RUNS
    result = folder / f"{name}.json"
    if name in OTHERS and (report or result.is_file()):
        return None
    print(f"{name}: begins", flush=True)
    began = time.monotonic()
    with open(folder / f"{name}.log", "a") as log:
        words = [sys.executable, *command(name), *(["--report"] if report else [])]
        child = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if not report:
        spent = folder / f"{name}.seconds"
        before = float(spent.read_text()) if spent.is_file() else 0.0
        write_whole(spent, f"{before + used.ru_utime + used.ru_stime:.1f}\n")
    print(f"{name}: exit code {child.returncode} after {time.monotonic() - began:.0f} s", flush=True)
    if child.returncode:
        return name
    if name in OTHERS:
        shutil.copy(EVIDENCE / f"{name}.json", result)
    return None


def _told() -> Iterator[tuple[str, dict]]:
    """What every study shows; tables and figures are copied to scripts/evidence/studies."""
    for name, of in (COMPARED | OTHERS).items():
        folder = ROOT / RUNS / name
        path = folder / "comparison.json" if name in COMPARED else EVIDENCE / f"{name}.json"
        found = json.loads(path.read_text())
        spent = ROOT / RUNS / f"{name}.seconds"
        seconds = float(spent.read_text()) if spent.is_file() else found.get("cpu_seconds")  # None: not counted
        yield name, {"command": " ".join(command(name)), "cpu_seconds": seconds} | of(found)
        if name in COMPARED:
            _copy(name, folder)


def _copy(name: str, folder: Path) -> None:
    out = EVIDENCE / "studies"
    (out / name).mkdir(parents=True, exist_ok=True)
    for picture in sorted((folder / "figures").glob("*.svg")):
        shutil.copy(picture, out / name / picture.name)
    write_whole(out / f"{name}.md", (folder / "comparison.md").read_text().replace("(figures/", f"({name}/"))
