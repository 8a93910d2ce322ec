"""Strict recipes: each of forty mistakes is reported where it stands, and mistakes are reported together."""

import re

import pytest
from spoiled import CASES, LINES, Case

from fe_posttrain.recipe.checks import FIELDS, KINDS, resolve
from fe_posttrain.recipe.kinds import adapter
from fe_posttrain.recipe.names import OTHER_NAMES, suggestion
from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.training.limits import CHOICES, RANGES


def problems(path, overrides=()) -> list[str]:
    with pytest.raises(RecipeError) as error:
        resolve(path, list(overrides))
    return str(error.value).splitlines()


def spoiled(tmp_path, *lines: str) -> list[str]:
    """The problems of the sound recipe with `lines` in place of their keys' lines, without the path."""
    keys = {line.split(":")[0] for line in lines}
    kept = [line for line in LINES if line.split(":")[0] not in keys]
    path = tmp_path / "r.yaml"
    path.write_text("\n".join([*kept, *lines]))
    return [re.sub(r"^.*r\.yaml:?\d*: ", "", line) for line in problems(path)]


def test_the_recipe_that_is_spoiled_is_sound(tmp_path):
    settings, args, model = resolve(Case("sound", {}, "", 0, "").write(tmp_path), ["--output_dir", "somewhere"])
    assert settings.prompts == {"tail_10": 1, "basin": 1} and args.beta == 0.05 and args.output_dir == "somewhere"
    assert model.model_name_or_path == "testbed"
    assert len(CASES) == 40 and len({case.name for case in CASES}) == 40


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_one_line_with_its_place_and_what_to_write(case, tmp_path):
    path = case.write(tmp_path)
    (line,) = problems(path, case.overrides)
    assert line.startswith(case.place(path)) and case.suggestion in line


def test_problems_come_together_in_the_order_of_their_lines(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("\n".join([*LINES, "fp16: maybe", "kl_coef: 1", "top_p: 0", "model_nam: x", "beta: .inf"]))
    found = problems(path, ["--temperature", "-1", "--num_generation=4", "--reward_weights", "[1, 1]"])
    places = [line.removeprefix(f"{path}:").split(": ")[0] for line in found]
    assert places == ["19", "20", "21", "22", "23", "--temperature", "--num_generation", "--reward_weights"]


def test_an_override_heals_the_line_that_it_replaces(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("\n".join([*LINES, "top_p: 3", "save_steps: many"]))
    _, args, _ = resolve(path, ["--top_p", "0.5", "--save-steps=7"])
    assert args.top_p == 0.5 and args.save_steps == 7 and re.match(r"runs/r-\d{8}-\d{6}$", args.output_dir)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["load_best_model_at_end: true", "eval_strategy: epoch", "eval_dataset_name: x/y"],
            "eval_strategy: epoch and",
        ),
        (["dataset_name: org/name"], "dataset_name: written beside prompts"),
        (["eval_dataset_name: org/name"], "eval_dataset_name: written while eval_strategy is no"),
        (["demonstrations: {basin: 1}"], "demonstrations: written while demonstration_energy_weight is 0"),
        (["reward_funcs: []"], "reward_funcs: no reward_funcs while reward_energy_weight is 1"),
        (["reward_energy_weight: 0"], "reward_funcs: written while reward_energy_weight is 0 and nothing is evaluated"),
        (["reward_model_name_or_path: org/rm", "reward_weights: [1]"], "write reward_weights: [1.0, 1.0]"),
        (["prompts: {}"], "prompts: missing"),
        (["support_steps: 10"], "support_steps: written without support; it would do nothing; write support: true"),
        (
            ["reference_model_name_or_path: tesbed"],
            "tesbed; no model is called so; did you mean testbed",
        ),
        (["reference_model_name_or_path: ./nowhere"], "there is no such folder"),
        (["reference_model_name_or_path: testbed", "beta: 0"], "reference_model_name_or_path: testbed with beta 0"),
        (["reference_resets: [0.5, 0]"], "reference_resets: 0; each counts optimizer steps"),
        (["reference_resets: 5"], "reference_resets: 5 is a whole number; a list of numbers is wanted"),
        (["teacher: org/large"], "did you mean reference_model_name_or_path?"),
        (["support: true", "sync_ref_model: true"], "support: true, like sync_ref_model; a claim about a reference"),
        (["support: true", "support_draws: 1"], "support_draws: 1; draws are split in halves; write 2 or more"),
        (["support: true", "support_alpha: 0"], "support_alpha: 0; it is an error probability"),
        (["support: true", "support_signal: dgits"], "did you mean digits?"),
        (["support: true", "support_channels: {hint: 'nowhere:f'}"], "support_channels: hint: "),
        (["support: true", "support_dataset_name: none.jsonl"], "support_dataset_name: none.jsonl; there is no such"),
        (
            ["support: true", "prompts: {}", "dataset_name: org/rows"],
            "support: true without held-out prompts to probe; write support_dataset_name: prompts.jsonl",
        ),
        (
            [
                "support: true",
                "prompts: {}",
                "dataset_name: org/rows",
                "support_dataset_name: org/held_out",
                "reward_funcs: []",
                "reward_energy_weight: 0",
            ],
            "support: true while nothing says which completions are correct",
        ),
        (["kl_sampler: demonstrations"], "kl_sampler: demonstrations with reward_energy_weight 1"),
        (
            ["kl_sampler: demonstrations", "neftune_noise_alpha: 5"],
            "noise in the embeddings of a run that rolls out or",
        ),
        (
            ["failure_buffer_batch_size: 4"],
            "written without failure_buffer; it would do nothing; write failure_buffer:",
        ),
        (["failure_buffer: 8"], "failure_buffer: 8 with reward_energy_weight 1.0 and demonstration_energy_weight 0.0"),
        (
            ["failure_buffer: 8", "demonstration_energy_weight: 1", "demonstrations: {basin: 1}"],
            "failure_buffer: written with demonstrations of their own; it holds those of prompts that failed; write",
        ),
        (
            [
                "failure_buffer: 8",
                "demonstration_energy_weight: 1",
                "demonstrations_paired: true",
                "failure_buffer_format: dgits",
            ],
            "failure_buffer_format: 'dgits'; no such reward",
        ),
        (["merge_adapter: true"], "merge_adapter: written without use_peft"),
        (["push_to_hub: true", "hub_strategy: all_checkpoints"], "hub_strategy: all_checkpoints pushes"),
        (["resume_from_checkpoint: x"], "write --resume"),
        (["generation_batch_size: 24"], "write generation_batch_size: 64"),
        (["save_steps: 2.5"], "save_steps: 2.5; above 1 it counts whole steps"),
        (["dataset_name: rows.csv"], "write one of .jsonl, .json, .parquet"),
        (["dataset_name: a/b/rows.parquet"], "there is no such file"),
        (["eval_dataset_name: gsm8", "eval_strategy: steps"], "did you mean gsm8k?"),
        (["model_name_or_path: tesbed"], "did you mean testbed?"),
        (["chat_template_path: ./chat.jinja"], "there is no such file"),
        (["optim: adam"], "one of 41"),
        (["report_to: [wandb, tensorbord]"], "did you mean tensorboard?"),
        (["generation_kwargs: {min_p: .inf}"], "generation_kwargs: inf"),
        (
            ["accelerator_config: {nonsense: 1}"],
            "argument 'nonsense'; FreeEnergyConfig refuses it",
        ),
    ],
)
def test_contradictions_say_what_to_write(lines, message, tmp_path):
    assert any(message in line for line in spoiled(tmp_path, *lines))


