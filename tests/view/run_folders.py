"""Run folders made by hand, as small as a test wants them; the reports in them are made from counts."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fe_posttrain.support.budgets import Key
from fe_posttrain.support.counts import Counts
from fe_posttrain.support.report import report_of_counts

RECIPE = {
    "model_name_or_path": "models/a<b>",
    "reward_energy_weight": 1.0,
    "demonstration_energy_weight": 0.0,
    "beta": 0.05,
    "beta_schedule": None,
    "support": True,
    "run_name": None,
}
NASTY = "<script>alert('x')</script> & <img src=x onerror=1>"


@cache
def _counted(prompts: int, draws: int, budget: int) -> dict[str, Any]:
    """A report of counts; of 200 prompts it takes a second."""
    names = tuple(map(str, range(prompts)))
    kinds = [i % 3 for i in range(prompts)]
    before = [(draws - i % 2, 0, 0)[kind] for i, kind in enumerate(kinds)]
    after = [(draws, draws - 5 - i % 4, i % 2)[kind] for i, kind in enumerate(kinds)]
    tags = tuple(("easy", "opened", "shut")[kind] for kind in kinds)
    sides = (Counts(names, before, [draws] * prompts, tags, "a"), Counts(names, after, [draws] * prompts, tags, "b"))
    return report_of_counts(Key("base", "temperature 1", "correct", budget), *sides)


def a_report(step: int, prompts: int = 6, draws: int = 64, budget: int = 16) -> dict[str, Any]:
    """The report of a round: a third of the prompts was always solved, a third is now, a third never."""
    kinds = [i % 3 for i in range(prompts)]
    body = deepcopy(_counted(prompts, draws, budget))
    body["points"]["prompt"] = [f"{NASTY} {i}" for i in range(prompts)]
    body["points"]["support"] = {
        "start": [("in", "out", "unknown")[kind] for kind in kinds],
        "now": [("in", "in", "unknown")[kind] for kind in kinds],
    }
    check = {"verdict": "passed", "df": 0.0123, "se": 0.045, "why": "+0.01 nats, SE 0.05"}
    return body | {"step": step, "kl": 1.25 + step, "checks": {"bar": check}}


def completions(step: int, prompts: int) -> list[dict[str, Any]]:
    """Of each prompt a wrong one of the reference and a right one of the policy."""
    return [
        {
            "step": step,
            "event": "probe",
            "model": model,
            "prompt": f"{NASTY} {i}",
            "family": "easy",
            "completion": f"<b>{model} {i}</b>",
            "correct": model == "policy",
            "energy": -1.0,
            "log_ratio": 0.125 * i,
            "regime": "tail",
        }
        for i in range(prompts)
        for model in ("reference", "policy")
    ]


def a_row(step: int) -> dict[str, Any]:
    """A logged step; every number is one of its own."""
    wave = ((step * 7919) % 101) / 101
    total = 2.0 / step + 0.1 * wave - 1
    optimum = -0.97 + 0.01 * wave
    return {
        "step": step,
        "seconds": 0.5 * step,
        "free_energy/total": total,
        "free_energy/optimum": optimum,
        "free_energy/gap": total - optimum,
        "free_energy/reward": -wave,
        "free_energy/kl": 1.5 * wave,
        "free_energy/beta": 0.05,
        "support/ledger_in": step / (step + 9),
        "support/correct": wave,
        "reward": wave,
        "reward_std": 0.5 - wave / 3,
        "entropy": 1 / step,
        "grad_norm": 10.0 ** (-6 * wave),
        "learning_rate": 1e-3 / step,
        "step_time": 0.1 + wave / 50,
    }


def a_run(
    path: Path,
    steps: int = 40,
    *,
    probes: tuple[int, ...] = (20, 40),
    prompts: int = 6,
    finished: bool = True,
    recipe: dict[str, Any] | None = None,
) -> Path:
    """Write the folder of a run; `probes`: steps after which it was probed."""
    (path / "samples").mkdir(parents=True)
    (path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | (recipe or {})))
    (path / "versions.json").write_text(json.dumps({"python": "3.11.7", "tasks": {"digits": "1"}}))
    rows = [a_row(step) for step in range(1, steps + 1)]
    events: list[dict[str, Any]] = [{"step": 0, "seconds": 0.1, "event": "start", "steps": steps}]
    for step in probes:
        body = a_report(step, prompts, draws=64 + step)
        terms = body["verdict"]
        rows[step - 1] |= {"support/gain": terms["gain"]["value"], "support/probe_kl": body["kl"]}
        rows[step - 1] |= {f"support/{name}_low": terms[name]["low"] for name in ("elicited", "created", "lost")}
        calls = body["calls"]["trained"].items()
        rows[step - 1] |= {f"support/calls/trained/{regime}": count for regime, count in calls}
        name = f"samples/probe-{step:06d}.parquet"
        pq.write_table(pa.Table.from_pylist(completions(step, prompts)), path / name)
        events.append({"step": step, "seconds": 0.5 * step, "event": "probe", "report": body, "samples": name})
    if finished:
        events.append({"step": steps, "seconds": 0.5 * steps, "event": "end", "status": "finished", "error": None})
        found = {name: {"start": 0.25, "end": 0.125} for name in ("total", "kl")}
        support = _ended(events[-2]["report"], steps) if probes else {}
        (path / "summary.json").write_text(json.dumps({"steps": steps, "free_energy": found, "support": support}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def _ended(report: dict[str, Any], steps: int) -> dict[str, Any]:
    """The report of a finished run, with what rode on training."""
    halves = {"halves": None, "rows": 16, "updates": 8}
    windows = [{"step": s, "value": 0.3 / s, "se": 0.07 / s} | halves for s in range(8, steps + 1, 8)]
    ledger = {"training_prompts_in": 17, "training_prompts_drawn": 29, "zero_hit_prompts": 3, "bytes_per_prompt": 245}
    closure = {"verdict": "not checked", "value": 0.31, "se": 1.7, "why": "+0.31 nats, SE 1.70"}
    checks = report["checks"] | {"closure": closure}
    return report | {"checks": checks, "ledger": ledger, "displacement": {"windows": windows, "rms": 0.0451}}
