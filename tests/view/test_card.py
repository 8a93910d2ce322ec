"""Model cards of run folders made by hand: the numbers are those of the files, and the Hub's own loader reads them."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard

from fe_posttrain.view.card.model_card import Subject, model_card
from fe_posttrain.view.reading import RunData

RECIPE = {
    "run_name": "two|steps",
    "model_name_or_path": "some-lab/small-model",
    "dataset_name": "some-lab/questions",
    "demonstration_dataset_name": None,
    "reward_funcs": ["rewards.py:close", {"rewards.py:at_most": {"length": 4}}],
    "reward_weights": [1.0, 0.5],
    "reward_energy_weight": 1.0,
    "demonstration_energy_weight": 0.0,
    "beta": 0.1,
    "beta_schedule": {"linear": {"final": 0.025}},
    "estimator": "sequence",
    "max_steps": 20,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 3,
    "learning_rate": 2e-05,
    "lr_scheduler_type": "cosine",
    "optim": "adamw_torch",
    "num_generations": 4,
    "max_completion_length": 99,
    "temperature": 1.0,
    "dtype": "float32",
    "seed": 1234,
    "support": True,
    "support_threshold": 0.5,
}
SUBJECT = Subject("F(pi) = 1 E[-reward] + (0.1 -> 0.025) KL(pi || reference)", 'print("hello")\n')


def term(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def a_report(step: int, gain: float) -> dict:
    return {
        "step": step,
        "sentence": f"The gain of {gain} points is a made-up one.",
        "key": {"reference": "small-model (12ab)", "decoding": "temperature 1", "verifier": "close", "budget": 64}
        | {"delta": 0.04, "alpha": 0.03},
        "prompts": 12,
        "draws": {
            "reference": {"total": 768, "least": 64, "most": 64},
            "trained": {"total": 500, "least": 40, "most": 64},
        },
        "verdict": {
            "gain": term(gain, -1.23, 43.96),
            "elicited": term(38.19, 38.19, 41.91),
            "created": term(0.07, 0.07, 2.31),
            "undetermined": term(3.02),
            "lost": term(0.0, 0.0, None),
        },
        "checks": {"bar": {"verdict": "passed", "why": "0.00 nats"}, "guess_floor": {"verdict": "not checked"}},
    }


@pytest.fixture
def run(tmp_path):
    """20 steps with F = -step, F* = -step - 1/4; one probe."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    versions = {"python": "3.11.7", "torch": "2.13.0", "tasks": {}, "git": {"commit": "abc123", "clean": False}}
    (folder / "versions.json").write_text(json.dumps(versions))
    rows = [
        {"step": i, "seconds": 10.0 * i, "free_energy/total": -1.0 * i, "free_energy/optimum": -i - 0.25}
        | {"free_energy/gap": 0.25, "free_energy/reward": -2.0 * i, "free_energy/kl": 0.5 * i, "free_energy/beta": 0.1}
        for i in range(1, 21)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tell(folder, {"event": "start", "steps": 20}, {"event": "probe", "report": a_report(10, 41.21)})
    return folder


def tell(folder, *events):
    with open(folder / "events.jsonl", "a") as file:
        file.writelines(json.dumps({"step": 0, "seconds": 0.5} | event) + "\n" for event in events)


def change(folder, **recipe):
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | recipe))


def card(folder, subject=SUBJECT) -> str:
    return model_card(RunData(folder), subject)


def line(text: str, start: str) -> list[str]:
    """Cells of the table row whose first cell is `start`."""
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in text.splitlines() if row.startswith("|")]
    return next(row[1:] for row in rows if row[0] == start)


def test_the_hubs_loader_reads_the_front_matter(run, tmp_path):
    (tmp_path / "README.md").write_text(card(run))
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data["base_model"] == "some-lab/small-model" and data["library_name"] == "transformers"
    assert data["datasets"] == ["some-lab/questions"] and data["model_name"] == "two|steps"
    assert {"fe_posttrain", "reinforcement-learning"} <= set(data["tags"])
    assert "license" not in data and "base_model_relation" not in data


@pytest.mark.parametrize("base", ["testbed", "testbed_depths", "~/models/mine", "/data/models/mine"])
def test_what_is_not_on_the_hub_is_no_metadata_and_no_path_of_the_machine_is_shown(run, tmp_path, base):
    change(run, model_name_or_path=base, dataset_name="/home/somebody/rows.jsonl")
    (tmp_path / "README.md").write_text(text := card(run))
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert "base_model" not in data and "datasets" not in data
    assert "somebody" not in text and str(tmp_path) not in text and "`rows.jsonl`" in text


