"""Equal trials for every arm of a comparison: what each was tried with, how that went, and what was chosen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fe_posttrain.methods.measured import measured
from fe_posttrain.recipe.comparison import Comparison, tried_by
from fe_posttrain.view.reading import RunData


def trials(comparison: Comparison, output_dir: str) -> dict[str, list[dict[str, Any]]]:
    """The finished trials of every arm that has any to make, JSON values.

    Returns:
        label -> trials in order, each `settings`, `pass_1` (share, last probe round), `generated_tokens`, `updates`,
        `chosen` (of the highest pass_1, the first one; all False until every trial of the arm is finished).
    """
    runs = comparison.trials(output_dir)
    found: dict[str, list[dict[str, Any]]] = {}
    for arm in comparison.arms:
        tried = tried_by(arm, comparison.tune)
        own = [run for run in runs if run.arm.label == arm.label]
        done = [
            {"settings": settings} | _result(Path(run.folder))
            for settings, run in zip(tried, own, strict=True)
            if (Path(run.folder) / "summary.json").is_file()
        ]
        best = max(range(len(done)), key=lambda i: done[i]["pass_1"], default=None)  # the first of equal ones
        if tried:
            found[arm.label] = [one | {"chosen": i == best and len(done) == len(tried)} for i, one in enumerate(done)]
    return found


def _result(folder: Path) -> dict[str, Any]:
    run = measured(RunData(folder))
    return {"pass_1": run.last.success, **{name: run.account[name] for name in ("generated_tokens", "updates")}}


def tuned(comparison: Comparison, output_dir: str) -> Comparison:
    """The comparison with the chosen values laid over its arms, as far as they are chosen."""
    if not comparison.tune:
        return comparison
    found = trials(comparison, output_dir)
    chosen = {label: one["settings"] for label, tried in found.items() for one in tried if one["chosen"]}
    arms = (replace(arm, settings=arm.settings | chosen.get(arm.label, {})) for arm in comparison.arms)
    return replace(comparison, arms=tuple(arms))
