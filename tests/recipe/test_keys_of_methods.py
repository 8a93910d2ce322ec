"""Recipes with gates, schedules and projections: what contradicts itself is reported at its line."""

import pytest
from spoiled import LINES

from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.reading import RecipeError

SHOWN = ["demonstration_energy_weight: 0.5", "demonstrations: {barrier: 1}", "demonstrations_paired: true"]  # 19 to 21
CASES = {  # lines after those of the sound recipe (the first is line 19) -> line, key, part of what to write
    "gate misspelt": ([*SHOWN, "gate: treshold"], 22, "gate", "did you mean threshold?"),
    "gate with another word": ([*SHOWN, "gate: {threshold: {g: 1}}"], 22, "gate", "write arguments that it takes"),
    "gate of nothing": (["gate: failure_rate"], 19, "gate", "write a positive weight, or remove it"),
    "schedule of nothing": (["beta_schedule: {linear: {finl: 0.1}}"], 19, "beta_schedule", "arguments that it takes"),
    "schedule below 0": (["beta_schedule: {linear: {final: -1}}"], 19, "beta_schedule", "write 0 or more"),
    "schedule that names the weight": (
        ["beta_schedule: {linear: {final: 0, value: 1}}"],
        19,
        "beta_schedule",
        "the run gives it; remove it",
    ),
    "two remedies for one demonstration": (
        [*SHOWN, "demonstration_beta: 0.05", "demonstration_shaping: shrinking"],
        23,
        "demonstration_shaping",
        "remove one of them",
    ),
    "soft target of nothing": (
        ["demonstration_beta: 0.05"],
        19,
        "demonstration_beta",
        "it would do nothing; remove it",
    ),
    "bank of nothing": (["forward_sampler: bank"], 19, "forward_sampler", "it would do nothing; remove it"),
    "projection misspelt": (["reward_projection: foward"], 19, "reward_projection", "did you mean forward?"),
    "scaled forward projection": (
        ["reward_projection: forward", "scale_rewards: group"],
        20,
        "scale_rewards",
        "advantages of reverse projection; remove it",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_contradiction_is_reported_at_its_line(tmp_path, name):
    lines, place, key, remedy = CASES[name]
    path = tmp_path / "r.yaml"
    path.write_text("\n".join([*LINES, *lines]))
    with pytest.raises(RecipeError) as error:
        resolve(path, [])
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}:{place}: {key}: ") and remedy in line


def test_a_gate_of_the_users_own_is_tried_before_the_run(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def gate(groups):\n    return groups.rate, groups.rate\n")
    path = tmp_path / "r.yaml"
    path.write_text("\n".join([*LINES, *SHOWN, f"gate: {own}:gate"]))
    with pytest.raises(RecipeError, match=r"r.yaml:22: gate: .*shapes \(3,\) and \(3,\)"):
        resolve(path, [])
    own.write_text("def gate(groups):\n    return groups.rate[:, None], groups.rate\n")
    assert resolve(path, [])[1].gate == f"{own}:gate"
