#!/usr/bin/env python3
"""Longer evidence than a test suite should make: `scripts/evidence.py NAME` runs it and writes its small result.

    optimum        our estimators, TRL's RLOOTrainer and GRPOTrainer on a world that can be enumerated: what is left
                   of the gap F - F* after 400 steps of 128 samples, paired seeds         (about 9 CPU-minutes)
    projections    forward and reverse projection of one target on the same world        (about 3 CPU-minutes)
    mixture        recipes/mixture.yaml: exact p per family before and after              (about 2 CPU-minutes)
    chain_sum      scripts/chain_sum.py and its recipe: before and after, 3 seeds         (about 6 CPU-minutes)
    recipes        40 recipes with one mistake each: exit code, line, suggestion          (about 5 CPU-minutes)
    kills          kill -9 in every phase of a step and of a save, then --resume          (about 8 CPU-minutes)
    damage         every file of a checkpoint missing, cut short, one bit flipped         (about 2 CPU-minutes)
    signals        SIGTERM and SIGINT at random moments, then --resume                    (about 8 CPU-minutes)
    rewards        nine kinds of reward faults under both policies                        (about 4 CPU-minutes)
    surroundings   disk full at a save, wandb faults, one rank failing of two             (about 2 CPU-minutes)
    worlds         500 enumerated worlds: coverage of every bound, bias of every estimate (about 1 CPU-minute)
    adaptive       the ledger watched at every step of adaptive training, 200 toy runs    (about 1 CPU-minute)
    null_worlds    1,000 worlds of counts without any change                              (about 1 CPU-minute)
    support_null   learning rate 0, whole pipeline: no change may be claimed              (about 2 CPU-minutes)
    support_tail   tails raised by RL: certified from the policy's own draws              (about 3 CPU-minutes)
    support_displacement   windows and closure against exact p, an injected change        (about 4 CPU-minutes)
    support_barrier   created points certified, exact ones covered, 20 repeats            (about 6 CPU-minutes)
    alarms         false alarms on healthy runs, each alarm on a run made to deserve it   (about 20 CPU-minutes)
    support_draws  draws for the calls, against a fixed 1024 of either model              (about 2 CPU-minutes)
    mirror         wandb beside a run: the quick start read back, kills and replays, no server (about 6 CPU-minutes)
    penalty        a step of SFT with beta on its demonstrations, over one without        (about 5 CPU-minutes)
    interplay      RL on prompts of one depth: pass@k moves at the edge; mid-training shifts it (about 3 CPU-minutes)
    report_page    report.html of two runs in a browser: errors, requests, width, size    (about 3 CPU-minutes)
    echo_chamber   RL from a base of three answer formats: exact shares, with and without KL (about 4 CPU-minutes)
    methods        recipes/methods: every named method's run, exact p, what it claims     (about 8 CPU-minutes)
    studies        seven controlled studies, five of them recipes/comparisons, restartable; with --report only
                   tables and figures of finished runs                                    (about 35 CPU-minutes)

Results lie in scripts/evidence/NAME.json with the versions that made them.
"""

import argparse
import json
import os
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

RESULTS = Path(__file__).resolve().parent / "evidence"
STUDIES = {  # name: the module of studies/ that holds a function of this name
    "optimum": "optimum",
    **dict.fromkeys(("mixture", "chain_sum", "recipes"), "recipes"),
    **dict.fromkeys(("kills", "damage", "signals", "rewards", "surroundings"), "survival"),
    **dict.fromkeys(("support_null", "support_tail", "support_barrier", "support_draws"), "support"),
    "support_displacement": "support_displacement",
    "interplay": "interplay",
    **{name: name for name in ("projections", "worlds", "adaptive", "null_worlds", "alarms", "mirror", "penalty")},
    "report_page": "report_page",
    "methods": "methods",
    "echo_chamber": "echo_chamber",
    "studies": "comparisons",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=STUDIES)
    parser.add_argument("--repeats", type=int, help="seeds or cases, where a study has them; default as published")
    parser.add_argument("--report", action="store_true", help="studies: run nothing, tables and figures anew")
    words = parser.parse_args()
    if words.report and words.name != "studies":
        parser.error(f"--report: {words.name} keeps no runs to report on; leave it out")
    before = os.times()
    study = getattr(import_module(f"studies.{STUDIES[words.name]}"), words.name)
    asked = {} if not words.report else {"report": True}
    result = study(**asked) if words.repeats is None else study(words.repeats)
    from fe_posttrain.training.run import RunFolder, library_versions

    used = sum(after - start for after, start in zip(os.times()[:4], before[:4], strict=True))
    result |= {"cpu_seconds": round(used, 1), "versions": library_versions()}
    print(json.dumps(result, indent=2))
    RunFolder(RESULTS, shared=True).write_json(f"{words.name}.json", result)


if __name__ == "__main__":
    main()