def test_a_local_folder_is_not_taken_for_a_name_on_the_hub(run, tmp_path, monkeypatch):
    (tmp_path / "some-lab" / "small-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "\nbase_model: " not in card(run)


def test_an_adapter_names_its_library_and_what_it_is_to_its_base(run, tmp_path):
    change(run, use_peft=True, lora_r=7, dataset_name="gsm8k")
    (tmp_path / "README.md").write_text(text := card(run, Subject("F", "x\n", adapter=True)))
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert (data["library_name"], data["base_model_relation"]) == ("peft", "adapter")
    assert data["datasets"] == ["openai/gsm8k"] and line(text, "`lora_r`") == ["7"]


def test_the_objective_and_its_settings(run):
    text = card(run)
    assert "    F(pi) = 1 E[-reward] + (0.1 -> 0.025) KL(pi || reference)\n" in text
    assert line(text, "beta, energy units per nat") == ["(0.1 → 0.025)"]
    rewards = "`rewards.py:close`, `rewards.py:at_most` (length = 4), weights 1, 0.5"
    assert line(text, "reward functions") == [rewards]
    assert line(text, "what counts as correct") == ["`rewards.py:close`, at least 0.5"]
    assert line(text, "`gradient_accumulation_steps`") == ["3"] and line(text, "`seed`") == ["1234"]
    assert line(text, "torch") == ["2.13.0"] and "abc123, with changes that were not committed" in text
    assert "arXiv" in text and "2605.08368" in text and '```python\nprint("hello")\n```' in text
    assert "does not end at the optimum" not in text
    biased = card(run, Subject("F", "x\n", biases=["temperature: 0.7: another policy."]))
    assert "* temperature: 0.7: another policy." in biased


def test_the_reference_is_named(run):
    assert line(card(run), "reference")[0] == "the base model, frozen"
    change(run, reference_model_name_or_path="/data/large", reference_resets=[], reward_energy_weight=0.0)
    text = card(run)
    assert line(text, "reference")[0] == "`large`, a model of its own, frozen" and "on-policy distillation" in text
    change(run, reference_model_name_or_path=None, reference_resets=[200, 0.5])
    assert line(card(run), "reference")[0].startswith("the base model; from each of the steps 200, 0.5 on")


def test_a_failure_buffer_is_named_with_its_settings(run):
    change(run, demonstration_energy_weight=1.0, failure_buffer=128, failure_buffer_learning_rate=2e-6)
    text = card(run)
    assert "on one free energy: reward, and demonstrations of prompts whose rollouts failed." in text
    assert line(text, "`failure_buffer`") == ["128"] and line(text, "`failure_buffer_learning_rate`") == ["2e-06"]


def test_terms_of_f_are_means_of_the_first_and_last_tenth(run):
    """Of 20 rows: 1 and 2, 19 and 20."""
    text = card(run)
    assert line(text, "F") == ["-1.500", "-19.500", "energy"]
    assert line(text, "F*") == ["-1.750", "-19.750", "energy"]
    assert line(text, "gap, F - F*") == ["0.250", "0.250", "energy"]
    assert line(text, "reward term") == ["-3.000", "-39.000", "energy"]
    assert line(text, "KL") == ["0.750", "9.750", "nats/sequence"]


def test_the_verdict_is_that_of_the_last_probe_rounded_towards_caution(run):
    text = card(run)
    assert "> The gain of 41.21 points is a made-up one." in text and "after step 10" in text
    assert line(text, "gain") == ["41.2", "-1.3", "44.0"]
    assert line(text, "elicited") == ["38.1", "38.1", "42.0"]
    assert line(text, "created") == ["0.0", "0.0", "2.4"]
    assert line(text, "undetermined") == ["3.0", "", ""] and line(text, "lost") == ["0.0", "0.0", ""]
    assert line(text, "B, budget in draws") == ["64"] and line(text, "delta, alpha") == ["0.04, 0.03"]
    assert line(text, "draws of the trained") == ["500, 40 to 64 a prompt"]
    assert line(text, "check bar") == ["passed: 0.00 nats"]
    tell(run, {"event": "probe", "report": a_report(15, 44.44)})
    assert line(card(run), "gain")[0] == "44.4"
    finished = Subject("F", "x\n", summary={"support": a_report(20, 45.52)})
    assert line(card(run, finished), "gain")[0] == "45.5" and "after step 20" in card(run, finished)


def test_without_a_verdict_nothing_is_claimed_and_the_card_says_why(run):
    tell(run, {"event": "support_off", "reason": "OutOfMemory: no\nroom"})
    assert "not tracked to the end: OutOfMemory: no room" in card(run) and "made-up" not in card(run)
    (run / "events.jsonl").unlink()
    assert "nothing has been probed yet" in card(run)
    change(run, support=False)
    assert "Support was not tracked" in card(run)


def test_exact_values_are_the_summarys_or_those_logged(run):
    assert "Exact values" not in card(run)
    with open(run / "metrics.jsonl", "a") as file:
        for step, p in ((21, 0.25), (22, 0.75)):
            file.write(json.dumps({"step": step, "testbed/p/tail": p, "testbed/kl/tail": 0.0}) + "\n")
    assert line(card(run), "`tail`") == ["0.250", "0.750"]
    exact = {"start": {"testbed/p/tail": 1e-9}, "end": {"testbed/p/tail": 0.5, "testbed/kl/tail": 2.5}}
    assert line(card(run, Subject("F", "x\n", summary={"exact": exact})), "`tail`") == ["1e-09", "0.500", "2.500"]


def test_a_card_depends_on_no_clock_and_on_no_place(run, tmp_path):
    text = card(run)
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    rows = [json.loads(row) for row in (moved / "metrics.jsonl").read_text().splitlines()]
    later = "".join(json.dumps(row | {"seconds": row["seconds"] + 1e4}) + "\n" for row in rows)
    (moved / "metrics.jsonl").write_text(later)
    tell(moved, {"event": "resume", "steps": 20, "seconds": 77.0})
    assert card(moved) == text


def test_evaluation_and_a_checkpoint(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 20, "eval_reward": 0.625, "eval_free_energy/total": -0.5}) + "\n")
    text = card(run, Subject("F", "x\n", step=15))
    assert "Evaluation at step 20: F -0.500, reward 0.625." in text
    assert "a checkpoint, after step 15 of 20" in text and "a checkpoint" not in card(run)


def test_a_run_without_rows_has_a_card(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    assert "Nothing was logged yet." in card(tmp_path)
