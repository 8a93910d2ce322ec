"""Finished runs made by hand, in memory or as run folders with just what a comparison reads."""

import json
from pathlib import Path
from typing import Any

import yaml

from fe_posttrain.methods.measured import Measured, measured

ACCOUNT = {
    "generated_tokens": 1000,
    "verifier_calls": 100,
    "gradient_tokens": 500,
    "forward_tokens": 2000,
    "updates": 10,
    "demonstrations": 0,
    "parameters": 100,
    "train_seconds": 3.5,
}
PROMPTS = ("a", "b", "c", "d")


class Told:
    """What `RunData` tells of a run folder, given as it is."""

    def __init__(self, recipe: dict, summary: dict, probes: list[dict], path: str = "runs/fake"):
        self.recipe, self.summary, self.probes, self.path = recipe, summary, probes, path


def report(step: int, kl: float, correct: list[int], **how: Any) -> dict[str, Any]:
    """A probe's report. `how`: `drawn`, `screened` (hits of the reference in 8), `lows` of verdict terms (points),
    `regimes` of the reference, `budget`, `bar`, `prompts`, `families` (of prompts), `created` (points, by family)."""
    prompts = how.get("prompts", PROMPTS[: len(correct)])
    families = how.get("families", [])
    created = {name: how.get("created", {}).get(name, 0.0) for name in families}
    lows = {"gain": 0.0, "elicited": 0.0, "created": 0.0, "lost": 0.0} | how.get("lows", {})
    return {
        "step": step,
        "kl": kl,
        "key": {"reference": "ref", "decoding": "t1", "verifier": "v", "budget": how.get("budget", 16), "delta": 0.05},
        "verdict": {name: {"value": low, "low": low, "high": None} for name, low in lows.items()},
        "checks": {"bar": {"verdict": how.get("bar", "passed")}},
        "families": {
            name: {"verdict": {term: {"low": low if term == "created" else 0.0} for term in lows}}
            for name, low in created.items()
        },
        "points": {
            "family": families or [None] * len(correct),
            "prompt": list(prompts),
            "correct": {"trained": correct},
            "drawn": {"trained": [how.get("drawn", 8)] * len(correct)},
            "screened": {"correct": how.get("screened", [0] * len(correct)), "drawn": [8] * len(correct)},
            "regime": {"reference": how.get("regimes", ["out"] * len(correct))},
        },
    }


def told(*reports: dict, account: dict | None = None, recipe: dict | None = None, **summary: Any) -> Told:
    """A run of these probes."""
    spent = ACCOUNT | (account or {})
    support = {"ledger": {"training_prompts_drawn": 10}}
    energies = {"total": {"start": -0.1, "end": -0.5}, "gap": {"start": 0.5, "end": 0.1}}
    whole = {"account": spent, "support": support, "free_energy": energies} | summary
    objective = {"reward_energy_weight": 1.0, "demonstration_energy_weight": 0.0, "beta": 0.05}
    return Told(objective | (recipe or {}), whole, [{"report": one} for one in reports])


def run(*reports: dict, **how: Any) -> Measured:
    return measured(told(*reports, **how))


def write(folder: Path, told: Told) -> None:
    """As a run folder."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(told.recipe))
    events = [{"step": probe["report"]["step"], "event": "probe", "report": probe["report"]} for probe in told.probes]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "summary.json").write_text(json.dumps(told.summary))
