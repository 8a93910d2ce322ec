"""Every named method on the testbed: its recipe as it stands, exact p of each family before and after."""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60  # of CPU that a run may take

# method: (family, exact p that it claims to reach on held-out prompts). The reference stands at .09 on tail_10, which
# reward alone can raise, and below 1e-4 on barrier, which needs demonstrations.
REACHES = {
    **dict.fromkeys(
        ("rl", "grpo", "dr_grpo", "rejection_sampling_sft", "raft", "gibbs_sft", "alternating"), ("tail_10", 0.8)
    ),
    **dict.fromkeys(("sft", "sft_then_rl", "dft", "gift", "luffy", "hpt", "chord_mu", "chord_phi"), ("barrier", 0.5)),
    **dict.fromkeys(("srft", "relift", "uft", "prefix_rft"), ("barrier", 0.5)),
}


def methods(names: list[str] | None = None) -> dict:
    """Run recipes/methods/*.yaml in turn."""
    found = {}
    for path in sorted((ROOT / "recipes" / "methods").glob("*.yaml")):
        if names and path.stem not in names:
            continue
        found[path.stem] = _run(path)
        print(path.stem, json.dumps(found[path.stem]), flush=True)
    return {
        "what": "exact p on 32 held-out prompts of each family, start and end of recipes/methods/NAME.yaml",
        "bar_cpu_seconds": SECONDS,
        "methods": found,
        "failed": [name for name, one in found.items() if not one["reached"] or one["cpu_seconds"] > SECONDS],
    }


def _run(path: Path) -> dict:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "scripts/train.py", "--config", str(path), "--output_dir", folder]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        summary = json.loads((Path(folder) / "summary.json").read_text())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    p = {family: [round(ends["start"], 6), round(ends["end"], 4)] for family, ends in summary["families"].items()}
    family, bar = REACHES[path.stem]
    return {
        "cpu_seconds": round(seconds, 1),
        "steps": summary["steps"],
        "p": p,
        "claim": f"{family} reaches {bar}",
        "reached": p[family][1] >= bar,
        "account": summary.get("account"),
    }


if __name__ == "__main__":
    methods(sys.argv[1:])