def test_demonstrations_may_come_with_the_rows_of_dataset_name(tmp_path):
    path = tmp_path / "r.yaml"
    kept = [line for line in LINES if not line.startswith("prompts")]
    path.write_text("\n".join([*kept, "dataset_name: org/name", "demonstration_energy_weight: 0.5"]))
    settings, args, _ = resolve(path, [])
    assert settings.dataset_name == "org/name" and args.demonstration_energy_weight == 0.5


def test_a_weight_with_a_mistake_is_not_called_missing_as_well(tmp_path):
    weights = ["reward_energy_weight: 0", "beta: 0", "demonstration_energy_weights: 1", "demonstrations: {basin: 1}"]
    path = tmp_path / "r.yaml"
    kept = [line for line in LINES if line.split(":")[0] not in ("reward_energy_weight", "beta", "reward_funcs")]
    path.write_text("\n".join([*kept, *weights]))
    (line,) = problems(path)
    assert "did you mean demonstration_energy_weight?" in line


def test_a_checkpoint_after_the_last_step_is_inside_no_block(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("\n".join(line for line in LINES if not line.startswith("save_strategy")))
    assert resolve(path, ["--num_iterations", "3", "--save_steps", "100"])[1].save_steps == 100
    assert resolve(path, ["--num_iterations", "3", "--save_steps", "0.03"])[1].save_steps == 0.03  # 3 of 100
    assert "save_steps: 501" in problems(path, ["--num_iterations", "3", "--max_steps", "1000"])[0]


def test_every_key_has_a_type_that_can_be_checked_and_belongs_to_one_dataclass():
    for _, _, hint in FIELDS.values():
        adapter(hint)
    assert sum(len(kind.__dataclass_fields__) for kind in KINDS) == len(FIELDS) + 3  # three that no recipe may hold


def test_tables_name_keys_that_exist():
    assert not {*RANGES, *CHOICES, *OTHER_NAMES.values()} - set(FIELDS)
    assert not set(OTHER_NAMES) & set(FIELDS)


def test_what_is_like_no_key_is_given_no_suggestion():
    assert [suggestion(word, FIELDS) for word in ("foobar", "xyz", "my_setting")] == [None] * 3
