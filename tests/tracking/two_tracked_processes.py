"""Run by torchrun in test_support_on_two_processes.py: a tracked run, and one whose tracker fails on one process."""

import json
import sys
from pathlib import Path

import short_runs
from accelerate import PartialState

from fe_posttrain.tasks import digits


def tracked(folder: Path, processes: int) -> dict:
    """What the tracker of a run at learning rate 0 knows; the same rows on any number of processes."""
    support = short_runs.support(folder / "cache", support_steps=2, support_displacement_steps=2)
    made = short_runs.trainer(
        folder / "run", "rl", support, max_steps=4, learning_rate=0.0, per_device_train_batch_size=16 // processes
    )
    made.train()
    bank, rounds = support.probes.bank, support.probes.rounds
    return {
        "off": support.off,
        "bank": bank.hits.tolist(),
        "rounds": [[r.step, r.correct, round(r.kl, 4), r.guess_floor] for r in rounds],
        "probe_ledger": support.probes.ledger.drawn.tolist(),
        "windows": len(support.displacements.windows),
        "training_rows": int(support.riding.ledger.drawn.sum()) if support.riding else None,
        "verdict": support._report["verdict"],
    }


def failing(folder: Path) -> dict:
    """The tracker of one process fails; both switch it off and train to the end."""
    support = short_runs.support(folder / "cache_failing", support_steps=2)
    made = short_runs.trainer(folder / "failing", "rl", support, max_steps=4, per_device_train_batch_size=8)
    if PartialState().process_index == 1:
        support._correct = None  # not callable: an error at the first rollouts
    made.train()
    return {"step": made.state.global_step, "off": support.off, "why": support.summary().get("off")}


if __name__ == "__main__":
    where = Path(sys.argv[1])
    found = {"tracked": tracked(where, 2), "failing": failing(where), "families": len(digits.FAMILIES)}
    rank = PartialState().process_index
    (where / f"found_{rank}.json").write_text(json.dumps(found))
