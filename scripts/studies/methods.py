"""Every named method on the testbed: its recipe as it stands, exact p of each family before and after."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60  # of CPU that a run may take

# What each run claims: exact p of held-out prompts of these families, at its end. The reference stands at .10, .03 and
# .003 on the tails, which reward alone can raise, below 1e-4 on barrier, which needs demonstrations, and at 1 on basin.
_BY_REWARD = {"tail_10": 0.8, "basin": 0.8}
_BY_BOTH = {"barrier": 0.6, **_BY_REWARD}
_HARD = {"tail_03": 0.6, "tail_005": 0.6}
REACHES = {
    "sft": {"barrier": 0.8, "basin": 0.9},
    "sft_then_rl": _BY_BOTH,
    "rl": _BY_REWARD,
    "grpo": _BY_REWARD,
    "dr_grpo": _BY_REWARD,
    "rejection_sampling_sft": _BY_REWARD,
    "raft": _BY_REWARD,
    "gibbs_sft": _BY_REWARD,
    "luffy": _HARD,
    "hpt": _BY_BOTH,
    "chord_mu": _BY_BOTH,
    "chord_phi": _HARD,
    "srft": _BY_BOTH,
    "relift": _BY_BOTH,
    "dft": {"tail_03": 0.8, "tail_005": 0.8, "basin": 0.9},
    "gift": {"barrier": 0.7},
    "uft": {"barrier": 0.3, **_BY_REWARD},
    "prefix_rft": _HARD,
    "distillation": _BY_REWARD,
    "alternating": _BY_REWARD,
}
# Where the claim is to do better than another method: the families on the lowest of which that one stays behind, and
# its run on as many steps of the same prompts or demonstrations. (Stopped earlier, SFT
# does as well as gift: see its header.)
_RL = "--config recipes/methods/dr_grpo.yaml --max_steps 30 --num_generations 8 --prompts"
_SFT = "--config recipes/methods/sft.yaml --max_steps 200 --demonstrations"
_BY_RL = (("tail_03", "tail_005"), (*_RL.split(), "{tail_03: 1, tail_005: 1, basin: 1}"))
BEHIND = {
    "luffy": _BY_RL,
    "chord_phi": _BY_RL,
    "prefix_rft": _BY_RL,
    "gift": (("basin",), (*_SFT.split(), "{barrier: 1}")),
}


def methods(names: list[str] | None = None) -> dict:
    """Run recipes/methods/*.yaml in turn, the methods that some of them are to beat, and one teacher."""
    found, others = {}, {}
    for name in names or REACHES:
        behind, words = BEHIND.get(name, ((), ()))
        if words and words not in others:
            others[words] = _launched(words)
        found[name] = _claimed(name, behind, others.get(words))
        print(name, json.dumps(found[name]), flush=True)
    return {
        "what": "exact p on 32 held-out prompts of each family, start and end of recipes/methods/NAME.yaml",
        "bar_cpu_seconds": SECONDS,
        "methods": found,
        "compared_with": {" ".join(words): run for words, run in others.items()},
        "failed": [name for name, one in found.items() if not one["reached"] or one["cpu_seconds"] > SECONDS],
    }


def _claimed(name: str, behind: tuple[str, ...], other: dict | None) -> dict:
    """A run of the recipe `name`, and whether it did what the tables above say."""
    words = ("--config", f"recipes/methods/{name}.yaml")
    with tempfile.TemporaryDirectory() as folder:
        if name == "distillation":
            _launched(("--config", "recipes/methods/rl.yaml"), folder)
            words += ("--reference_model_name_or_path", f"{folder}/model")
        run = _launched(words)
    claim = [f"{family} reaches {bar:g}" for family, bar in REACHES[name].items()]
    reached = all(run["p"][family][1] >= bar for family, bar in REACHES[name].items())
    if other:
        own, theirs = (min(one["p"][family][1] for family in behind) for one in (run, other))
        claim.append(f"lowest of {', '.join(behind)}: {own:g}, above the other method's {theirs:g}")
        reached &= own > theirs
    return run | {"claim": "; ".join(claim), "reached": reached}


def _launched(words: tuple[str, ...], folder: str | None = None) -> dict:
    """What a run of scripts/train.py took and reached."""
    with tempfile.TemporaryDirectory() as passing:
        folder, before = folder or passing, _children()
        command = [sys.executable, "scripts/train.py", *words, "--output_dir", folder]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        seconds = _children() - before
        summary = json.loads((Path(folder) / "summary.json").read_text())
    p = {family: [round(ends["start"], 6), round(ends["end"], 4)] for family, ends in summary["families"].items()}
    return {"cpu_seconds": round(seconds, 1), "steps": summary["steps"], "p": p, "account": summary["account"]}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    methods(sys.argv[1:])
